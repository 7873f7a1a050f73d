"""Where the ranks' time went, and what the most is that removing one kind of it would gain.

The bounds are Amdahl's (AFIPS 1967): time that is not removed still has to be spent. Ranks that wait for each
other blur whose time that is, since a slow loader on one rank is `idle` on all the others; removing a pillar
is therefore granted to take all idle time with it, and what remains is the work of the busiest rank. Each
bound holds for the recorded times; that a pillar's removal may slow or speed the others (memory bandwidth,
cache) is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from muster.report._columns import Columns, Floats, Integers

PILLARS: Final = ("io", "compute", "comm", "idle")

_SUBJECT: Final = {
    "io": "Waiting for data",
    "compute": "Compute",
    "comm": "Communication",
    "idle": "Idle time",
}
_REMOVAL: Final = {
    "io": "If data were always there",
    "comm": "If communication took no time",
    "idle": "With perfectly even ranks and no stalls",
}


@dataclass(frozen=True)
class RankTime:
    """Seconds that one rank spent in the steps that survive; the four pillars sum to ``wall``.

    Arguments:
        rank: the rank.
        wall: all of it.
        io: waiting for a batch.
        compute: all else.
        comm: blocked in a collective that the last rank had entered.
        idle: blocked before that, and in stalls.
        comm_hidden: a collective was in flight while the rank computed; part of ``compute``.
        stall: part of ``idle`` spent in checkpoints and evaluation.
        samples: how many the rank processed.
    """

    rank: int
    wall: float
    io: float
    compute: float
    comm: float
    idle: float
    comm_hidden: float
    stall: float
    samples: int


def time_per_rank(steps: Columns) -> tuple[RankTime, ...]:
    """Sums rows of `steps` over each rank, in order of rank.

    Arguments:
        steps: columns of the table, [rows] each.
    """
    ranks, position = np.unique(steps["rank"], return_inverse=True)

    def total(column: str) -> Floats:
        weights = np.nan_to_num(steps[column].astype(np.float64))
        return np.bincount(position, weights=weights, minlength=ranks.size).astype(np.float64)

    sums = {name: total(name) for name in ("wall", *PILLARS, "comm_hidden", "stall", "samples")}
    return tuple(
        RankTime(
            rank=int(rank),
            samples=int(sums["samples"][place]),
            **{name: float(values[place]) for name, values in sums.items() if name != "samples"},
        )
        for place, rank in enumerate(ranks)
    )


def shares(ranks: tuple[RankTime, ...]) -> dict[str, float]:
    """Each pillar's share of all rank time, 0 to 1; empty where no time is recorded."""
    wall = sum(rank.wall for rank in ranks)
    return {name: sum(getattr(rank, name) for rank in ranks) / wall for name in PILLARS} if wall > 0 else {}


def step_seconds(segment: Integers, rank: Integers, wall: Floats) -> float:
    """How long the steps of a run took: the longest rank of each segment, summed over the segments.

    Arguments:
        segment: [rows], constant while the same ranks work in lockstep (one attempt).
        rank: [rows].
        wall: [rows], seconds.
    """
    return _busiest(segment, rank, wall)


def gain_bounds(segment: Integers, rank: Integers, pillars: dict[str, Floats]) -> dict[str, float]:
    """By what factor the steps would be faster at most if one pillar were gone.

    Of `io`, `compute` and `comm`: T / max_r (b_r - x_r), with b_r the seconds that rank r was not idle and
    x_r those of the pillar. Of `idle`: T / mean_r b_r, as if work could be dealt out evenly. T and the
    denominators are summed over segments, since a restart is a barrier. With ranks alike this is wall / (wall
    - x), x being the pillar and the idle time that it may have caused.

    Arguments:
        segment: [rows], constant while the same ranks work in lockstep (one attempt).
        rank: [rows].
        pillars: `PILLARS`, [rows] each, seconds.

    Returns:
        A factor of at least 1 for each pillar, ``inf`` where nothing else was recorded; empty without rows.
    """
    if rank.size == 0:
        return {}
    io, compute, comm, idle = (np.nan_to_num(pillars[name]) for name in PILLARS)
    busy = io + compute + comm
    now = _busiest(segment, rank, busy + idle)
    least = {
        "io": _busiest(segment, rank, compute + comm),
        "compute": _busiest(segment, rank, io + comm),
        "comm": _busiest(segment, rank, io + compute),
        "idle": _evenly(segment, rank, busy),
    }
    return {name: _ratio(now, least[name]) for name in PILLARS}


def compute_only_bound(segment: Integers, rank: Integers, wall: Floats, compute: Floats) -> float:
    """By what factor the steps would be faster at most if they were compute alone, evenly dealt out.

    Arguments:
        segment: [rows], constant while the same ranks work in lockstep (one attempt).
        rank: [rows].
        wall: [rows], seconds.
        compute: [rows], seconds.

    Returns:
        A factor of at least 1; 1 without rows.
    """
    if rank.size == 0:
        return 1.0
    return _ratio(_busiest(segment, rank, wall), _evenly(segment, rank, np.nan_to_num(compute)))


def limit_sentence(share: dict[str, float], gains: dict[str, float], compute_only: float) -> str:
    """Says which pillar limits the run and what removing it would gain at most.

    Arguments:
        share: from `shares`.
        gains: from `gain_bounds`.
        compute_only: from `compute_only_bound`.
    """
    if not share:
        return "No step has been recorded yet, so nothing can be said about what limits this run."
    limit = max(PILLARS, key=lambda name: share[name])
    opening = f"{_SUBJECT[limit]} limits this run: {share[limit] * 100:.0f} % of rank time."
    if limit == "compute":
        return (
            f"{opening} Without any communication, idle time or waiting for data "
            f"it would be {_at_most(compute_only)}."
        )
    return f"{opening} {_REMOVAL[limit]}, it would be {_at_most(gains[limit])}."


def _at_most(factor: float) -> str:
    return f"at most {factor:.2f} × as fast" if np.isfinite(factor) else "faster by an unknown factor"


def _ratio(now: float, least: float) -> float:
    return now / least if least > 0 else float("inf")


def _seconds_by_rank(segment: Integers, rank: Integers, seconds: Floats) -> list[Floats]:
    """For each segment the seconds of its ranks, [ranks of the segment]."""
    found = []
    for each in np.unique(segment):
        inside = segment == each
        _, position = np.unique(rank[inside], return_inverse=True)
        found.append(np.bincount(position, weights=np.nan_to_num(seconds[inside])).astype(np.float64))
    return found


def _busiest(segment: Integers, rank: Integers, seconds: Floats) -> float:
    return float(sum(by_rank.max() for by_rank in _seconds_by_rank(segment, rank, seconds)))


def _evenly(segment: Integers, rank: Integers, seconds: Floats) -> float:
    return float(sum(by_rank.mean() for by_rank in _seconds_by_rank(segment, rank, seconds)))
