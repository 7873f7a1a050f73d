"""Tables as NumPy columns, the lineage that survives restarts, and means over bins of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]


def columns(table: pa.Table) -> Columns:
    """A table's columns, each of shape [rows]: nulls become NaN (float), 0 (integer) and an empty string."""
    found: Columns = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_floating(column.type):
            found[name] = column.to_numpy().astype(np.float64)
        elif pa.types.is_integer(column.type):
            found[name] = column.fill_null(0).to_numpy().astype(np.int64)
        else:
            found[name] = np.array(column.fill_null("").to_pylist(), dtype=object)
    return found


def rows_where(data: Columns, mask: Mask) -> Columns:
    """The rows that a mask of shape [rows] keeps."""
    return {name: column[mask] for name, column in data.items()}


def survives(step: Integers, attempt: Integers) -> Mask:
    """Which rows belong to the surviving lineage; `muster.engine.records.surviving` on arrays.

    A step done again after a restart replaces the earlier one on every rank.

    Arguments:
        step: [rows].
        attempt: [rows].

    Returns:
        [rows], true where no higher attempt has reached the same step.
    """
    if step.size == 0:
        return np.zeros(0, dtype=bool)
    _, position = np.unique(step, return_inverse=True)
    last = np.zeros(position.max() + 1, dtype=np.int64)
    np.maximum.at(last, position, attempt)
    return np.asarray(attempt == last[position])


def step_means(step: Integers, value: Floats) -> tuple[Integers, Floats]:
    """The mean over the ranks of each step, NaN where no rank has a value.

    Arguments:
        step: [rows].
        value: [rows].

    Returns:
        The distinct steps in rising order and their means, both [steps].
    """
    steps, position = np.unique(step, return_inverse=True)
    known = np.isfinite(value)
    count = np.bincount(position[known], minlength=steps.size)
    total = np.bincount(position[known], weights=value[known], minlength=steps.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return steps, np.where(count > 0, total / count, np.nan)


def bins(size: int, most: int) -> Integers:
    """Cuts ``size`` consecutive items into at most ``most`` bins of nearly equal size.

    Returns:
        [bins + 1], where each bin begins, and ``size``; [0] where there is no item.
    """
    if size == 0:
        return np.zeros(1, dtype=np.int64)
    count = min(size, most)
    return np.arange(count + 1, dtype=np.int64) * size // count


def bin_means(value: Floats, edges: Integers) -> Floats:
    """The mean of each bin, without regard to NaN; NaN where a bin has nothing else.

    Arguments:
        value: [items].
        edges: [bins + 1], from `bins`.
    """
    if edges.size < 2:
        return np.zeros(0)
    known = np.isfinite(value)
    total = np.add.reduceat(np.where(known, value, 0.0), edges[:-1])
    count = np.add.reduceat(known.astype(np.float64), edges[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
