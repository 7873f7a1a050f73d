"""Which gradients travel together: the bucket layout that ends first, by dynamic programming.

Gradients become ready one after the other during the backward pass. A bucket may leave when its last gradient is ready and
the bucket before it has arrived: the link is serial. Bucket ``k``, made of gradients ``i..j-1``, so ends at

    end(k) = max(ready(j-1), end(k-1)) + cost(i, j)

Few large buckets wait for their gradients, many small ones pay the latency again and again. A later end of bucket ``k-1``
never makes bucket ``k`` end earlier, so the best layout of the first ``j`` gradients extends a best layout of the first
``i``, and Bellman's recursion over ``j`` finds the earliest end in O(n^2) evaluations of the cost, whatever the cost is.

**Large tensors are not split, because on a serial link that cannot help.** Let a tensor, ready at ``r``, be cut between
bucket ``k`` and bucket ``k+1``, which gets ``d`` of its bytes, and let the cost of a bucket be ``alpha + beta n``. Move those
``d`` bytes into bucket ``k``: it was not allowed to leave before ``r`` anyway, so it ends ``beta d`` later; bucket ``k+1``
takes ``beta d`` less. Its end, ``max(end(k) + beta d, ready) + cost - beta d``, is at most the former
``max(end(k), ready) + cost``; and if nothing else was in it, an ``alpha`` is saved. By induction some layout without cuts
is as good as any with cuts. The argument holds for every cost whose marginal seconds per byte are no higher in the earlier
bucket. Where large messages really are slower per byte than medium ones (a cache is exceeded), it is the exchange that
should send one bucket in pieces, not the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Cost = Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float64]]
"""Seconds of the buckets ``starts[0]..stop-1``, ``starts[1]..stop-1`` and so on: one for each of ``starts``."""


@dataclass(frozen=True)
class Flight:
    """A bucket on its way, predicted; seconds on the clock of the ready times.

    Arguments:
        first, stop: the gradients ``first..stop-1``, in the order in which they become ready.
        ready: when the last of them is.
        start, end: when the bucket leaves and when it has arrived.
    """

    first: int
    stop: int
    ready: float
    start: float
    end: float


def cost_by_bytes(
    sizes: Sequence[float], seconds: Callable[[npt.NDArray[np.float64]], npt.ArrayLike]
) -> Cost:
    """A cost that depends on a bucket's bytes alone.

    Arguments:
        sizes: bytes of each gradient.
        seconds: of buckets of so many bytes, for an array of them.
    """
    offsets = np.concatenate([[0.0], np.cumsum(np.asarray(sizes, dtype=np.float64))])

    def cost(starts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.float64]:
        return np.asarray(seconds(offsets[stop] - offsets[starts]), dtype=np.float64)

    return cost


def plan_layout(ready_s: Sequence[float], cost: Cost, *, slack: float = 0.0) -> list[int]:
    """The layout whose last bucket ends first.

    Arguments:
        ready_s: when each gradient is ready, seconds on any clock, not falling.
        cost: of a bucket.
        slack: prefers fewer buckets if that lengthens the exchange, counted from the first gradient, by no more than this
            share.

    Returns:
        Where buckets end: rising positions, the last one ``len(ready_s)``; bucket ``k`` is ``ends[k-1]..ends[k]-1``.

    Raises:
        ValueError: no gradients, or times that fall.
    """
    ready = np.asarray(ready_s, dtype=np.float64)
    count = len(ready)
    if count == 0:
        raise ValueError("a layout needs at least one gradient")
    if np.any(np.diff(ready) < 0):
        raise ValueError("gradients must come in the order in which they become ready")
    earliest = np.full(count + 1, -np.inf)  # end of the best layout of the first j gradients
    best = np.zeros(count + 1, dtype=np.int64)
    costs: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    for stop in range(1, count + 1):
        costs.append(cost(np.arange(stop), stop))
        ends = np.maximum(earliest[:stop], ready[stop - 1]) + costs[stop]
        best[stop] = int(np.argmin(ends))
        earliest[stop] = ends[best[stop]]
    if slack <= 0:
        return _walk(count, lambda stop, _: int(best[stop]), costs)
    # From the back: as large a bucket as still lets the rest arrive in time.
    deadline = earliest[count] + slack * (earliest[count] - ready[0])

    def largest(stop: int, latest_end: float) -> int:
        leave = latest_end - costs[stop] + 1e-12 * abs(latest_end)
        fits = np.flatnonzero((earliest[:stop] <= leave) & (ready[stop - 1] <= leave))
        return int(fits[0]) if len(fits) else int(best[stop])

    return _walk(count, largest, costs, deadline)


def _walk(
    count: int,
    choose: Callable[[int, float], int],
    costs: list[npt.NDArray[np.float64]],
    deadline: float = np.inf,
) -> list[int]:
    ends, stop = [], count
    while stop > 0:
        ends.append(stop)
        start = choose(stop, deadline)
        deadline -= costs[stop][start]
        stop = start
    return ends[::-1]


def fly(ready_s: Sequence[float], ends: Sequence[int], cost: Cost) -> list[Flight]:
    """The buckets of a layout on a serial link, one after the other.

    Arguments:
        ready_s: as for `plan_layout`.
        ends: a layout, as `plan_layout` returns it.
        cost: of a bucket.
    """
    flights: list[Flight] = []
    first, free = 0, -np.inf
    for stop in ends:
        ready = float(max(ready_s[first:stop]))
        start = max(ready, free)
        free = start + float(cost(np.array([first]), stop)[0])
        flights.append(Flight(first, stop, ready, start, free))
        first = stop
    return flights


def capped_layout(sizes: Sequence[float], caps: Sequence[float]) -> list[int]:
    """The layout by size limits, as DistributedDataParallel makes it: a bucket is full once it has reached its limit.

    Arguments:
        sizes: bytes of each gradient, in the order in which they become ready.
        caps: limit of the first bucket, of the second and so on; the last one is that of all further buckets.
    """
    ends: list[int] = []
    filled = 0.0
    for position, size in enumerate(sizes):
        filled += size
        if filled >= caps[min(len(ends), len(caps) - 1)]:
            ends.append(position + 1)
            filled = 0.0
    if not ends or ends[-1] != len(sizes):
        ends.append(len(sizes))
    return ends


def merged(ready_s: Sequence[float], sizes: Sequence[float], at_most: int) -> list[int]:
    """Joins neighbours until at most so many groups are left, so that a plan over thousands of gradients stays cheap.

    Of all neighbours those are joined whose joining makes bytes wait least: the bytes of the earlier, times how much later
    the other one is ready.

    Returns:
        Where groups end, as of a layout.
    """
    groups = [
        [float(ready), float(size), position + 1]
        for position, (ready, size) in enumerate(zip(ready_s, sizes, strict=True))
    ]
    while len(groups) > at_most:
        waits = [(after[0] - before[0]) * before[1] for before, after in pairwise(groups)]
        # A share of the cheapest joins at once keeps this near O(n log n); never two that touch.
        order = np.argsort(waits, kind="stable")
        wanted = max(1, min(len(groups) - at_most, len(groups) // 4))
        taken: set[int] = set()
        for index in order:
            if len(taken) == wanted:
                break
            if not {int(index) - 1, int(index) + 1} & taken:
                taken.add(int(index))
        joined: list[list[float]] = []
        skip = False
        for index, group in enumerate(groups):
            if skip:
                skip = False
                continue
            if index in taken:
                after = groups[index + 1]
                joined.append([after[0], group[1] + after[1], after[2]])
                skip = True
            else:
                joined.append(group)
        groups = joined
    return [int(group[2]) for group in groups]
