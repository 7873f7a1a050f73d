"""The decoded blocks (row groups, chunks) that were used last."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class BlockCache:
    """Least recently used blocks of up to ``limit_bytes`` in all, one at least; each process has its own.

    A block is read once however many threads want it at the same time. Pickled, and in a forked child, it is empty.

    Arguments:
        limit_bytes: how much the blocks may take, by their ``nbytes``.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._reading: dict[int, threading.Lock] = {}
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0

    def get(self, number: int, read: Callable[[int], Any]) -> Any:
        """Block ``number``, by ``read(number)`` if it is not here."""
        if self._pid != os.getpid():  # the fork may have caught the locks held
            self._begin()
        with self._lock:
            reading = self._reading.setdefault(number, threading.Lock())
        with reading:
            with self._lock:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    return self._kept[number]
            block = read(number)
            with self._lock:
                self._kept[number] = block
                self._bytes += block.nbytes
                while self._bytes > self._limit and len(self._kept) > 1:
                    dropped, old = self._kept.popitem(last=False)
                    self._bytes -= old.nbytes
                    self._reading.pop(dropped, None)
            return block

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockCache, (self._limit,)
