"""Everything that a rank can read samples from without asking the store: its shelves, its staging area, its peers."""

from __future__ import annotations

import numpy as np

from muster.pillars.io.batches import Area, Form, Origin, Place
from muster.pillars.io.peers import Peer
from muster.pillars.io.plan import Placement, StorageClass
from muster.pillars.io.raw_samples import Buffer
from muster.pillars.io.shelf import Shelf, ShelfFiles
from muster.pillars.io.staging import StagingArea


class Holdings:
    """The places of samples, numbered so that worker processes know them too.

    Arguments:
        shelves: of this rank, memory first.
        staging: for samples on their way.
        peers: the other ranks.
        form: of the bytes on the shelves.
    """

    def __init__(
        self, shelves: list[Shelf], staging: StagingArea | None, peers: dict[int, Peer], form: Form
    ) -> None:
        self.shelves, self.staging, self.peers, self.form = shelves, staging, peers, form
        self.areas: list[Area] = list(shelves)
        if staging is not None:
            self._staging_area = len(self.areas)
            self.areas.append(staging)
        self._neighbours: dict[int, list[int]] = {}
        for rank, peer in peers.items():
            self._neighbours[rank] = []
            for shelf in peer.shelves:
                self._neighbours[rank].append(len(self.areas))
                self.areas.append(shelf)

    def find(self, index: int, holder: int) -> Place | None:
        """Where a sample is kept that can be read in place, here or by a neighbour."""
        for area, shelf in enumerate(self.shelves):
            found = shelf.where(index)
            if found is not None:
                memory = shelf.files.storage is StorageClass.MEMORY
                start, length, expected = found
                return Place(
                    self.form,
                    Origin.MEMORY if memory else Origin.DISK,
                    area,
                    start,
                    length,
                    None if memory else expected,
                )
        for area in self._neighbours.get(holder, ()):
            found = self.areas[area].where(index)  # type: ignore[attr-defined]
            if found is not None:
                return Place(self.form, Origin.PEER, area, *found)
        return None

    def keep(self, index: int, stored: Buffer, storage: StorageClass) -> bool:
        """Puts a sample on this rank's shelf of a storage class, or on the other; False, for all to see, without room."""
        ordered = sorted(self.shelves, key=lambda shelf: shelf.files.storage is not storage)
        kept = any(shelf.put(index, stored) for shelf in ordered)
        if not kept:
            self.refuse(index)
        return kept

    def refuse(self, index: int) -> None:
        """Lets everybody know that this rank will not keep a sample."""
        self.shelves[0].refuse(index)

    def refused(self, index: int, holder: int) -> bool:
        """Whether a sample's holder is known not to keep it."""
        peer = self.peers.get(holder)
        if peer is None:
            return self.shelves[0].refuses(index)
        return peer.refuses(index)

    def stage(self, stored: Buffer, form: Form, origin: Origin) -> Place:
        """Holds a sample until `release`."""
        if self.staging is not None:
            start = self.staging.put(stored)
            if start is not None:
                return Place(form, origin, self._staging_area, start, len(stored))
        return Place(form, origin, inline=stored, length=len(stored))

    def release(self, place: Place) -> None:
        """Makes the room of a staged sample free."""
        if self.staging is not None and place.area == self._staging_area:
            self.staging.give_back(place.start)

    def forget(self, index: int) -> None:
        """Takes a sample that turned out damaged off this rank's shelves."""
        for shelf in self.shelves:
            shelf.forget(index)

    def mapped_ranks(self, world_size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each rank whether its memory is mapped here, of shape ``(world_size,)``."""
        return np.array([bool(self._neighbours.get(rank)) for rank in range(world_size)])

    def shared(self) -> list[tuple[ShelfFiles | StagingArea, list[int]]]:
        """Every area and its descriptors, for processes that are to read them."""
        listed: list[tuple[ShelfFiles | StagingArea, list[int]]] = []
        for area in self.areas:
            if isinstance(area, StagingArea):
                listed.append((area, [area.descriptor]))
            else:
                files = area.files  # type: ignore[attr-defined]
                listed.append((files, [files.data, files.index]))
        return listed


def storage_of(placement: Placement, index: int) -> StorageClass:
    """In which storage class the plan puts a sample."""
    return StorageClass(int(placement.storage[index]))
