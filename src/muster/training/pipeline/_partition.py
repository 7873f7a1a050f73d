"""Which layers make a stage: a contiguous partition whose slowest part is as fast as can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


def balanced_partition(costs: Sequence[float], parts: int) -> list[int]:
    """Cuts a row of layers into contiguous stages so that the costliest one costs as little as possible.

    The linear partition problem, by dynamic programming in O(parts · layers²): the best cut of the first j layers into k
    parts ends with one that begins at some i, and best(k, j) = min over i of max(best(k-1, i), cost of i … j). Among equal
    values a cut with a small sum of squares is preferred, so that what is not the bottleneck is rather even too.

    Arguments:
        costs: of each layer, at least 0, in any unit.
        parts: how many stages.

    Returns:
        How many layers each stage has, at least one each.

    Raises:
        ValueError: fewer layers than parts, or a cost that is negative or not finite.
    """
    layers = len(costs)
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers cannot make {parts} stages")
    if any(not (cost >= 0 and math.isfinite(cost)) for cost in costs):
        raise ValueError("a layer's cost must be a number that is at least 0")
    before = [0.0, *accumulate(costs)]
    # (costliest part, sum of squares) of the first j layers, for the parts so far
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [(math.inf, math.inf)] * layers
    cuts: list[list[int]] = []
    for part in range(1, parts + 1):
        found = [(math.inf, math.inf)] * (layers + 1)
        cut = [0] * (layers + 1)
        for end in range(part, layers - (parts - part) + 1):
            for begin in range(part - 1, end):
                cost = before[end] - before[begin]
                value = (max(best[begin][0], cost), best[begin][1] + cost * cost)
                if value < found[end]:
                    found[end], cut[end] = value, begin
        best = found
        cuts.append(cut)
    sizes: list[int] = []
    end = layers
    for cut in reversed(cuts):
        sizes.append(end - cut[end])
        end = cut[end]
    return sizes[::-1]
