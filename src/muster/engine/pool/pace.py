"""How long leases take, learned from those that ended: by when a result is due, and which leases lag.

The time of a lease is taken as proportional to its samples. Of a worker's last leases the seconds per sample are summed up
by their median and their median absolute deviation (MAD), which a few slow ones do not move; a worker that is not known
yet is expected to be like the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

#: The MAD of a normal distribution times this is its standard deviation.
_NORMAL: Final = 1.4826
#: A worker is judged by itself once it has ended so many leases.
_KNOWN: Final = 3


@dataclass(frozen=True)
class Expectation:
    """Seconds per sample: the median, and the spread in the unit of a standard deviation."""

    median: float
    spread: float

    @classmethod
    def of(cls, seconds_per_sample: Iterable[float]) -> Expectation:
        """From measurements, at least one."""
        values = np.fromiter(seconds_per_sample, dtype=np.float64)
        median = float(np.median(values))
        return cls(median, _NORMAL * float(np.median(np.abs(values - median))))


class Pace:
    """What is known about the speed of workers.

    Arguments:
        first_s: how long a lease may take while nothing is known, in seconds.
        least_s: no lease gets less.
        tolerance: k, how many spreads above the median a lease may take.
        margin: at least this share of the median is added, so that equal times do not make every jitter late.
        remembered: last leases of each worker that count.
    """

    def __init__(
        self,
        *,
        first_s: float = 60.0,
        least_s: float = 1.0,
        tolerance: float = 6.0,
        margin: float = 0.5,
        remembered: int = 32,
    ) -> None:
        self._first_s, self._least_s = first_s, least_s
        self._tolerance, self._margin, self._remembered = tolerance, margin, remembered
        self._ended: dict[str, deque[float]] = {}

    def ended(self, worker: str, samples: int, seconds: float) -> None:
        """A lease of so many samples has ended with a result."""
        times = self._ended.setdefault(worker, deque(maxlen=self._remembered))
        times.append(seconds / max(1, samples))

    def expectation(self, worker: str) -> Expectation | None:
        """Of a worker, or of a typical one where it has ended fewer than three leases; None while nothing is known."""
        own = self._ended.get(worker, ())
        if len(own) >= _KNOWN:
            return Expectation.of(own)
        return self._typical()

    def allowed_s(self, worker: str, samples: int) -> float:
        """How long a lease may take before it counts as lost, in seconds."""
        return self._allowed_s(self.expectation(worker), samples)

    def typically_allowed_s(self, samples: int) -> float:
        """How long a lease of a typical worker may take before it counts as late, in seconds."""
        return self._allowed_s(self._typical(), samples)

    def _allowed_s(self, expected: Expectation | None, samples: int) -> float:
        if expected is None:
            return max(self._first_s, self._least_s)
        slack = max(self._tolerance * expected.spread, self._margin * expected.median)
        return max(self._least_s, samples * (expected.median + slack))

    def typical_s(self, samples: int) -> float | None:
        """How long a typical worker takes for so many samples, in seconds; None while nothing is known."""
        expected = self._typical()
        return None if expected is None else samples * expected.median

    def _typical(self) -> Expectation | None:
        # One number for each worker: a fast one, which ends many leases, is no more typical for it.
        if not self._ended:
            return None
        return Expectation.of(float(np.median(times)) for times in self._ended.values())
