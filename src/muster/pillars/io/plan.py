"""Where every sample is kept: which rank's memory or disk, planned from the accesses of all epochs.

*Cover first, replicate by frequency after.* Each sample that is used more than once and fits somewhere is kept by exactly
one rank, the one that uses it first, so that the first use's read of the store fills the cache and no byte is moved for
it; what does not fit there goes to any rank with room. Only room that is then left holds second copies, of what a rank
uses most often itself. A rule that looks at a rank's own frequencies alone (Dryden et al., "Clairvoyant Prefetching for
Distributed Machine Learning I/O", SC '21) keeps some samples several times and others nowhere; see `simulation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from muster.pillars.io.access_order import Ids, Order

NOBODY = -1
HORIZON = 256
"""Epochs that a plan looks at: what comes after them decides nothing more, and takes time to count."""


class StorageClass(IntEnum):
    """Where a sample is kept, the fastest first."""

    MEMORY = 0
    DISK = 1


@dataclass(frozen=True)
class Accesses:
    """Who uses what how often, over the epochs that are left.

    Arguments:
        uses: by all ranks together, of shape ``(samples,)``.
        own_uses: by one rank, of shape ``(samples,)``.
        first_user: the rank that uses a sample first, or ``NOBODY``, of shape ``(samples,)``.
        first_turn: when: ``world_size`` times the number of samples that the rank has used before, plus the rank; of shape
            ``(samples,)``.
    """

    uses: Ids
    own_uses: Ids
    first_user: npt.NDArray[np.int32]
    first_turn: Ids


def count_accesses(
    order: Order, rank: int, epochs: range, position: int = 0, *, alone: bool = False
) -> Accesses:
    """Goes through the epochs once, `HORIZON` of them at most; one at a time is held in memory.

    Arguments:
        order: who uses what.
        rank: whose own uses to count.
        epochs: those that are left.
        position: how much of the first of them has been used already.
        alone: count this rank's accesses only, since it cannot reach the others.
    """
    never = np.iinfo(np.int64).max
    uses = np.zeros(order.samples, dtype=np.int64)
    own_uses = np.zeros(order.samples, dtype=np.int64)
    first_turn = np.full(order.samples, never, dtype=np.int64)
    turns_before = 0
    for epoch in epochs[:HORIZON]:
        shares = order.shares(epoch, position if epoch == epochs.start else 0)
        users = [rank] if alone else range(order.world_size)
        for user in users:
            share = shares[user]
            counted = np.bincount(share, minlength=order.samples)
            uses += counted
            if user == rank:
                own_uses += counted
        if turns_before == 0 or (first_turn == never).any():
            for user in users:
                share = shares[user]
                turns = (turns_before + np.arange(len(share))) * order.world_size + user
                # Written backwards, so that the first of several uses stays.
                of_this_user = np.full(order.samples, never, dtype=np.int64)
                of_this_user[share[::-1]] = turns[::-1]
                np.minimum(first_turn, of_this_user, out=first_turn)
        turns_before += max(len(share) for share in shares)
    first_user = np.where(uses > 0, first_turn % order.world_size, NOBODY).astype(np.int32)
    return Accesses(uses, own_uses, first_user, first_turn)


@dataclass(frozen=True)
class Placement:
    """Who keeps what.

    Arguments:
        holder: the rank that keeps a sample, or ``NOBODY``, of shape ``(samples,)``.
        storage: in which `StorageClass`, where somebody does, of shape ``(samples,)``.
        free: bytes left, of shape ``(ranks, storage classes)``.
    """

    holder: npt.NDArray[np.int32]
    storage: npt.NDArray[np.uint8]
    free: Ids

    def store_reads(self, accesses: Accesses) -> int:
        """The plan's bound: requests of the store over all epochs by the whole job, when nothing goes wrong."""
        return int(self._reads_of_each(accesses).sum())

    def store_bytes(self, accesses: Accesses, sizes: Ids) -> int:
        """The same in bytes."""
        return int((self._reads_of_each(accesses) * sizes).sum())

    def _reads_of_each(self, accesses: Accesses) -> Ids:
        return np.where(self.holder != NOBODY, np.minimum(accesses.uses, 1), accesses.uses)


