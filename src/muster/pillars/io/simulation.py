"""Requests of the store under a rule for what is cached where, counted access by access.

The ranks use their samples in lockstep. A sample that some rank has cached costs the store nothing any more, whoever uses
it; a sample gets into a cache when its holder has it in hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from muster.pillars.io.access_order import Ids, Order
from muster.pillars.io.plan import NOBODY, count_accesses, place

_NEVER = np.iinfo(np.int64).max


def reads_covering_first(order: Order, epochs: int, sizes: Ids, capacities: Sequence[int]) -> int:
    """Requests of the store under this package's rule (`muster.pillars.io.plan`).

    Arguments:
        order: who uses what.
        epochs: how many, from 0 on.
        sizes: bytes of each sample, of shape ``(samples,)``.
        capacities: bytes that each rank can keep.
    """
    accesses = count_accesses(order, 0, range(epochs))
    held = place(accesses, sizes, capacities).holder != NOBODY
    # The first user hands a sample to its holder, so it is cached from its first use on.
    return _count_reads(order, epochs, np.where(held, accesses.first_turn, _NEVER))


def reads_by_own_frequency(order: Order, epochs: int, sizes: Ids, capacities: Sequence[int]) -> int:
    """Requests of the store under the rule of NoPFS.

    As we read Dryden et al. (SC '21, section 5): each worker fills its storage with the samples that it will itself access
    most often, ties in the order of its accesses, and fetches them in the order of its accesses. A sample that another
    worker has cached already is fetched from there. What no worker has cached yet is read from the store, and a worker
    that does not cache it keeps nothing.

    Arguments:
        order, epochs, sizes, capacities: as in `reads_covering_first`.
    """
    cached_from = np.full(order.samples, _NEVER, dtype=np.int64)
    for rank, capacity in enumerate(capacities):
        uses, first = _own_accesses(order, epochs, rank)
        wanted = np.flatnonzero(uses)
        wanted = wanted[np.lexsort((first[wanted], -uses[wanted]))]
        kept = wanted[: int(np.searchsorted(np.cumsum(sizes[wanted]), capacity, side="right"))]
        cached_from[kept] = np.minimum(cached_from[kept], first[kept])
    return _count_reads(order, epochs, cached_from)


def _own_accesses(order: Order, epochs: int, rank: int) -> tuple[Ids, Ids]:
    """How often a rank uses each sample, and the turn at which it does so first."""
    uses = np.zeros(order.samples, dtype=np.int64)
    first = np.full(order.samples, _NEVER, dtype=np.int64)
    before = 0
    for epoch in range(epochs):
        shares = order.shares(epoch)
        share = shares[rank]
        uses += np.bincount(share, minlength=order.samples)
        turns: npt.NDArray[np.int64] = (before + np.arange(len(share))) * order.world_size + rank
        here = np.full(order.samples, _NEVER, dtype=np.int64)
        here[share[::-1]] = turns[::-1]
        np.minimum(first, here, out=first)
        before += max(len(each) for each in shares)
    return uses, first


def _count_reads(order: Order, epochs: int, cached_from: Ids) -> int:
    """Accesses up to the one, itself included, that puts the sample into a cache."""
    reads = before = 0
    for epoch in range(epochs):
        shares = order.shares(epoch)
        for rank, share in enumerate(shares):
            turns = (before + np.arange(len(share))) * order.world_size + rank
            reads += int(np.count_nonzero(turns <= cached_from[share]))
        before += max(len(share) for share in shares)
    return reads
