"""Tuned and compressed communication for a plain PyTorch loop, in one line::

model = DistributedDataParallel(net)
attached = muster.comm.attach(model)       # the loop stays as it is
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from muster.engine.clock.watch import hook_owners, timing_of
from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import ComputeRates, Part
from muster.pillars.comm.compress.rates import measure_rates
from muster.pillars.comm.compress.registry import compressor_names, load_compressor
from muster.pillars.comm.exchange import Choice, Exchange
from muster.pillars.comm.layout import capped_layout
from muster.pillars.comm.link import Link
from muster.pillars.comm.link_probe import measure_link
from muster.pillars.comm.plan import Costs, Plan, make_plan, plan_for, sparse_pays
from muster.pillars.comm.reducer import Hook, rebuild_reducer, reduced_parameters, why_not_rebuilt
from muster.pillars.comm.step_profile import StepProfile, StepRecorder

_MIB: Final = 1 << 20
_CLEARLY: Final = 0.99  # a rival must beat the incumbent's step by 1 %
_DRIFT: Final = 0.05  # a new layout must promise so much of a step
_LINK_DRIFT: Final = 1.33

Buckets = str | float | Sequence[float]


def attach(
    model: DistributedDataParallel,
    compression: str = "auto",
    *,
    lossy: bool = False,
    buckets: Buckets = "auto",
    options: Mapping[str, Any] | None = None,
    link: Link | None = None,
    seed: int = 0,
    observe_steps: int = 5,
    trial_steps: int = 3,
    trial_rounds: int = 3,
    check_every: int = 500,
) -> Attached:
    """Tunes how an existing DistributedDataParallel exchanges gradients. The training loop stays as it is.

    What it does, and when. Now: the link is measured (two seconds). With a named compression its hook is registered
    now, too. With ``buckets="auto"`` the first steps of the user's loop are timed by hooks that go again: when each
    gradient is ready. Then, at the beginning of a forward pass, the model's ``reducer`` (the private object that
    holds its buckets and its hook) is replaced by one whose layout dynamic programming has found (`layout`): the
    model object, its parameters, buffers and hooks, and the optimizer stay. The candidates (the buckets as they were,
    the planned ones in fp32, the planned ones compressed) take turns for a few steps, and the one with the shortest
    measured step stays; the model's own if none is 1 % faster. Every ``check_every`` steps three steps are timed and
    the link is probed again (0.1 s); if ready times or link have drifted so far that another layout promises 5 % of a
    step, all that is done anew. Nothing is computed twice, and every step's gradient is the mean over ranks, summed
    in the order of the layout, as always.

    ``auto`` gives each bucket the compressor with the least predicted time, selection and arithmetic included.
    Without consent it chooses between fp32 (``none``) and ``bf16``; with ``lossy=True`` among all. All ranks choose
    alike: they agree on every measured number first. Because ``auto`` chooses by measured times, two runs may choose
    differently and then differ in the last bits: name compression and buckets, or load a state, where bits matter.

    Arguments:
        model: without a communication hook; before its first step, or between two steps.
        compression: ``auto``, ``none`` or the name of a compressor (`compress.compressor_names`); naming a lossy one
            is consent.
        lossy: consent to lossy compression by ``auto``.
        buckets: ``auto``; ``keep`` leaves them; a number of MiB, or one for each bucket, sets size limits as
            ``bucket_cap_mb_list``.
        options: of the named compressor.
        link: a link measured before; by default it is measured now.
        seed: of what compressors draw.
        observe_steps, trial_steps, trial_rounds: how many steps are timed; each candidate is tried ``trial_rounds`` times.
        check_every: steps between checks for drift; 0 for never.

    Returns:
        A handle that tells what was chosen, and whose state belongs into a checkpoint if compression is lossy.

    Raises:
        RefusedInput: the model is no DistributedDataParallel or has a hook already, its buckets cannot be changed, or
        there is
            no such compressor.
    """
    if not isinstance(model, DistributedDataParallel):
        raise RefusedInput(
            f"muster.comm.attach: a {type(model).__name__} exchanges no gradients; wrap it in DistributedDataParallel first"
        )
    if timing_of(model) is None and model._comm_hooks:
        raise RefusedInput(
            "muster.comm.attach: this model has a communication hook already, and torch takes one; "
            "attach instead of register_comm_hook"
        )
    if compression != "auto":
        load_compressor(compression)
    return Attached(
        model,
        compression,
        lossy=lossy,
        buckets=buckets,
        options=dict(options or {}),
        link=link,
        seed=seed,
        observe_steps=observe_steps,
        trial_steps=trial_steps,
        trial_rounds=trial_rounds,
        check_every=check_every,
    )


class Attached:
    """What `attach` returns.

    Attributes:
        link: as measured; None where nothing had to be.
        profile: the step as it was timed last, or None.
        plan: what is in use, or None while the model's own buckets are.
        decisions: what was decided at which step and why: a list of dictionaries.
        exchange: the thread that compressors run on; None while none was needed.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        compression: str,
        *,
        lossy: bool,
        buckets: Buckets,
        options: Mapping[str, Any],
        link: Link | None,
        seed: int,
        observe_steps: int,
        trial_steps: int,
        trial_rounds: int,
        check_every: int,
    ) -> None:
        self._model, self._compression, self._options, self._seed = model, compression, options, seed
        self._observe_steps, self._trial_steps = observe_steps, trial_steps
        self._trial_rounds, self._check_every = trial_rounds, check_every
        self._group = model.process_group
        self._world_size = dist.get_world_size(self._group)
        parameters, names = reduced_parameters(model)
        self._position = {name: position for position, name in enumerate(names)}
        self._shapes = {name: parameter.shape for name, parameter in zip(names, parameters, strict=True)}
        self._device = parameters[0].device
        self.link = link
        self.rates: ComputeRates | None = None
        self.profile: StepProfile | None = None
        self.plan: Plan | None = None
        self.exchange: Exchange | None = None
        self.decisions: list[dict[str, Any]] = []
        self.step = 0
        self.settled = False
        self._handles: list[Any] = []
        self._outstanding = False
        self._script: Generator[None, None, None] | None = None
        if self._world_size == 1:
            self.settled = True
            return
        self._candidates = self._allowed(lossy)
        self._begin(buckets, parameters)

    # ---- what is allowed ----------------------------------------------------------------------------------------------

    def _allowed(self, lossy: bool) -> list[str]:
        """The compressors to choose from, the least intrusive first."""
        if self._compression != "auto":
            return [self._compression]
        if next(iter(self._model.parameters())).dtype != torch.float32:
            return ["none"]
        names = ["none", "bf16"]
        if lossy:
            more = [name for name in compressor_names() if load_compressor(name).lossy and name not in names]
            names += [name for name in more if self._may_pay(name)]
        return names

    def _may_pay(self, name: str) -> bool:
        density = getattr(load_compressor(name), "density", 0.01)
        return sparse_pays(name, density, self._world_size) if isinstance(density, float) else True

    def _begin(self, buckets: Buckets, parameters: Sequence[torch.Tensor]) -> None:
        planned = buckets == "auto"
        if isinstance(buckets, str) and buckets not in ("auto", "keep"):
            raise RefusedInput(f"buckets={buckets!r}: use 'auto', 'keep', a number of MiB, or a list of them")
        if planned and (reason := why_not_rebuilt(self._model)):
            raise RefusedInput(
                f"buckets='auto': this DistributedDataParallel keeps its buckets, since {reason}; use buckets='keep'"
            )
        if planned or self._compression == "auto":
            self._measure()
        hook: Hook | None = None
        if self._candidates != ["none"] and (self._compression != "auto" or not planned):
            self._make_exchange()
            assert self.exchange is not None
            if self._compression == "auto":
                self.exchange.choose(self._predicted_choice)
            hook = self.exchange.hook
        if planned or buckets == "keep":
            if hook is not None:
                self._register(hook)
        else:
            assert not isinstance(buckets, str)
            caps = [float(buckets)] if isinstance(buckets, int | float) else [float(cap) for cap in buckets]
            limits = [int(cap * _MIB) for cap in caps]
            if not limits or min(limits) <= 0:
                raise RefusedInput(f"buckets={buckets!r}: a size limit must be a positive number of MiB")
            rebuild_reducer(self._model, caps_bytes=limits, hook=self._timed(hook))
            self._decide("buckets by size limit", caps_mib=caps)
        hook_owners[self._model] = self._rewire
        if planned:
            self._handles = [
                self._model.register_forward_pre_hook(self._before_forward, prepend=True),
                parameters[0].register_post_accumulate_grad_hook(self._after_backward),  # type: ignore[attr-defined]
            ]
            self._script = self._tune()
        else:
            self.settled = True

    def _measure(self) -> None:
        if self.link is None:
            self.link = measure_link(self._group, device=self._device)
        if self.rates is None:
            self.rates = _agreed_rates(measure_rates(self._device), self._group, self._device)

    def _make_exchange(self) -> None:
        if self.exchange is None:
            choice = Choice(
                "none" if self._compression == "auto" else self._compression,
                {} if self._compression == "auto" else self._options,
            )
            self.exchange = Exchange(
                self._model.module.named_parameters(), choice, group=self._group, seed=self._seed
            )

    def _predicted_choice(self, index: int, parts: Sequence[Part]) -> Choice:
        assert self.link is not None
        assert self.rates is not None
        link, rates = self.link, self.rates
        predicted = {
            name: load_compressor(name).predicted_s(parts, self._world_size, link, rates)
            for name in self._candidates
        }
        name = min(predicted, key=lambda each: predicted[each])
        self._decide("compressor of a bucket", bucket=index, compressor=name, predicted_s=predicted)
        return Choice(name)

    # ---- step by step ---------------------------------------------------------------------------------------------------

    def _before_forward(self, model: torch.nn.Module, inputs: Any) -> None:
        """A step begins, unless gradients stay local or an earlier forward pass waits for its backward pass."""
        if self._outstanding or not torch.is_grad_enabled() or not self._model.require_backward_grad_sync:
            return
        self._outstanding = True
        if self._script is not None:
            next(self._script)
        self.step += 1

    def _after_backward(self, parameter: torch.Tensor) -> None:
        if self._model.require_backward_grad_sync:
            self._outstanding = False

    def _tune(self) -> Generator[None, None, None]:
        """What happens at the beginning of each step: every `yield` is a step of the user's loop."""
        if not self.settled:
            yield from _some(2)  # torch lays its own buckets out anew after the first
            yield from self._plan_and_try()
        while True:
            if not self._check_every:
                self._let_go()
                yield from _some(1 << 62)
            yield from _some(self._check_every)
            if (yield from self._drifted()):
                self.settled = False
                yield from self._plan_and_try()

    def _plan_and_try(self) -> Generator[None, None, None]:
        profile = yield from self._observe(self._observe_steps)
        if profile is None:
            return
        self.profile = profile
        costs = self._costs(profile)
        own = self._own_layout(profile)
        incumbent = self._candidates if self._compression != "auto" else ["none"]
        rivals: dict[str, Plan] = {"own buckets": plan_for(profile, costs, incumbent, own)}
        plain = make_plan(profile, costs, incumbent)
        if plain.ends != tuple(own):
            rivals["planned buckets"] = plain
        if len(self._candidates) > 1:
            mixed = make_plan(profile, costs, self._candidates)
            if set(mixed.compressors) != {"none"} and mixed.end_s < plain.end_s:
                rivals["planned and compressed"] = mixed
        times = yield from self._try(rivals)
        chosen = "own buckets"
        for name, seconds in times.items():
            if seconds < times[chosen] * _CLEARLY:
                chosen = name
        self._install(rivals[chosen])
        self.settled = True
        self._decide(
            chosen,
            buckets=len(rivals[chosen].ends),
            compressors=sorted(set(rivals[chosen].compressors)),
            step_s=times,
            predicted_end_s={name: plan.end_s for name, plan in rivals.items()},
        )

    def _observe(self, steps: int) -> Generator[None, None, StepProfile | None]:
        recorder = StepRecorder(self._model)
        for _ in range(steps):
            recorder.begin()
            yield
        recorder.stop()
        return recorder.profile(self._group)

    def _try(self, rivals: Mapping[str, Plan]) -> Generator[None, None, dict[str, float]]:
        """Each rival's step time: median over its steps, of the slowest rank."""
        if len(rivals) == 1:
            return dict.fromkeys(rivals, 0.0)
        taken: dict[str, list[float]] = {name: [] for name in rivals}
        for turn in range(self._trial_rounds):
            for name in list(rivals)[:: -1 if turn % 2 else 1]:
                self._install(rivals[name])
                yield  # allocates its buffers, agrees on its compressors
                for _ in range(self._trial_steps):
                    begin = self._now()
                    yield
                    taken[name].append(self._now() - begin)
        medians = torch.tensor(
            [sorted(times)[len(times) // 2] for times in taken.values()],
            dtype=torch.float64,
            device=self._device,
        )
        dist.all_reduce(medians, op=dist.ReduceOp.MAX, group=self._group)
        return dict(zip(taken, medians.tolist(), strict=True))

    def _drifted(self) -> Generator[None, None, bool]:
        """Whether ready times or link have changed so much that another layout promises a shorter step."""
        profile = yield from self._observe(3)
        if profile is None or self.plan is None or self.link is None:
            return False
        size = sum(profile.bytes) / len(self.plan.ends)
        now = measure_link(
            self._group, device=self._device, kinds=("all_reduce",), budget_s=0.1, largest_bytes=int(size) * 4
        )
        factor = now.seconds("all_reduce", size) / self.link.seconds("all_reduce", size)
        if not 1 / _LINK_DRIFT < factor < _LINK_DRIFT:
            self.link = measure_link(self._group, device=self._device)
            self._decide("the link has drifted", factor=factor)
        costs = self._costs(profile)
        current = dict(zip(self.plan.names, range(len(self.plan.names)), strict=True))
        if [current[name] for name in profile.names] != list(range(len(current))):
            ends = None  # in another order: the layout cannot be compared bucket by bucket
        else:
            ends = self.plan.ends
        best = make_plan(profile, costs, self._candidates)
        kept = plan_for(profile, costs, self._candidates, ends).end_s if ends else profile.exchanged_s
        gain = max(kept, profile.backward_s) - max(best.end_s, profile.backward_s)
        if gain <= _DRIFT * profile.step_s:
            return False
        self._decide("drift", promised_s=gain, step_s=profile.step_s)
        return True

    # ---- the model --------------------------------------------------------------------------------------------------------

    def _costs(self, profile: StepProfile) -> Costs:
        assert self.link is not None
        assert self.rates is not None
        options = {self._compression: self._options}
        return Costs(profile, self._shapes, self.link, self.rates, options)

    def _own_layout(self, profile: StepProfile) -> list[int]:
        """The buckets that the model would have by its own size limits."""
        model = self._model
        caps = list(model.bucket_bytes_cap_list) or [
            dist._DEFAULT_FIRST_BUCKET_BYTES if model.bucket_bytes_cap_default else model.bucket_bytes_cap,
            model.bucket_bytes_cap,
        ]
        return capped_layout(profile.bytes, caps)

    def _install(self, plan: Plan) -> None:
        """Gives the model the plan's buckets and compressors; between two steps, on all ranks."""
        self.plan = plan
        hook: Hook | None = None
        if set(plan.compressors) != {"none"}:
            self._make_exchange()
            assert self.exchange is not None
            chosen = plan.by_bucket()
            options = {self._compression: self._options}

            def choose(index: int, parts: Sequence[Part]) -> Choice:
                name = chosen[tuple(part.name for part in parts)]
                return Choice(name, options.get(name, {}))

            self.exchange.rechoose(choose)
            hook = self.exchange.hook
        self._rebuild(hook)

    def _rebuild(self, hook: Hook | None) -> None:
        assert self.plan is not None
        order = [self._position[name] for name in self.plan.names]
        rebuild_reducer(self._model, order=order, ends=self.plan.ends, hook=self._timed(hook))
        self._hook = hook

    def _timed(self, hook: Hook | None) -> Hook | None:
        """The hook as it is to be registered: inside that of the pillar clock if the loop is watched."""
        self._hook = hook
        timing = timing_of(self._model)
        return hook if timing is None else timing(hook or allreduce_hook)

    def _register(self, hook: Hook) -> None:
        if timing_of(self._model) is None:
            self._hook = hook
            self._model.register_comm_hook(None, hook)
        else:
            rebuild_reducer(self._model, hook=self._timed(hook))

    def _rewire(self) -> None:
        """The loop is watched from now on: the hook goes inside the clock's."""
        if self.plan is not None:
            self._rebuild(self._hook)
        else:
            rebuild_reducer(self._model, hook=self._timed(self._hook))

    _hook: Hook | None = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _decide(self, what: str, **details: Any) -> None:
        self.decisions.append({"step": self.step, "what": what, **details})

    def _let_go(self) -> None:
        """Takes the hooks off the model that count steps: there is nothing left to do at their beginning."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- the end, and state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of this rank: layout, compressors and their error feedback. Between two steps."""
        plan = self.plan if self.settled else None
        return {
            "plan": None
            if plan is None
            else {"names": plan.names, "ends": plan.ends, "compressors": plan.compressors},
            "exchange": None if self.exchange is None else self.exchange.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state: its layout is used from the next step on and no others are tried. Between two steps, on
        all ranks.

        Raises:
            RefusedInput: it is the state of another model, or of another world size (see `exchange_state.reshard`).
        """
        saved = state["plan"]
        if saved is not None and self._world_size > 1:
            if set(saved["names"]) != set(self._position):
                raise RefusedInput(
                    "state of muster.comm.attach: its parameters are not this model's; "
                    "load the state of a run of the same model"
                )
            flights = ()
            plan = Plan(tuple(saved["names"]), tuple(saved["ends"]), tuple(saved["compressors"]), flights)
            self._install(plan)
            self.settled = True
            self._script = self._tune() if self._handles else None
        if state["exchange"] is not None:
            self._make_exchange()
            assert self.exchange is not None
            self.exchange.load_state_dict(state["exchange"])

    def detach(self) -> None:
        """Gives the model its own buckets and all-reduce back; between two steps, on all ranks."""
        self._let_go()
        self._script = None
        hook_owners.pop(self._model, None)
        if self._world_size > 1 and (self.plan is not None or self._model._comm_hooks):
            self.plan = None
            rebuild_reducer(self._model, hook=self._timed(None))
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None


def _some(steps: int) -> Generator[None, None, None]:
    for _ in range(steps):
        yield


def _agreed_rates(rates: ComputeRates, group: dist.ProcessGroup | None, device: torch.device) -> ComputeRates:
    """The slowest rank's rates, on all ranks."""
    names = list(vars(rates))
    # Rates are at their worst when small, seconds per call when large.
    signs = torch.tensor([1.0 if name.endswith("_s") and name != "call_s" else -1.0 for name in names])
    values = torch.tensor([getattr(rates, name) for name in names], dtype=torch.float64) * signs
    values = values.to(device)
    dist.all_reduce(values, op=dist.ReduceOp.MIN, group=group)
    return ComputeRates(**dict(zip(names, (values.cpu() * signs).tolist(), strict=True)))
