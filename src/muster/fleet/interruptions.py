"""Availability made up by a seeded model, for where there is no trace."""

from __future__ import annotations

import math

import numpy as np

from muster.errors import RefusedInput
from muster.fleet.availability import Availability

_MOST_CHANGES = 10_000_000


def generated(
    instances: int,
    *,
    interruptions_per_s: float,
    absent_s: float,
    length_s: float,
    seed: int,
    notice_s: float = 0.0,
) -> Availability:
    """Instances that come and go independently of each other; all are there at first.

    Each one is taken away by a Poisson process while it is there, and another takes its place after a delay: an alternating
    renewal process with exponential times of mean ``1/lambda`` and ``d``, there for a share ``1/(1 + lambda d)`` of a long
    time (Ross, "Stochastic processes", section 3.4). Real machines of one kind and place are often taken away together,
    which this model has not; traces have it.

    Arguments:
        instances: how many are wanted.
        interruptions_per_s: lambda, of an instance that is there.
        absent_s: d, on average until another one is there; 0 for at once, which no number of instances shows.
        length_s: of the result.
        seed: the same one gives the same result.
        notice_s: as in `Availability`.

    Raises:
        RefusedInput: a number makes no sense; says which.
    """
    if instances < 1:
        raise RefusedInput(f"instances: found {instances}; expected 1 or more")
    for name, value in (("interruptions_per_s", interruptions_per_s), ("absent_s", absent_s)):
        if not 0 <= value < math.inf:
            raise RefusedInput(f"{name}: found {value:g}; expected 0 or more")
    if not 0 < length_s < math.inf:
        raise RefusedInput(f"length_s: found {length_s:g}; expected a number above 0")
    if interruptions_per_s * length_s * instances > _MOST_CHANGES:
        raise RefusedInput(
            f"interruptions_per_s: {interruptions_per_s:g} for {instances} instances in {length_s:g} s gives more than "
            f"{_MOST_CHANGES:,} changes; take fewer, or a shorter time"
        )
    changes: list[tuple[float, int]] = []
    if interruptions_per_s > 0 and absent_s > 0:
        # A stream of draws for each instance: with more of them, the first ones do as before.
        for stream in np.random.SeedSequence(seed).spawn(instances):
            draws, time_s = np.random.default_rng(stream), 0.0
            while True:
                time_s += draws.exponential(1 / interruptions_per_s)
                if time_s >= length_s:
                    break
                changes.append((time_s, -1))
                time_s += draws.exponential(absent_s)
                if time_s >= length_s:
                    break
                changes.append((time_s, 1))
    steps, count = [(0.0, instances)], instances
    for time_s, by in sorted(changes):
        count += by
        steps.append((time_s, count))
    return Availability.of(steps, length_s, notice_s=notice_s)
