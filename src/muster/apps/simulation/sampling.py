"""In which order the members of an ensemble run, so that the first of them speak for all.

The most informative members should run first, but an answer from those alone would be biased. *Sequential Poisson sampling*
has both: a member draws a key ``u / size``, with u uniform in 0 to 1, and members run in ascending order of their keys. For
every n, the first n are a sample in which a member is with a probability in proportion to its size, as far as possible.

These probabilities are not approximated. Let t be the key of the first member that is not in the sample. Given all keys but
its own, member i is in the sample if its key is less than t, which has the probability ``min(1, t size)``. So members
weighted by its inverse are unbiased, for every n, and uncorrelated, so that the variance of their sum is a sum too. The same
holds where a deadline says what n is and members take times of their own, as long as, given all other keys, member i
finishes if its key is below a threshold.

Sources: E. Ohlsson, "Sequential Poisson sampling", Journal of Official Statistics 14, 149-162 (1998); N. Duffield, C. Lund
and M. Thorup, "Priority sampling for estimation of arbitrary subset sums", Journal of the ACM 54(6) (2007), who prove what
is said of the weights; D. Ting, "Adaptive threshold sampling", SIGMOD (2022), arXiv:1708.04970, on thresholds by a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from math import inf, pi, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.errors import RefusedInput

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

LOGISTIC_SCALE: Final = sqrt(3) / pi  # of the logistic distribution whose standard deviation is 1


@dataclass(frozen=True, eq=False)
class Sample:
    """Members whose results count, and how likely each was to be among them.

    Arguments:
        used: whether a member's result counts, bool, ``[members]``.
        probability: with which it does, float64, ``[members]``, above 0; that of members that are not used serves to say
            how far the answer may be off.
    """

    used: Flags
    probability: Array


@dataclass(frozen=True, eq=False)
class RunOrder:
    """Members in the order of their keys.

    Arguments:
        sizes: how informative each is, float64, ``[members]``, above 0; only their ratios matter.
        keys: what they have drawn, float64, ``[members]``; the least runs first.

    Raises:
        RefusedInput: sizes or keys that are not above 0, or of different lengths.
    """

    sizes: Array
    keys: Array

    def __post_init__(self) -> None:
        for name in ("sizes", "keys"):
            values = np.asarray(getattr(self, name), float)
            if values.ndim != 1 or not values.size or not (np.isfinite(values) & (values > 0)).all():
                raise RefusedInput(f"run order: {name}: expected a finite number above 0 for each member")
        if len(self.sizes) != len(self.keys):
            raise RefusedInput(
                f"run order: {len(self.sizes)} sizes and {len(self.keys)} keys; expected one of each"
            )

    @property
    def members(self) -> npt.NDArray[np.int64]:
        """Members in the order in which they run, ``[members]``."""
        return np.argsort(self.keys, kind="stable")

    def probability(self, thresholds: npt.ArrayLike) -> Array:
        """How likely a member's key is to be less than a threshold, ``[members]``."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.minimum(1.0, np.asarray(thresholds, float) * self.sizes))

    def prefix(self, finished: Flags) -> Sample:
        """The longest run of finished members from the first in the order, whatever else has finished.

        What still runs when the deadline falls ends the prefix. Where members run one at a time that biases nothing, however
        long they take. Where several do, a slow member is in the prefix somewhat less often than its probability here says;
        `finished_by` has that right, and wastes no result.

        Arguments:
            finished: whether a member has, bool, ``[members]``.

        Raises:
            RefusedInput: not one flag for each member.
        """
        finished = self._checked(finished)
        order = self.members
        unfinished = np.flatnonzero(~finished[order])
        count = int(unfinished[0]) if unfinished.size else len(order)
        used = np.zeros(len(order), bool)
        used[order[:count]] = True
        threshold = float(self.keys[order[count]]) if count < len(order) else inf
        return Sample(used, self.probability(threshold))

    def finished_by(
        self, finished: Flags, durations_s: npt.ArrayLike, *, deadline_s: float, workers: int
    ) -> Sample:
        """All finished members, each with the probability that it finishes, for workers that take members in this order.

        A member is finished in time if it is early enough in the order; where that ends is found by replaying the schedule
        without it. The replay needs only times that are known at the deadline: without member i, everything starts earlier by
        at most its duration, so nothing that is still running could have freed a worker in time for i.

        Arguments:
            finished: whether a member has, bool, ``[members]``.
            durations_s: how long those that finished took, float64, ``[members]``; others are not read.
            deadline_s: from when the first member began.
            workers: how many members run at once; a free worker takes the next member of the order.

        Raises:
            RefusedInput: not one flag and duration for each member, a duration below 0, or no workers.
        """
        finished = self._checked(finished)
        if workers < 1:
            raise RefusedInput(f"run order: workers: found {workers}; expected at least 1")
        durations = np.where(finished, np.asarray(durations_s, float), inf)
        if durations.shape != finished.shape or not (durations >= 0).all():
            raise RefusedInput(
                "run order: durations_s: expected seconds, at least 0, for each member that has finished"
            )
        order = self.members
        thresholds = np.full(len(order), np.nan)
        for member in np.flatnonzero(finished):
            others = order[order != member]
            begun = _begun_by(durations[others], deadline_s - durations[member], workers)
            thresholds[member] = self.keys[others[begun]] if begun < len(others) else inf
        if finished.all():
            return Sample(finished, np.ones(len(order)))
        # That of a member that has not finished cannot be known: it is at most its own key, and else taken to be as usual.
        usual = np.nanmedian(thresholds) if finished.any() else self.keys[order[0]]
        return Sample(
            finished, self.probability(np.where(finished, thresholds, np.minimum(usual, self.keys)))
        )

    def _checked(self, finished: Flags) -> Flags:
        flags = np.asarray(finished, bool)
        if flags.shape != self.sizes.shape:
            raise RefusedInput(f"run order: finished: found shape {flags.shape}; expected {self.sizes.shape}")
        return flags


