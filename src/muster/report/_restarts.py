"""What restarts cost: the time between attempts and the steps that were done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from muster.report._columns import Columns, survives

#: Kinds of events that say why an attempt ended or another one began.
CAUSES: Final = (
    "rank_lost",
    "rank_failed",
    "rank_hung",
    "engine_lost",
    "preempted",
    "stopped",
    "shrunk",
    "grown",
)


@dataclass(frozen=True)
class AttemptCost:
    """One attempt, as far as it recorded steps. Times are seconds on the run-wide clock.

    Arguments:
        attempt: 0 for the first start.
        world_size: ranks, of its last step.
        first_step: the first step it did.
        last_step: the last step of which a row is left; a kill may take rows of the last second with it.
        start: when its first step began.
        end: when its last recorded step ended.
        gap_before_s: seconds since the attempt before it recorded its last step; since zero for the first.
        redone_steps: how many of its steps a later attempt did again.
        redone_s: seconds it spent in those, the mean over its ranks.
        causes: kinds of events that explain why it began.
    """

    attempt: int
    world_size: int
    first_step: int
    last_step: int
    start: float
    end: float
    gap_before_s: float
    redone_steps: int
    redone_s: float
    causes: tuple[str, ...]


def attempt_costs(steps: Columns, events: Sequence[dict[str, Any]] = ()) -> tuple[AttemptCost, ...]:
    """What each attempt did and what of it was lost.

    Arguments:
        steps: columns of the whole table, superseded rows too, [rows] each.
        events: rows of `events`.
    """
    kept = survives(steps["step"], steps["attempt"])
    found: list[AttemptCost] = []
    before = 0.0
    for attempt in np.unique(steps["attempt"]):
        mine = steps["attempt"] == attempt
        lost = mine & ~kept
        start = float(np.nanmin(steps["start"][mine]))
        end = float(np.nanmax(steps["start"][mine] + steps["wall"][mine]))
        ranks = np.unique(steps["rank"][mine]).size
        last = int(steps["step"][mine].max())
        found.append(
            AttemptCost(
                attempt=int(attempt),
                world_size=int(steps["world_size"][mine & (steps["step"] == last)].max()) or ranks,
                first_step=int(steps["step"][mine].min()),
                last_step=last,
                start=start,
                end=end,
                gap_before_s=start - before,
                redone_steps=np.unique(steps["step"][lost]).size,
                redone_s=float(np.nansum(steps["wall"][lost])) / ranks,
                causes=_causes(events, before, start) if found else (),
            )
        )
        before = end
    return tuple(found)


def _causes(events: Sequence[dict[str, Any]], after: float, until: float) -> tuple[str, ...]:
    kinds = [
        row["kind"] for row in events if after <= (row["time"] or 0.0) <= until and row["kind"] in CAUSES
    ]
    return tuple(dict.fromkeys(kinds))


@dataclass(frozen=True)
class Elapsed:
    """Where the seconds from the creation of the run to its last record went; the parts sum to ``total``.

    Arguments:
        total: all of it.
        start_up: until the first step began.
        steps: in steps that survive.
        redone: in steps that were done again.
        between_attempts: from an attempt's last recorded step to the next one's first.
        after: after the last step: export, pictures, shutting down.
    """

    total: float
    start_up: float
    steps: float
    redone: float
    between_attempts: float
    after: float


def elapsed(costs: Sequence[AttemptCost], last_record: float) -> Elapsed:
    """Cuts the time of a run.

    Arguments:
        costs: from `attempt_costs`.
        last_record: the time of the last event, seconds on the run-wide clock.
    """
    if not costs:
        return Elapsed(last_record, last_record, 0.0, 0.0, 0.0, 0.0)
    total = max(last_record, costs[-1].end)
    redone = sum(cost.redone_s for cost in costs)
    working = sum(cost.end - cost.start for cost in costs)
    return Elapsed(
        total=total,
        start_up=costs[0].gap_before_s,
        steps=working - redone,
        redone=redone,
        between_attempts=sum(cost.gap_before_s for cost in costs[1:]),
        after=total - costs[-1].end,
    )
