"""Tuned and compressed communication for a plain PyTorch loop, in one line::

model = DistributedDataParallel(net)
attached = muster.comm.attach(model)       # the loop stays as it is
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from muster.engine.clock.watch import hook_owners, timing_of
from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import Part
from muster.pillars.comm.compress.registry import load_compressor
from muster.pillars.comm.exchange import Choice, Exchange
from muster.pillars.comm.link import Link
from muster.pillars.comm.plan import Plan, automatic_candidates
from muster.pillars.comm.reducer import Hook, rebuild_reducer, reduced_parameters, why_not_rebuilt
from muster.pillars.comm.step_profile import StepProfile
from muster.pillars.comm.tuner import Pace, Tuner

_MIB: Final = 1 << 20

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
    pace: Pace | None = None,
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
        pace: how many steps are spent on what.

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
        pace=pace or Pace(),
    )


class Attached:
    """What `attach` returns.

    Attributes:
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
        pace: Pace,
    ) -> None:
        self._model, self._seed = model, seed
        self._world_size = dist.get_world_size(model.process_group)
        parameters, names = reduced_parameters(model)
        self._position = {name: position for position, name in enumerate(names)}
        candidates = [compression]
        if compression == "auto":
            candidates = automatic_candidates(lossy, parameters[0].dtype, self._world_size)
        self._options = {} if compression == "auto" else {compression: dict(options)}
        self._tuner = Tuner(model, candidates, self._options, self._install, pace=pace, link=link)
        self.exchange: Exchange | None = None
        self._hook: Hook | None = None
        self._handles: list[Any] = []
        self._outstanding = self._rebuilt = False
        self._script: Generator[None, None, None] | None = None
        if self._world_size == 1:
            self._tuner.settled = True
        else:
            self._begin(buckets, candidates, parameters[0])

    @property
    def link(self) -> Link | None:
        """As measured; None where nothing had to be."""
        return self._tuner.link

    @property
    def profile(self) -> StepProfile | None:
        """The step as it was timed before the last plan was made; None before that."""
        return self._tuner.profile

    @property
    def plan(self) -> Plan | None:
        """What is in use; None while the model has its own buckets."""
        return self._tuner.plan

    @property
    def settled(self) -> bool:
        """Whether all has been chosen; drift may change it again."""
        return self._tuner.settled

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What was decided at which step and why, with the measured and the predicted times in seconds."""
        return self._tuner.decisions

    def _begin(self, buckets: Buckets, candidates: Sequence[str], parameter: torch.Tensor) -> None:
        if isinstance(buckets, str) and buckets not in ("auto", "keep"):
            raise RefusedInput(f"buckets={buckets!r}: use 'auto', 'keep', a number of MiB, or a list of them")
        planned, chooses = buckets == "auto", len(candidates) > 1
        if planned and (reason := why_not_rebuilt(self._model)):
            raise RefusedInput(
                f"buckets='auto': this DistributedDataParallel keeps its buckets, since {reason}; use buckets='keep'"
            )
        if planned or chooses:
            self._tuner.measure()
        hook: Hook | None = None
        if candidates != ["none"] and not (planned and chooses):
            fixed = Choice(candidates[0], self._options.get(candidates[0], {}))
            exchange = self._make_exchange()
            exchange.choose(
                (lambda index, parts: Choice(self._tuner.quickest(index, parts))) if chooses else fixed
            )
            hook = exchange.hook
        if isinstance(buckets, str):
            if hook is not None or (timing_of(self._model) is not None and not self._model._comm_hooks):
                self._register(hook)
        else:
            caps = [float(buckets)] if isinstance(buckets, int | float) else [float(cap) for cap in buckets]
            limits = [int(cap * _MIB) for cap in caps]
            if not limits or min(limits) <= 0:
                raise RefusedInput(f"buckets={buckets!r}: a size limit must be a positive number of MiB")
            rebuild_reducer(self._model, caps_bytes=limits, hook=self._timed(hook))
            self._rebuilt = True
            self._tuner.decide("buckets by size limit", caps_mib=caps)
        hook_owners[self._model] = self._rewire
        if planned:
            self._handles = [
                self._model.register_forward_pre_hook(self._before_forward, prepend=True),
                parameter.register_post_accumulate_grad_hook(self._after_backward),  # type: ignore[attr-defined]
            ]
            self._script = self._tuner.run()
        else:
            self._tuner.settled = True

    # ---- step by step ---------------------------------------------------------------------------------------------------

    def _before_forward(self, model: torch.nn.Module, inputs: Any) -> None:
        """A step begins, unless gradients stay local or an earlier forward pass waits for its backward pass."""
        if self._outstanding or not torch.is_grad_enabled() or not self._model.require_backward_grad_sync:
            return
        self._outstanding = True
        if self._script is not None and next(self._script, "over") == "over":
            self._let_go()
        self._tuner.step += 1

    def _after_backward(self, parameter: torch.Tensor) -> None:
        if self._model.require_backward_grad_sync:
            self._outstanding = False

    def _let_go(self) -> None:
        """Takes the hooks off the model that count steps: nothing is left to be done at their beginning."""
        self._script = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- the model ------------------------------------------------------------------------------------------------------

    def _make_exchange(self) -> Exchange:
        if self.exchange is None:
            named = self._model.module.named_parameters()
            self.exchange = Exchange(named, group=self._model.process_group, seed=self._seed)
        return self.exchange

    def _install(self, plan: Plan) -> None:
        """Gives the model the plan's buckets and compressors; between two steps, on all ranks."""
        hook: Hook | None = None  # of all-reduces alone torch's own is the cheapest
        if set(plan.compressors) != {"none"}:
            chosen = plan.by_bucket()

            def choose(index: int, parts: Sequence[Part]) -> Choice:
                name = chosen[tuple(part.name for part in parts)]
                return Choice(name, self._options.get(name, {}))

            exchange = self._make_exchange()
            exchange.rechoose(choose)
            hook = exchange.hook
        self._rebuild(plan, hook)

    def _rebuild(self, plan: Plan, hook: Hook | None) -> None:
        order = [self._position[name] for name in plan.names]
        rebuild_reducer(self._model, order=order, ends=plan.ends, hook=self._timed(hook))
        self._rebuilt = True

    def _timed(self, hook: Hook | None) -> Hook | None:
        """The hook as it is to be registered: inside that of the pillar clock if the loop is watched."""
        self._hook = hook
        timing = timing_of(self._model)
        return hook if timing is None else timing(hook or allreduce_hook)

    def _register(self, hook: Hook | None) -> None:
        timed = self._timed(hook)
        assert timed is not None
        if self._model._comm_hooks:
            rebuild_reducer(self._model, hook=timed)
        else:
            self._model.register_comm_hook(None, timed)

    def _rewire(self) -> None:
        """The loop is watched from now on, or no longer: the hook goes inside the clock's, or out of it."""
        if self.plan is not None:
            self._rebuild(self.plan, self._hook)
        else:
            rebuild_reducer(self._model, hook=self._timed(self._hook))

    # ---- state, and the end ---------------------------------------------------------------------------------------------

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
            plan = Plan(tuple(saved["names"]), tuple(saved["ends"]), tuple(saved["compressors"]), ())
            self._tuner.plan, self._tuner.settled = plan, True
            self._install(plan)
            self._script = self._tuner.run() if self._handles else None
        if state["exchange"] is not None:
            self._make_exchange().load_state_dict(state["exchange"])

    def detach(self) -> None:
        """Gives the model its own buckets and all-reduce back; between two steps, on all ranks.

        Raises:
            RefusedInput: its hook cannot be taken back, since its reducer cannot be made anew.
        """
        self._let_go()
        if self._world_size > 1 and (self._rebuilt or self._model._comm_hooks):
            rebuild_reducer(self._model, hook=self._timed(None))
            self._tuner.plan, self._rebuilt = None, False
        hook_owners.pop(self._model, None)
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None
