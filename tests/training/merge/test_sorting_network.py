"""Sorting networks: by the 0-1 principle, with the number of comparisons in the book, beside numpy.sort."""

from __future__ import annotations

import numpy as np
import pytest

from muster.training.merge.sorting_network import comparisons, sort_columns


@pytest.mark.parametrize("count", range(1, 14))
def test_all_zeros_and_ones_are_sorted_and_therefore_everything(count: int) -> None:
    """A network that sorts every sequence of zeros and ones sorts all (Knuth, volume 3, theorem 5.3.4Z)."""
    columns = (np.arange(1 << count)[None, :] >> np.arange(count)[:, None]) & 1
    ones = columns.sum(axis=0)
    for place, row in enumerate(sort_columns(columns.copy())):
        np.testing.assert_array_equal(row, place >= count - ones)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0), (2, 1), (4, 5), (8, 19), (16, 63), (32, 191), (64, 543)]
)
def test_a_network_has_as_many_comparisons_as_batchers(count: int, expected: int) -> None:
    """``(p^2 - p + 4) 2^(p-2) - 1`` for ``2^p`` values (Knuth, volume 3, exercise 5.2.2-10)."""
    assert len(comparisons(count)) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_columns_are_sorted_as_by_numpy(dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).normal(size=(37, 1001)).astype(dtype)
    np.testing.assert_array_equal(np.stack(sort_columns(values.copy())), np.sort(values, axis=0))
