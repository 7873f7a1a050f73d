"""A median and how sure it is.

The median over repeats is reported, since a hiccup of the machine makes outliers on one side only, with the percentile
bootstrap's interval (Efron 1979; Efron and Tibshirani 1993, chapter 13), which assumes nothing about their distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval.

    Arguments:
        median: of the values.
        low, high: ends of the interval; of one value alone they are that value, which says nothing of its spread.
        count: how many values.
    """

    median: float
    low: float
    high: float
    count: int

    def plain(self) -> dict[str, float | int]:
        """As JSON holds it."""
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of ``values`` and its 95 % interval by the percentile bootstrap.

    Arguments:
        values: at least one number.
        seed: of the resampling.

    Raises:
        ValueError: no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("no values to take a median of")
    drawn = np.random.default_rng(seed).integers(sample.size, size=(_RESAMPLES, sample.size))
    low, high = np.percentile(np.median(sample[drawn], axis=1), [2.5, 97.5])
    return Interval(float(np.median(sample)), float(low), float(high), int(sample.size))
