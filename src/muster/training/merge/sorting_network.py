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


@lru_cache(maxsize=64)
def _pairs(count: int) -> npt.NDArray[np.int64]:
    return np.array(comparisons(count), dtype=np.int64).reshape(-1, 2)


def sort_columns(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The rows of a matrix with each column sorted, the least first; the matrix is used up.

    Arguments:
        rows: ``[values, columns]``, without NaN; best so few columns that all fits the processor's cache.
    """
    from muster.training.merge.column_kernels import sort_strips  # numba takes half a second to import

    sort_strips(rows, _pairs(len(rows)))
    return list(rows)


def mean_between(rows: npt.NDArray[Any], first: int, last: int) -> npt.NDArray[np.float64]:
    """The mean, for each column of a matrix, of its values from the ``first`` smallest up to, but not with, the ``last``.

    Arguments:
        rows: as of `sort_columns`.
    """
    from muster.training.merge.column_kernels import mean_of_middle

    means = np.empty(rows.shape[1])
    mean_of_middle(rows, _pairs(len(rows)), first, last, means)
    return means
