"""Sorting many short columns at once: a fixed sequence of minima and maxima of whole rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=64)
def comparisons(count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of positions whose values are put in order, one pair after the other, to sort ``count`` values.

    Batcher's merge exchange, some ``count log2(count)^2 / 4`` pairs. Source: Knuth, "The art of computer programming", volume
    3, algorithm 5.2.2M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1) if count > 1 else 0
    step = top
    while step > 0:
        width, offset, distance = top, 0, step
        while True:
            pairs += [(low, low + distance) for low in range(count - distance) if low & step == offset]
            if width == step:
                break
            distance, width, offset = width - step, width >> 1, step
        step >>= 1
    return tuple(pairs)


def sort_columns(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The rows of a matrix with each column sorted, the least first; the matrix is used up.

    Arguments:
        rows: ``[values, columns]``, without NaN; best so few columns that all fits the processor's cache.
    """
    sorted_, spare = list(rows), np.empty_like(rows[0])
    for low, high in comparisons(len(rows)):
        first, second = sorted_[low], sorted_[high]
        np.minimum(first, second, out=spare)
        np.maximum(first, second, out=second)
        sorted_[low], spare = spare, first
    return sorted_
