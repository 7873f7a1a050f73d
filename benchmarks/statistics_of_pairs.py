"""Medians of paired measurements and how sure they are.

Two things are compared by measuring them in turn, many times, close together: what the machine does meanwhile hits both of a
pair alike and cancels in their difference or ratio. The median over pairs is reported, since a hiccup of the machine makes
outliers on one side only, with a percentile-bootstrap interval (Efron 1979; Efron and Tibshirani 1993, chapter 13),
which assumes nothing about their distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval.

    Arguments:
        median: of the values.
        low, high: ends of the interval.
        count: how many values.
    """

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """``median [low, high]``, times ``scale``."""
        median, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} [{low}, {high}]"


def median_interval(values: Sequence[float] | npt.NDArray[np.floating], seed: int = 0) -> Estimate:
    """The median of ``values`` and its 95 % interval by the percentile bootstrap.

    Raises:
        ValueError: no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("no values to take a median of")
    generator = np.random.default_rng(seed)
    medians = np.concatenate(
        [
            np.median(sample[generator.integers(sample.size, size=(1000, sample.size))], axis=1)
            for _ in range(RESAMPLES // 1000)
        ]
    )
    low, high = np.percentile(medians, [2.5, 97.5])
    return Estimate(float(np.median(sample)), float(low), float(high), int(sample.size))


def alternating_orders(pairs: int, seed: int) -> list[bool]:
    """For each pair whether its first member goes first: as many of either, in a seeded order.

    Neither member then profits from a drift of the machine, nor from what the other leaves in its caches.
    """
    orders = [pair % 2 == 0 for pair in range(pairs)]
    np.random.default_rng(seed).shuffle(orders)
    return orders
