"""Hazard curves of an ensemble of which only some members have finished, and how far they may be off.

The full ensemble's answer is ``H[p, t] = sum_i w_i 1[h_i[p] > t]``: how likely the wave at point p is above t. At a deadline
the heights of some members are known, and a cheap stand-in for those of all. The stand-in, set right by the members that have
finished, says how likely each member is above t; the members of the sample say how wrong that is on the whole. That is the
difference estimator (C.-E. Särndal, B. Swensson and J. Wretman, Model Assisted Survey Sampling, 1992, section 6.3)::

    sum_i w_i r_i  +  sum over the sample of  w_i (y_i - r_i) / p_i

with y_i = 1 where the wave is above t, r_i its expectation, and p_i the probability with which the member is in the sample
(`sampling`). However bad the stand-in, that has next to no bias; a good one makes it narrow.

*Intervals.* The variance is a sum over members, since members of these samples are uncorrelated. It is estimated twice: from
the differences in the sample, and from the expectations, as ``r (1 - r)`` for a difference squared. The first believes no
stand-in, but is 0 or nearly so where no wave of a small sample, or every one, is above t, which is where ordinary intervals
fail. The second is never 0, and is raised by as much as it is too small at all points together. The greater counts. And no
interval reaches beyond what is known: finished members count as they are, and the others are all below t at best, all above
it at worst. So it shrinks to a point as the last member finishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.apps.simulation.sampling import (
    Array,
    Flags,
    RunOrder,
    Sample,
    draw_order,
    expected_exceedance,
    informativeness,
)
from muster.errors import RefusedInput

_UNSURE: Final = 0.01  # no expectation is taken to be surer than this
_LEAST_SPREAD: Final = 0.1  # of ln h about a stand-in, however well it fits
_STEEPEST: Final = 3.0  # slope of ln h in that of a stand-in
_FEWEST: Final = 4  # members by which a stand-in can be set right


def exceedance(heights_m: npt.ArrayLike, weights: npt.ArrayLike, thresholds_m: npt.ArrayLike) -> Array:
    """The weight of the members whose wave is above each threshold: the answer of an ensemble that is complete.

    Arguments:
        heights_m: m, ``[members, points]``.
        weights: ``[members]``.
        thresholds_m: m, ``[thresholds]``.

    Returns:
        Float64, ``[points, thresholds]``.
    """
    above = np.asarray(heights_m, float)[:, :, None] > np.asarray(thresholds_m, float)
    return np.asarray(np.tensordot(np.asarray(weights, float), above, axes=1))


@dataclass(frozen=True, eq=False)
class Arrivals:
    """What has arrived: the greatest wave heights of the members that have finished. Merging makes a new one.

    Arguments:
        heights_m: m, float64, ``[members, points]``; not a number for members that have not finished.
    """

    heights_m: Array

    @classmethod
    def none(cls, members: int, points: int) -> Arrivals:
        """Before anything has arrived."""
        return cls(np.full((members, points), np.nan))

    @property
    def finished(self) -> Flags:
        """Which members have, bool, ``[members]``."""
        return np.asarray(~np.isnan(self.heights_m).any(axis=1))

    def merge(self, member: int, heights_m: npt.ArrayLike) -> Arrivals:
        """With the heights of one more member; the order of arrival does not matter, and the same may arrive twice.

        Arguments:
            member: which.
            heights_m: m, at least 0, ``[points]``.

        Raises:
            RefusedInput: no such member, heights that are not finite or below 0, or others than arrived before.
        """
        heights = np.asarray(heights_m, float)
        members, points = self.heights_m.shape
        if not 0 <= member < members:
            raise RefusedInput(f"arrivals: member {member}; expected 0 to {members - 1}")
        if heights.shape != (points,) or not (np.isfinite(heights) & (heights >= 0)).all():
            raise RefusedInput(
                f"arrivals: member {member}: heights of shape {heights.shape}; expected {points} finite ones, at least 0"
            )
        one = np.full_like(self.heights_m, np.nan)
        one[member] = heights
        return self.union(Arrivals(one))

    def union(self, other: Arrivals) -> Arrivals:
        """With all that has arrived elsewhere.

        Raises:
            RefusedInput: arrivals of another ensemble, or other heights for the same member.
        """
        if self.heights_m.shape != other.heights_m.shape:
            raise RefusedInput(
                f"arrivals: found shape {other.heights_m.shape}; expected {self.heights_m.shape}, as of the others"
            )
        both = self.finished & other.finished
        if not np.array_equal(self.heights_m[both], other.heights_m[both]):
            differs = np.flatnonzero(both)[(self.heights_m[both] != other.heights_m[both]).any(axis=1)]
            raise RefusedInput(f"arrivals: member {differs[0]} has arrived before, with other heights")
        return Arrivals(np.where(self.finished[:, None], self.heights_m, other.heights_m))


@dataclass(frozen=True, eq=False)
class HazardDesign:
    """What is settled before the first member runs.

    Arguments:
        weights: probabilities of the members, float64, ``[members]``, above 0, that sum to 1.
        thresholds_m: m, float64, ``[thresholds]``, above 0 and ascending.
        surrogate_m: heights by a cheap stand-in for the simulation, m, float64, ``[members, points]``, at least 0.
        spread: standard deviation of ``ln h`` about that of the stand-in, as far as one knows beforehand.
        order: in which members run.

    Raises:
        RefusedInput: any of them is not so, or their shapes differ.
    """

    weights: Array
    thresholds_m: Array
    surrogate_m: Array
    spread: float
    order: RunOrder

    def __post_init__(self) -> None:
        members = len(self.weights)
        if self.surrogate_m.ndim != 2 or len(self.surrogate_m) != members or len(self.order.sizes) != members:
            raise RefusedInput(
                f"hazard: {members} weights, stand-in heights of shape {self.surrogate_m.shape} and "
                f"{len(self.order.sizes)} members in order; expected as many members in each"
            )
        if not (self.weights > 0).all() or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise RefusedInput(
                f"hazard: weights: found a sum of {self.weights.sum():g}; expected 1, and all above 0"
            )
        if not (np.isfinite(self.surrogate_m) & (self.surrogate_m >= 0)).all():
            raise RefusedInput("hazard: surrogate_m: expected finite heights, at least 0")
        if not self.thresholds_m.size or self.thresholds_m[0] <= 0 or (np.diff(self.thresholds_m) <= 0).any():
            raise RefusedInput("hazard: thresholds_m: expected heights above 0, in ascending order")
        if not self.spread > 0:
            raise RefusedInput(f"hazard: spread: found {self.spread:g}; expected more than 0")


def hazard_design(
    weights: npt.ArrayLike,
    surrogate_m: npt.ArrayLike,
    thresholds_m: npt.ArrayLike,
    *,
    seed: int | Sequence[int],
    spread: float = 0.8,
    informative_first: bool = True,
) -> HazardDesign:
    """Draws the order of members, the most informative rather first.

    Arguments:
        weights, surrogate_m, thresholds_m, spread: as of `HazardDesign`.
        seed: fixes the order.
        informative_first: otherwise all orders are as likely.

    Raises:
        RefusedInput: as `HazardDesign` does.
    """
    probabilities, heights, thresholds = (
        np.array(values, float) for values in (weights, surrogate_m, thresholds_m)
    )
    alike = draw_order(np.ones(len(probabilities)), seed=seed)
    design = HazardDesign(probabilities, thresholds, heights, spread, alike)
    if not informative_first:
        return design
    sizes = informativeness(probabilities, expected_exceedance(heights, thresholds, spread))
    return replace(design, order=draw_order(sizes, seed=seed))


@dataclass(frozen=True, eq=False)
class HazardCurves:
    """Probabilities that the wave is above each threshold, each ``[points, thresholds]``, float64, falling along thresholds.

    Arguments:
        estimate: of the full ensemble's answer.
        low, high: ends of its interval, each point of a curve by itself.
        members: whose results it rests on.
    """

    estimate: Array
    low: Array
    high: Array
    members: int


def curves(
    arrivals: Arrivals, design: HazardDesign, sample: Sample | None = None, *, confidence: float = 0.95
) -> HazardCurves:
    """The answer that stands with what has arrived.

    Arguments:
        arrivals: heights of the members that have finished.
        design: as before the first member ran.
        sample: whose results count, and how likely each was to; by default the members that have finished up to the first in
            the order that has not (`RunOrder.prefix`). Others that have finished still bound the interval.
        confidence: of the intervals.

    Returns:
        The full ensemble's own answer, with intervals of no width, once all members have finished; with none, what the
        stand-in says, with intervals from 0 to 1.

    Raises:
        RefusedInput: arrivals of another ensemble, a sample with members that have not arrived, or a confidence that is not
            between 0 and 1.
    """
    if arrivals.heights_m.shape != design.surrogate_m.shape:
        raise RefusedInput(
            f"hazard: arrivals of shape {arrivals.heights_m.shape}; expected {design.surrogate_m.shape}, as designed"
        )
    if not 0 < confidence < 1:
        raise RefusedInput(f"hazard: confidence: found {confidence:g}; expected more than 0 and less than 1")
    finished = arrivals.finished
    sample = sample or design.order.prefix(finished)
    if (sample.used & ~finished).any():
        raise RefusedInput(
            f"hazard: member {np.flatnonzero(sample.used & ~finished)[0]} of the sample has not arrived"
        )

    used = sample.used
    expected = np.clip(_expected(arrivals, design, used), _UNSURE, 1 - _UNSURE)
    differences = (arrivals.heights_m[used][:, :, None] > design.thresholds_m) - expected[used]
    share = design.weights / sample.probability
    estimate = np.tensordot(design.weights, expected, axes=1) + np.tensordot(share[used], differences, axes=1)

    # Of (1 - p) / p (w d)^2 for all members: from the differences d of the sample, and for d^2 = r (1 - r).
    scale = (1 - sample.probability) * share**2
    seen = np.tensordot(scale[used], differences**2, axes=1)
    supposed = np.tensordot(scale * sample.probability, expected * (1 - expected), axes=1)
    deviations = NormalDist().inv_cdf((1 + confidence) / 2) if used.any() else np.inf
    short = np.maximum(seen.sum(axis=0) / np.maximum(supposed.sum(axis=0), np.finfo(float).tiny), 1.0)
    reach = deviations * np.sqrt(np.maximum(seen, supposed * short))

    least = exceedance(arrivals.heights_m[finished], design.weights[finished], design.thresholds_m)
    most = least + design.weights[~finished].sum()
    # The estimate and the ends of a curve that can only fall are put in falling order, which brings them no farther from it
    # (V. Chernozhukov, I. Fernández-Val and A. Galichon, Biometrika 96, 559-575, 2009).
    middle, low, high = (
        -np.sort(-np.clip(values, least, most), axis=1)
        for values in (estimate, estimate - reach, estimate + reach)
    )
    return HazardCurves(middle, low, high, members=int(used.sum()))


def _expected(arrivals: Arrivals, design: HazardDesign, used: Flags) -> Array:
    """How likely each wave is above each threshold by the stand-in, set right by the members of the sample.

    ``ln h`` is a straight line in that of the stand-in, of one slope, and at each point of its own height, by least squares.
    """
    if used.sum() < _FEWEST:
        return expected_exceedance(design.surrogate_m, design.thresholds_m, design.spread)
    lowest = 0.1 * design.thresholds_m[0]  # how far below all thresholds a wave is does not matter
    rough = np.log(np.maximum(design.surrogate_m, lowest))
    given, found = rough[used], np.log(np.maximum(arrivals.heights_m[used], lowest))
    apart = given - given.mean(axis=0)
    slope = float((apart * found).sum() / max(float((apart**2).sum()), 1e-9))
    slope = min(max(slope, 0.0), _STEEPEST)
    level = found.mean(axis=0) - slope * given.mean(axis=0)
    errors = found - level - slope * given
    spread = float(np.sqrt((errors**2).sum() / (errors.size - errors.shape[1] - 1)))
    return expected_exceedance(np.exp(level + slope * rough), design.thresholds_m, max(spread, _LEAST_SPREAD))