def _begun_by(durations: Array, latest_s: float, workers: int) -> int:
    """How many members, taken in their order, can begin before one that still begins by a time."""
    free = [0.0] * workers  # a heap
    for count, duration in enumerate(durations):
        heapreplace(free, free[0] + float(duration))
        if free[0] > latest_s:
            return count
    return len(durations)


def draw_order(sizes: npt.ArrayLike, *, seed: int | Sequence[int]) -> RunOrder:
    """Draws the order in which members run, larger ones rather first.

    Arguments:
        sizes: how informative each member is, ``[members]``, above 0; the same for all gives each order the same chance.
        seed: fixes the order.
    """
    values = np.array(sizes, float)
    uniform = 1.0 - np.random.default_rng(seed).random(values.shape)  # above 0
    return RunOrder(values, uniform / values)


def logistic(odds: Array) -> Array:
    """The probability of log odds."""
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -700, 700))))


def expected_exceedance(heights_m: npt.ArrayLike, thresholds_m: npt.ArrayLike, spread: float) -> Array:
    """How likely a wave is above each threshold, before it is simulated.

    ``ln h`` is taken to be logistic about that of the stand-in.

    Arguments:
        heights_m: of a cheap stand-in for the simulation, m, ``[members, points]``.
        thresholds_m: m, ``[thresholds]``, above 0.
        spread: standard deviation of ``ln h`` about that of the stand-in.

    Returns:
        Probabilities, float64, ``[members, points, thresholds]``.
    """
    thresholds = np.asarray(thresholds_m, float)
    # A height of 0 has no logarithm; a thousandth of the least threshold is as good as none.
    heights = np.maximum(np.asarray(heights_m, float), 1e-3 * thresholds.min())
    return logistic(np.log(heights[..., None] / thresholds) / (spread * LOGISTIC_SCALE))


def informativeness(weights: npt.ArrayLike, expected: npt.ArrayLike, *, doubt: float = 0.02) -> Array:
    """How much of what is not known each member would tell: sizes for `draw_order`.

    A member whose wave is above a threshold with probability r adds ``w^2 r (1 - r) / p`` to the variance of that point of a
    hazard curve if it runs with probability p. The sum over all points of all curves, each in units of its own variance, is
    least for p in proportion to the root of what is returned squared (Neyman allocation).

    Arguments:
        weights: probabilities of the members, ``[members]``, above 0.
        expected: how likely each member's wave is above each threshold, ``[members, points, thresholds]``.
        doubt: no wave is taken to be more certain than this probability or its complement.

    Returns:
        Sizes, float64, ``[members]``, the greatest 1.
    """
    likely = np.clip(np.asarray(expected, float), doubt, 1 - doubt)
    variance = np.asarray(weights, float)[:, None, None] ** 2 * likely * (1 - likely)
    sizes = np.sqrt((variance / variance.sum(axis=0)).mean(axis=(1, 2)))
    return np.asarray(sizes / sizes.max())
