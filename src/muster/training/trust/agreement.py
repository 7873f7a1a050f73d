"""When two results are the same up to rounding.

Two honest machines differ by rounding: other instruction sets, threads, libraries add in another order. What is compared
is the whole update as one vector, against how far training has moved the model:

    d(a, b) = |a - b| / (|a - w| + |b - w|) * 2        w: the model that both began from

in float64, over all arrays of floating-point numbers, and likewise for each group of arrays beside the weights and for
the loss, which have no base (``w = 0``); the largest counts. Arrays of integers, samples and steps must be equal. A lie
that stays below the tolerance has moved the update by less than that share of its length: what can be hidden is what
rounding may do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from muster.engine.pool.trust import Result
from muster.engine.pool.updates import Arrays

_BASED = "weights"


def difference(base: Arrays, first: Result, second: Result) -> float:
    """How far two results are apart, from 0 for equal ones; infinite where something differs that rounding cannot change.

    Arguments:
        base: the model that both began from, by the names of the results' arrays.
        first, second: the results.
    """
    if dict(first.facts) != dict(second.facts) or first.arrays.keys() != second.arrays.keys():
        return math.inf
    squares: dict[str, list[float]] = {}
    for name, array in first.arrays.items():
        other = second.arrays[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            return math.inf
        if not np.issubdtype(array.dtype, np.floating):
            if not np.array_equal(array, other):
                return math.inf
            continue
        group = "\x1f".join(name.split("\x1f")[:2])
        start = base.get(name, 0.0) if group.startswith(_BASED) else 0.0
        one, two = np.subtract(array, start, dtype=np.float64), np.subtract(other, start, dtype=np.float64)
        found = squares.setdefault(group, [0.0, 0.0, 0.0])
        for place, vector in enumerate((one - two, one, two)):
            found[place] += float(np.vdot(vector, vector))
    if first.loss is not None or second.loss is not None:
        if first.loss is None or second.loss is None:
            return math.inf
        squares["loss"] = [(first.loss - second.loss) ** 2, first.loss**2, second.loss**2]
    return max((_relative(*sums) for sums in squares.values()), default=0.0)


def _relative(apart: float, one: float, two: float) -> float:
    if apart == 0:
        return 0.0
    length = math.sqrt(one) + math.sqrt(two)
    return 2 * math.sqrt(apart) / length if length > 0 else math.inf


def groups(count: int, agree: Callable[[int, int], bool]) -> list[list[int]]:
    """Puts results that agree together: each joins the first group with all of whose members it agrees.

    Returns:
        Their positions, the largest group first, of equal ones the earlier.
    """
    found: list[list[int]] = []
    for position in range(count):
        for group in found:
            if all(agree(member, position) for member in group):
                group.append(position)
                break
        else:
            found.append([position])
    return sorted(found, key=lambda group: -len(group))


def agreeing(found: Sequence[Sequence[int]], *, quorum: int, deciding: Sequence[int]) -> Sequence[int] | None:
    """The group to be believed: the one with a result whose worker decides, else one of at least the quorum; None if none.

    Where results that decide contradict each other none is believed.
    """
    if deciding:
        holding = [group for group in found if set(group) & set(deciding)]
        return holding[0] if len(holding) == 1 else None
    large = [group for group in found if len(group) >= quorum]
    return large[0] if large and (len(large) == 1 or len(large[0]) > len(large[1])) else None
