"""Speed-up, efficiency and what is lost on the way, from repeated measurements; pure arithmetic.

*Weak* scaling keeps the batch of each rank, *strong* scaling the global batch; in both, the speed-up is the ratio of
samples per second to those of the fewest ranks, and the efficiency is that ratio over the ratio of ranks. Ratios are
taken within a repeat, whose measurements were made close together, so that a slow hour of the machine cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from muster.tuning._intervals import Interval, median_interval
from muster.tuning._measured import PILLARS, StepTimes

#: A step that is longer than the ideal one by less is said to scale.
NEGLIGIBLE: Final = 0.02

_SUBJECT: Final = {
    "io": "Waiting for data",
    "compute": "Compute",
    "comm": "Exposed communication",
    "idle": "Waiting for the slowest rank",
}
_CAUSE: Final = {
    "io": "the ranks draw on one source of data",
    "compute": "ranks share cores, caches or memory bandwidth, or a share of the batch is too small to be efficient",
    "comm": "`muster profile` shows which messages",
    "idle": "the ranks' steps are uneven",
}


@dataclass(frozen=True)
class ScalePoint:
    """One number of ranks.

    Arguments:
        ranks: how many.
        batch: samples per step over all ranks.
        samples_per_s: of all ranks together.
        step_s: median duration of a step over the repeats.
        speed_up: times the samples per second of the fewest ranks.
        efficiency: ``speed_up`` over the ratio of ranks; 1 is perfect.
        pillars: seconds per step and pillar, medians over the repeats of the means over ranks.
        comm_hidden: seconds per step of communication behind computation; likewise.
        lost: seconds per step and pillar beyond those of perfect scaling; empty for the fewest ranks.
    """

    ranks: int
    batch: int
    samples_per_s: Interval
    step_s: float
    speed_up: Interval
    efficiency: Interval
    pillars: dict[str, float]
    comm_hidden: float
    lost: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """``pillars`` as shares of a step, 0 to 1."""
        total = sum(self.pillars.values())
        return {name: value / total if total > 0 else 0.0 for name, value in self.pillars.items()}


@dataclass(frozen=True)
class Scaling:
    """One kind of scaling over several numbers of ranks.

    Arguments:
        mode: ``weak`` or ``strong``.
        points: fewest ranks first.
        limit: the pillar that accounts for most of what the most ranks lose to perfect scaling; None where next to
            nothing is lost.
        sentence: the same in words.
    """

    mode: str
    points: tuple[ScalePoint, ...]
    limit: str | None
    sentence: str


def scaling(mode: str, measured: Mapping[tuple[int, int], Sequence[StepTimes]]) -> Scaling:
    """Computes a study from its measurements.

    Arguments:
        mode: ``weak`` or ``strong``.
        measured: by (ranks, global batch) the repeats, as many of each and in the order in which they were made.

    Raises:
        ValueError: no measurements, or not as many of each.
    """
    if not measured or len({len(repeats) for repeats in measured.values()}) != 1:
        raise ValueError("a study needs as many repeats of each point, and at least one point")
    order = sorted(measured)
    base = order[0]
    rates = {key: np.array([each.samples_per_s for each in measured[key]]) for key in order}
    points: list[ScalePoint] = []
    for key in order:
        ranks, batch = key
        ratio = rates[key] / rates[base]
        pillars = _median_pillars(measured[key])
        ideal_factor = (batch / ranks) / (base[1] / base[0])  # of the work of a rank
        lost = (
            {name: pillars[name] - ideal_factor * points[0].pillars[name] for name in PILLARS}
            if points
            else {}
        )
        points.append(
            ScalePoint(
                ranks=ranks,
                batch=batch,
                samples_per_s=median_interval(rates[key].tolist()),
                step_s=float(np.median([each.step_s for each in measured[key]])),
                speed_up=median_interval(ratio.tolist()),
                efficiency=median_interval((ratio * base[0] / ranks).tolist()),
                pillars=pillars,
                comm_hidden=float(np.median([each.comm_hidden for each in measured[key]])),
                lost=lost,
            )
        )
    limit, sentence = _limit(mode, points)
    return Scaling(mode, tuple(points), limit, sentence)


def _median_pillars(repeats: Sequence[StepTimes]) -> dict[str, float]:
    return {name: float(np.median([each.pillars[name] for each in repeats])) for name in PILLARS}


def _limit(mode: str, points: Sequence[ScalePoint]) -> tuple[str | None, str]:
    first, last = points[0], points[-1]
    if first is last:
        return None, f"With {first.ranks} ranks alone there is nothing to compare."
    lost = sum(last.lost.values())
    step = sum(last.pillars.values())
    ideal = step - lost
    opening = f"{mode.capitalize()} scaling from {first.ranks} to {last.ranks} ranks"
    efficiency = f"{100 * last.efficiency.median:.0f} % efficient"
    if lost <= NEGLIGIBLE * ideal:
        return None, f"{opening} is {efficiency}: nothing limits it at this size."
    limit = max(PILLARS, key=lambda name: last.lost[name])
    return limit, (
        f"{opening} is {efficiency}. {_SUBJECT[limit]} accounts for {1e3 * last.lost[limit]:.3g} ms of the "
        f"{1e3 * lost:.3g} ms by which a step is longer than with perfect scaling ({1e3 * ideal:.3g} ms): {_CAUSE[limit]}."
    )