def place(
    accesses: Accesses, sizes: Ids, memory_bytes: Sequence[int], disk_bytes: Sequence[int] | None = None
) -> Placement:
    """Covers as many samples as fit.

    Arguments:
        accesses: of all epochs that are left.
        sizes: bytes of each sample, of shape ``(samples,)``.
        memory_bytes, disk_bytes: what each rank can keep.
    """
    ranks = len(memory_bytes)
    free = np.array([memory_bytes, disk_bytes or [0] * ranks], dtype=np.int64).T.copy()
    holder = np.full(len(sizes), NOBODY, dtype=np.int32)
    storage = np.zeros(len(sizes), dtype=np.uint8)

    def keep(rank: int, kind: StorageClass, samples: Ids) -> None:
        holder[samples], storage[samples] = rank, kind
        free[rank, kind] -= int(sizes[samples].sum())

    left = np.flatnonzero(accesses.uses >= 2)  # what is used once is never read again
    left = left[np.lexsort((accesses.first_turn[left], -accesses.uses[left]))]
    for kind in StorageClass:
        for rank in np.flatnonzero(free[:, kind] > 0).tolist():
            keep(rank, kind, _fitting(left[accesses.first_user[left] == rank], sizes, free[rank, kind]))
        left = left[holder[left] == NOBODY]
        for rank in np.argsort(-free[:, kind], kind="stable").tolist():
            if not len(left) or free[rank, kind] <= 0:
                break
            keep(rank, kind, _fitting(left, sizes, free[rank, kind]))
            left = left[holder[left] == NOBODY]
    return Placement(holder, storage, free)


def replicas(
    placement: Placement, accesses: Accesses, sizes: Ids, rank: int, machines: Sequence[str]
) -> tuple[Ids, Ids]:
    """Second copies that a rank keeps in the room it has left: what it uses most often itself.

    Ranks of one machine map each other's memory, so of what one of them holds the others need no copy.

    Arguments:
        machines: the machine of each rank.

    Returns:
        Samples for its memory and samples for its disk.
    """
    same = np.array([machine == machines[rank] for machine in machines])
    away = (placement.holder != NOBODY) & ~same[placement.holder] & (accesses.own_uses >= 2)
    wanted = np.flatnonzero(away)
    wanted = wanted[np.argsort(-accesses.own_uses[wanted], kind="stable")]
    in_memory = _fitting(wanted, sizes, placement.free[rank, StorageClass.MEMORY])
    rest = wanted[~np.isin(wanted, in_memory)]
    return in_memory, _fitting(rest, sizes, placement.free[rank, StorageClass.DISK])


def _fitting(candidates: Ids, sizes: Ids, room: int) -> Ids:
    """As many of the candidates as fit: in their order up to the first that does not, then the smallest of the rest."""
    ends = np.cumsum(sizes[candidates])
    count = int(np.searchsorted(ends, room, side="right"))
    taken, rest = candidates[:count], candidates[count:]
    room -= int(ends[count - 1]) if count else 0
    rest = rest[sizes[rest] <= room]
    if not len(rest):
        return taken
    smallest = rest[np.argsort(sizes[rest], kind="stable")]
    more = int(np.searchsorted(np.cumsum(sizes[smallest]), room, side="right"))
    return np.concatenate([taken, smallest[:more]])


@dataclass(frozen=True)
class Speeds:
    """Measured rates of one rank, in bytes per second; ``consumed`` is what its model uses."""

    store: float
    peers: float
    consumed: float


def epoch_is_feasible(from_store: float, from_peers: float, total: float, speeds: Speeds) -> bool:
    """Whether an epoch's input can keep up with the model: each source delivers its part while the model computes.

    Arguments:
        from_store, from_peers: bytes that a rank gets from there in the epoch.
        total: bytes that it uses in the epoch.
    """
    compute_s = total / speeds.consumed
    return from_store / speeds.store <= compute_s and from_peers / speeds.peers <= compute_s
