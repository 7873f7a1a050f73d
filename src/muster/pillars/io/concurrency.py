"""How many requests at once a store is worth: found by measuring, with the reads that are wanted anyway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_GAIN = 1.1  # one more doubling must bring at least this much
_AGAIN_S = 20.0  # a settled number is put to the test this often


@dataclass
class Concurrency:
    """Climbs from one request at a time through 2, 4, 8, ... for as long as throughput rises by a tenth.

    Each number gets a window of the reads that arrive meanwhile; the best is kept, and its double and its half are tried
    again from time to time, since a store's load changes. Windows in which the reader was not busy all the time say
    nothing about the store and are thrown away.

    Arguments:
        most: never more than this.
        window_s: length of a window, in seconds, at least.
        clock: tells the time in seconds.
    """

    most: int = 32
    window_s: float = 0.25
    clock: Callable[[], float] = time.monotonic
    bytes_per_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = 1
        self.settled = False
        self._lock = threading.Lock()
        self._best = 1
        self._since, self._bytes, self._reads = self.clock(), 0, 0
        self._settled_at = 0.0

    @property
    def best(self) -> int:
        """The best number found so far."""
        return self._best

    def idle(self) -> None:
        """The reader had nothing to read, or no room for it: the window begins anew."""
        with self._lock:
            self._start(self.clock())

    def arrived(self, size: int) -> None:
        """One read has ended with ``size`` bytes."""
        with self._lock:
            now = self.clock()
            self._bytes += size
            self._reads += 1
            # The first reads after a change are those of the number before; they count for nobody.
            if self._reads == self.now:
                self._bytes, self._since = 0, now
            if self._reads < 4 * self.now or now - self._since < self.window_s:
                return
            self.bytes_per_s[self.now] = self._bytes / (now - self._since)
            self._decide(now)
            self._start(now)

    def _decide(self, now: float) -> None:
        rate, best = self.bytes_per_s[self.now], self.bytes_per_s.get(self._best, 0.0)
        if self.settled:
            if self.now != self._best:
                if rate > _GAIN * best or (self.now < self._best and rate > best / 1.02):
                    self._best = self.now
                self.now, self._settled_at = self._best, now
            elif now - self._settled_at > _AGAIN_S:
                self._settled_at = now
                self.now = self._best * 2 if self._best * 2 <= self.most else max(1, self._best // 2)
            return
        if self.now == self._best or rate > _GAIN * best:
            self._best = self.now
            if self.now * 2 <= self.most:
                self.now *= 2
                return
        self.now, self.settled, self._settled_at = self._best, True, now

    def _start(self, now: float) -> None:
        self._since, self._bytes, self._reads = now, 0, 0
