"""Finds the buckets and compressors of a model while it trains: observe, plan, try, and watch for drift.

Everything is decided on numbers that all ranks have agreed on, so all ranks decide alike, at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from muster.pillars.comm.compress.compressor import ComputeRates, Part
from muster.pillars.comm.compress.rates import measure_rates
from muster.pillars.comm.compress.registry import load_compressor
from muster.pillars.comm.layout import capped_layout
from muster.pillars.comm.link import Link
from muster.pillars.comm.link_probe import measure_link
from muster.pillars.comm.plan import Costs, Plan, make_plan, plan_for
from muster.pillars.comm.reducer import reduced_parameters, size_limits
from muster.pillars.comm.step_profile import StepProfile, StepRecorder

_CLEARLY: Final = 0.99  # a rival must beat the incumbent's step by 1 %
_DRIFT: Final = 0.05  # a new layout must promise so much of a step
_LINK_DRIFT: Final = 1.33  # a link must be so much slower or faster to be measured anew


@dataclass(frozen=True)
class Pace:
    """How many steps of the user's loop are spent on what.

    Arguments:
        observe_steps: timed before a plan is made.
        trial_steps, trial_rounds: each candidate is timed for so many steps, so often, in turn.
        check_every: steps between checks for drift; 0 for never.
    """

    observe_steps: int = 5
    trial_steps: int = 3
    trial_rounds: int = 3
    check_every: int = 500


class Tuner:
    """What `attach` does at the beginning of steps.

    Arguments:
        model: whose exchange is tuned.
        candidates: names of compressors to choose from.
        options: of each compressor, by its name.
        install: gives the model a plan's buckets and compressors.
        pace: how many steps for what.
        link: measured before, or None.

    Attributes:
        step: steps begun so far.
        plan: in use, or None while the model's own buckets are.
        settled: whether a plan has been chosen.
        link, profile, decisions: see `Attached`.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        candidates: Sequence[str],
        options: Mapping[str, Mapping[str, Any]],
        install: Callable[[Plan], None],
        *,
        pace: Pace,
        link: Link | None,
    ) -> None:
        self._model, self._candidates, self._options = model, list(candidates), options
        self._install, self._pace = install, pace
        self._group = model.process_group
        parameters, names = reduced_parameters(model)
        self._shapes = {name: parameter.shape for name, parameter in zip(names, parameters, strict=True)}
        self._device = parameters[0].device
        self.link = link
        self.rates: ComputeRates | None = None
        self.profile: StepProfile | None = None
        self.plan: Plan | None = None
        self.decisions: list[dict[str, Any]] = []
        self.step = 0
        self.settled = False
        self._known_gain_s = 0.0  # promised by a plan that lost when it was tried

    def measure(self) -> None:
        """Measures link and arithmetic, unless that has been done; all ranks together."""
        if self.link is None:
            self.link = measure_link(self._group, device=self._device)
        if self.rates is None:
            self.rates = _agreed_rates(measure_rates(self._device), self._group, self._device)

    def decide(self, what: str, **details: Any) -> None:
        """Puts a decision on record."""
        self.decisions.append({"step": self.step, "what": what, **details})

    def quickest(self, index: int, parts: Sequence[Part]) -> str:
        """The compressor with the least predicted time for a bucket that torch has laid out."""
        assert self.link is not None
        assert self.rates is not None
        ranks, link, rates = dist.get_world_size(self._group), self.link, self.rates
        predicted = {
            name: load_compressor(name).predicted_s(parts, ranks, link, rates) for name in self._candidates
        }
        name = min(predicted, key=lambda each: predicted[each])
        self.decide("compressor of a bucket", bucket=index, compressor=name, predicted_s=predicted)
        return name

    def run(self) -> Generator[None, None, None]:
        """What happens at the beginning of each step, until it ends: every `yield` is a step of the user's loop."""
        if not self.settled:
            yield from _some(2)  # torch lays its own buckets out anew after the first
            yield from self._plan_and_try()
        while self._pace.check_every:
            yield from _some(self._pace.check_every)
            if (yield from self._drifted()):
                yield from self._plan_and_try()

    def _plan_and_try(self) -> Generator[None, None, None]:
        profile = yield from self._observe(self._pace.observe_steps)
        if profile is None:
            return
        self.profile = profile
        costs = self._costs(profile)
        own = capped_layout(profile.bytes, size_limits(self._model))
        incumbent = self._candidates[:1]
        rivals: dict[str, Plan] = {"own buckets": plan_for(profile, costs, incumbent, own)}
        plain = make_plan(profile, costs, incumbent)
        if plain.ends != tuple(own):
            rivals["planned buckets"] = plain
        if len(self._candidates) > 1:
            mixed = make_plan(profile, costs, self._candidates)
            if set(mixed.compressors) != set(incumbent) and mixed.end_s < plain.end_s:
                rivals["planned and compressed"] = mixed
        times = yield from self._try(rivals)
        chosen = "own buckets"
        for name, seconds in times.items():
            if seconds < times[chosen] * _CLEARLY:
                chosen = name
        self._use(rivals[chosen])
        self.settled = True
        best = min(plan.end_s for plan in rivals.values())
        self._known_gain_s = self._gain(profile, rivals[chosen].end_s, best)
        self.decide(
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
        for turn in range(self._pace.trial_rounds):
            for name in list(rivals)[:: -1 if turn % 2 else 1]:
                self._use(rivals[name])
                yield  # allocates its buffers, agrees on its compressors
                for _ in range(self._pace.trial_steps):
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
        now = measure_link(self._group, device=self._device, kinds=("all_reduce",), sizes=(int(size),))
        factor = now.seconds("all_reduce", size) / self.link.seconds("all_reduce", size)
        if not 1 / _LINK_DRIFT < factor < _LINK_DRIFT:
            self.link = measure_link(self._group, device=self._device)
            self.decide("the link has drifted", factor=factor)
        costs = self._costs(profile)
        current = dict(zip(self.plan.names, range(len(self.plan.names)), strict=True))
        if [current[name] for name in profile.names] != list(range(len(current))):
            ends = None  # in another order: the layout cannot be compared bucket by bucket
        else:
            ends = self.plan.ends
        best = make_plan(profile, costs, self._candidates)
        kept = plan_for(profile, costs, self._candidates, ends).end_s if ends else profile.exchanged_s
        gain = self._gain(profile, kept, best.end_s)
        if gain - self._known_gain_s <= _DRIFT * profile.step_s:
            return False
        self.decide("drift", promised_s=gain, step_s=profile.step_s)
        return True

    @staticmethod
    def _gain(profile: StepProfile, end_s: float, best_end_s: float) -> float:
        """How much shorter the step would be; what ends within the backward pass ends early enough."""
        return max(end_s, profile.backward_s) - max(best_end_s, profile.backward_s)

    def _use(self, plan: Plan) -> None:
        self.plan = plan
        self._install(plan)

    def _costs(self, profile: StepProfile) -> Costs:
        assert self.link is not None
        assert self.rates is not None
        return Costs(profile, self._shapes, self.link, self.rates, self._options)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


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
