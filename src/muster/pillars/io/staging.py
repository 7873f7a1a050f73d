"""Room for samples on their way: bytes that are used once and then make room for others."""

from __future__ import annotations

import mmap
import os
import threading

import numpy as np

from muster.pillars.io.batches import Place
from muster.pillars.io.raw_samples import Buffer


class StagingArea:
    """Anonymous shared memory from which pieces are taken and given back; worker processes map it.

    Arguments:
        capacity: bytes.
        descriptor: of another process's area, to read it; None: make one.
    """

    def __init__(self, capacity: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("muster-staging")
            os.ftruncate(descriptor, capacity)
        self.descriptor = descriptor
        self.capacity = capacity
        self._view = memoryview(mmap.mmap(self.descriptor, capacity))
        self._free = {0: capacity}  # start: length, in ascending order of start
        self._taken: dict[int, int] = {}
        self._lock = threading.Lock()

    def put(self, stored: Buffer) -> int | None:
        """Copies bytes in; returns where they start, or None if there is no gap of that size."""
        length = max(1, len(stored))
        with self._lock:
            start = next((start for start, gap in self._free.items() if gap >= length), None)
            if start is None:
                return None
            gap = self._free.pop(start)
            if gap > length:
                self._free[start + length] = gap - length
                self._free = dict(sorted(self._free.items()))
            self._taken[start] = length
        np.frombuffer(self._view, np.uint8, len(stored), start)[:] = np.frombuffer(stored, np.uint8)
        return start

    def read(self, place: Place) -> memoryview | None:
        """The bytes at a place, without a copy."""
        return self._view[place.start : place.start + place.length]

    def give_back(self, start: int) -> None:
        """Makes the room at ``start`` free again."""
        with self._lock:
            self._free[start] = self._taken.pop(start)
            merged: dict[int, int] = {}
            last = -1
            for begin, length in sorted(self._free.items()):
                if last >= 0 and last + merged[last] == begin:
                    merged[last] += length
                else:
                    merged[begin] = length
                    last = begin
            self._free = merged
