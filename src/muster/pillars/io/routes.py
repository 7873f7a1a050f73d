"""How each access of a rank gets its sample, given who keeps what: the plan turned into work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from muster.pillars.io.access_order import Ids, Order
from muster.pillars.io.plan import NOBODY, Accesses, Placement


class Route(IntEnum):
    """Where an access finds its sample, or how it gets there."""

    OWN = 0  # this rank keeps it, and it will be there
    KEEP = 1  # first use in the job: read the store, keep it
    PASS = 2  # first use in the job: read the store, give it to its holder
    ONCE = 3  # kept nowhere: read the store, use it, drop it
    NEIGHBOUR = 4  # kept by a rank whose memory is mapped here
    REMOTE = 5  # kept by a rank on another machine: ask for it


READS_THE_STORE = (Route.KEEP, Route.PASS, Route.ONCE)


class Job(NamedTuple):
    """A sample that must be fetched for an access.

    Arguments:
        key: epoch, and position in the rank's share of it.
        index: of the sample.
        route: how.
        holder: who keeps it.
    """

    key: tuple[int, int]
    index: int  # type: ignore[assignment] # the word of the field; tuple.index is of no use here
    route: Route
    holder: int


@dataclass(frozen=True)
class EpochAccesses:
    """One rank's accesses in one epoch, or other stretch of its order.

    Arguments:
        ids, routes, holders: of each access, of shape ``(accesses,)``.
        epochs: those of the data set that the accesses belong to, of shape ``(accesses,)``.
        ends: where its batches end, rising, of shape ``(batches,)``.
    """

    ids: Ids
    routes: npt.NDArray[np.uint8]
    holders: npt.NDArray[np.int32]
    epochs: Ids
    ends: Ids

    def end_of_batch(self, offset: int) -> int:
        """Where the batch ends that begins at ``offset``."""
        return int(self.ends[np.searchsorted(self.ends, offset, side="right")])


class RankAccesses:
    """One rank's accesses from some position on, epoch by epoch; several threads go through them at their own pace.

    Arguments:
        order: who uses what.
        placement: who keeps what.
        accesses: counted over the same epochs from the same position.
        rank: whose accesses.
        mapped: for each rank whether its memory is mapped here, of shape ``(ranks,)``.
        epochs: those that are left.
        position: where the first of them begins.
    """

    def __init__(
        self,
        order: Order,
        placement: Placement,
        accesses: Accesses,
        rank: int,
        mapped: npt.NDArray[np.bool_],
        epochs: range,
        position: int,
    ) -> None:
        self.order, self.epochs, self.position = order, epochs, position
        self._placement, self._accesses, self._rank, self._mapped = placement, accesses, rank, mapped
        self._known: dict[int, EpochAccesses] = {}
        self._turns_before = {epochs.start: 0}
        self._lock = threading.Lock()

    def of(self, epoch: int) -> EpochAccesses:
        """The accesses of one epoch."""
        with self._lock:
            if epoch not in self._known:
                self._known[epoch] = self._work_out(epoch)
                while len(self._known) > 4:  # readers are at most a few epochs apart
                    del self._known[next(iter(self._known))]
            return self._known[epoch]

    def jobs(self, routes: tuple[Route, ...], holder: int | None = None) -> Iterator[Job]:
        """All accesses that take one of these routes, in order; of one holder, or of all."""
        for epoch in self.epochs:
            there = self.of(epoch)
            wanted = np.isin(there.routes, routes)
            if holder is not None:
                wanted &= there.holders == holder
            for offset in np.flatnonzero(wanted).tolist():
                yield Job(
                    (epoch, offset),
                    int(there.ids[offset]),
                    Route(there.routes[offset]),
                    int(there.holders[offset]),
                )

    def _work_out(self, epoch: int) -> EpochAccesses:
        position = self.position if epoch == self.epochs.start else 0
        ids = self.order.share(epoch, self._rank, position)
        holders = self._placement.holder[ids]
        turns = (self._before(epoch) + np.arange(len(ids))) * self.order.world_size + self._rank
        first = self._accesses.first_turn[ids] == turns
        nobody, own = holders == NOBODY, holders == self._rank
        mapped = self._mapped[holders]  # for NOBODY the last rank's, which is then not looked at
        routes = np.select(
            [nobody, own & first, own, first, mapped],
            [Route.ONCE, Route.KEEP, Route.OWN, Route.PASS, Route.NEIGHBOUR],
            Route.REMOTE,
        ).astype(np.uint8)
        return EpochAccesses(
            ids,
            routes,
            holders,
            self.order.epochs_of(epoch, self._rank, position),
            self.order.batch_ends(epoch, self._rank, position),
        )

    def _before(self, epoch: int) -> int:
        """Turns of all epochs before; the longest share counts, as in `count_accesses`."""
        begun = max(known for known in self._turns_before if known <= epoch)
        turns = self._turns_before[begun]
        for earlier in range(begun, epoch):
            position = self.position if earlier == self.epochs.start else 0
            turns += self.order.longest_share(position)
            self._turns_before[earlier + 1] = turns
        return turns
