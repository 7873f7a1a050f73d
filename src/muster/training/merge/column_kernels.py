"""The inner loops of robust rules, compiled by Numba: on blocks of updates, a strip of columns at a time in the cache.

What is compiled is kept in the source's ``__pycache__``, or in the user's cache: only the first use ever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["add_products", "mean_of_middle", "sort_strips"]

_STRIP = 256  # columns; 50 rows of float64 fill a fifth of a second-level cache of 512 KiB
_ANY_ORDER = {
    "reassoc",
    "contract",
    "nsz",
}  # sums may be taken in vector lanes; infinities and NaN keep their meaning

Block = npt.NDArray[Any]
Double = npt.NDArray[np.float64]


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # neither folder can be written: it is compiled in each process
            return njit(**options)(function)  # type: ignore[no-any-return]

    return compiled


@_compiled(fastmath=_ANY_ORDER)
def _subtract(after: Block, before: Block, out: Double, total: Double) -> None:
    for column in range(after.shape[0]):
        value = np.float64(after[column]) - np.float64(before[column])
        out[column] = value
        total[column] += value


@_compiled(fastmath=_ANY_ORDER)
def _centre(row: Double, total: Double, share: float) -> None:
    for column in range(_STRIP):
        row[column] -= share * total[column]


@_compiled(fastmath=_ANY_ORDER)
def _tile(a: Double, b: Double, c: Double, d: Double, x: Double, y: Double) -> tuple[float, ...]:
    """Inner products of four rows with two: eight sums that stay in vector registers."""
    ax = bx = cx = dx = ay = by = cy = dy = 0.0
    for column in range(_STRIP):
        ax += a[column] * x[column]
        bx += b[column] * x[column]
        cx += c[column] * x[column]
        dx += d[column] * x[column]
        ay += a[column] * y[column]
        by += b[column] * y[column]
        cy += c[column] * y[column]
        dy += d[column] * y[column]
    return ax, bx, cx, dx, ay, by, cy, dy


@_compiled()
def add_products(trained: Block, bases: Block, products: Double) -> None:
    """Adds to ``products[i, j]``, for ``j <= i``, the inner products of changes, each less the mean of all.

    Float32 weights are subtracted in float64, which is exact unless one is 2^28 times the other.

    Arguments:
        trained: ``[n, columns]``.
        bases: ``[n, columns]``, or ``[1, columns]`` where all began from the same.
        products: ``[rows, rows]`` with ``rows`` a multiple of four, at least ``n``; above the diagonal it means nothing.
    """
    count, columns = trained.shape
    rows = products.shape[0]
    strip = np.zeros((rows, _STRIP))
    total = np.empty(_STRIP)
    for begin in range(0, columns, _STRIP):
        end = min(begin + _STRIP, columns)
        if end - begin < _STRIP:
            strip[:] = 0.0
        total[:] = 0.0
        for row in range(count):
            before = bases[row if bases.shape[0] > 1 else 0, begin:end]
            _subtract(trained[row, begin:end], before, strip[row, : end - begin], total)
        for row in range(count):
            _centre(strip[row], total, 1 / count)
        for i in range(0, rows, 4):
            for j in range(0, i + 4, 2):
                ax, bx, cx, dx, ay, by, cy, dy = _tile(
                    strip[i], strip[i + 1], strip[i + 2], strip[i + 3], strip[j], strip[j + 1]
                )
                products[i, j] += ax
                products[i + 1, j] += bx
                products[i + 2, j] += cx
                products[i + 3, j] += dx
                products[i, j + 1] += ay
                products[i + 1, j + 1] += by
                products[i + 2, j + 1] += cy
                products[i + 3, j + 1] += dy


@_compiled()
def _exchange(first: Block, second: Block, least: Block, greatest: Block) -> None:
    for column in range(_STRIP):
        a = first[column]
        b = second[column]
        least[column] = a if a < b else b
        greatest[column] = b if a < b else a


@_compiled()
def _sort(strip: Block, pairs: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> None:
    """Sorts the columns of a strip; row ``at[k]`` then has the k-th values.

    Minima and maxima go to two spare rows that trade places with their sources: written in place, a compiler turns them
    into masked stores, which are many times slower.
    """
    count = strip.shape[0] - 2
    for pair in range(pairs.shape[0]):
        low, high = pairs[pair, 0], pairs[pair, 1]
        _exchange(strip[at[low]], strip[at[high]], strip[at[count]], strip[at[count + 1]])
        at[low], at[count] = at[count], at[low]
        at[high], at[count + 1] = at[count + 1], at[high]


@_compiled()
def sort_strips(rows: Block, pairs: npt.NDArray[np.int64]) -> None:
    """Sorts each column of ``[n, columns]`` in place by the comparisons of a sorting network for n."""
    count, columns = rows.shape
    strip = np.zeros((count + 2, _STRIP), rows.dtype)
    at = np.arange(count + 2)
    for begin in range(0, columns, _STRIP):
        end = min(begin + _STRIP, columns)
        for row in range(count):
            strip[at[row], : end - begin] = rows[row, begin:end]
        _sort(strip, pairs, at)
        for row in range(count):
            rows[row, begin:end] = strip[at[row], : end - begin]


@_compiled()
def mean_of_middle(rows: Block, pairs: npt.NDArray[np.int64], first: int, last: int, out: Double) -> None:
    """The mean of each column's values from the ``first`` smallest up to, but not with, the ``last``.

    Arguments:
        rows: ``[n, columns]``, without NaN.
        pairs: the comparisons of a sorting network for n.
        out: ``[columns]``.
    """
    count, columns = rows.shape
    strip = np.zeros((count + 2, _STRIP), rows.dtype)
    at = np.arange(count + 2)
    for begin in range(0, columns, _STRIP):
        end = min(begin + _STRIP, columns)
        for row in range(count):
            strip[at[row], : end - begin] = rows[row, begin:end]
        _sort(strip, pairs, at)
        total = out[begin:end]
        total[:] = 0.0
        for row in range(first, last):
            values = strip[at[row]]
            for column in range(end - begin):
                total[column] += np.float64(values[column])
        for column in range(end - begin):
            total[column] /= last - first
