"""Which collective a rank waited for, second by second; pure arithmetic on the tables of a run folder.

docs/profile.md has the definitions. In short: a rank's *blocked time* in a step is ``comm`` plus ``idle`` without its
``stall``, and it ends when the step's last collective ends. Collectives are carried out in the order in which they end, so
each moment is spent on the next one to end; the others in flight queue behind it. That gives every moment to one collective,
and sums over collectives are the columns of `steps`. Splitting blocked time into exposed and hidden communication follows
hvprof (Anthony, Awan, Subramoni and Panda, IPDPSW 2021), which sorts by message size what a profiler sees of collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Costs:
    """What each collective cost the rank that took part in it; all of shape [collectives], in seconds.

    Arguments:
        exposed: the rank was blocked by it after the last rank had entered; sums to ``comm`` of the step.
        waited: the rank was blocked by it before that; sums to ``idle - stall`` of the step.
        hidden: it was being carried out while the rank computed; sums to ``comm_hidden`` of the step.
        service: it was being carried out, whatever the rank did: all ranks had entered it, and none that ends before it
            was still under way.
    """

    exposed: Floats
    waited: Floats
    hidden: Floats
    service: Floats


def collective_costs(steps: Columns, collectives: Columns) -> Costs:
    """Gives every blocked and every hidden moment to one collective.

    Arguments:
        steps: columns of `steps`, one row per (attempt, rank, step): ``comm``, ``idle``, ``stall`` in seconds.
        collectives: columns of `collectives`, [collectives] each: ``enter``, ``last_enter``, ``end`` in seconds.

    Returns:
        In the order of the rows of ``collectives``. A step without collectives has no blocked time to give.
    """
    count = collectives["end"].size
    costs = Costs(*(np.zeros(count) for _ in range(4)))
    blocked = {
        key: (comm, idle - stall)
        for key, comm, idle, stall in zip(
            _keys(steps), steps["comm"], steps["idle"], np.nan_to_num(steps["stall"]), strict=True
        )
    }
    for key, rows in _grouped(_keys(collectives)):
        comm, waiting = blocked.get(key, (0.0, 0.0))
        order = rows[np.argsort(collectives["end"][rows], kind="stable")]
        ends = collectives["end"][order]
        begins = np.maximum(collectives["enter"][order], collectives["last_enter"][order])
        previous = np.concatenate([[-np.inf], ends[:-1]])
        # The rank waits until the last collective ends; first for the last rank, then for the network.
        turn, blocked_from = ends[-1] - comm, ends[-1] - comm - waiting
        costs.exposed[order] = _overlap(previous, ends, turn, ends[-1])
        costs.waited[order] = _overlap(previous, ends, blocked_from, turn)
        costs.service[order], costs.hidden[order] = _carried_out(begins, ends, blocked_from)
    return costs


def _carried_out(begins: Floats, ends: Floats, blocked_from: float) -> tuple[Floats, Floats]:
    """For how long each collective was the first to end of those in flight, in all and before ``blocked_from``.

    Arguments:
        begins: when all ranks had entered, [collectives].
        ends: in rising order, [collectives].
    """
    marks = np.unique(np.concatenate([begins, ends, [np.clip(blocked_from, begins.min(), ends[-1])]]))
    middle, length = (marks[1:] + marks[:-1]) / 2, np.diff(marks)
    in_flight = (begins[:, None] < middle) & (middle < ends[:, None])
    first, some = in_flight.argmax(axis=0), in_flight.any(axis=0)
    early = some & (middle < blocked_from)
    count = ends.size
    every, before = (
        np.bincount(first[chosen], weights=length[chosen], minlength=count).astype(np.float64)
        for chosen in (some, early)
    )
    return every, before


def _overlap(begin: Floats, end: Floats, low: float, high: float) -> Floats:
    """Length of what each [begin, end] has in common with [low, high]."""
    return np.asarray(np.maximum(np.minimum(end, high) - np.maximum(begin, low), 0.0))


def _keys(columns: Columns) -> list[tuple[int, int, int]]:
    return list(
        zip(columns["attempt"].tolist(), columns["rank"].tolist(), columns["step"].tolist(), strict=True)
    )


def _grouped(
    keys: list[tuple[int, int, int]],
) -> Iterator[tuple[tuple[int, int, int], npt.NDArray[np.int64]]]:
    places: dict[tuple[int, int, int], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    for key, rows in places.items():
        yield key, np.array(rows, dtype=np.int64)
