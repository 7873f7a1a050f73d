"""What robust rules compute by blocks and strips of columns, beside the same in one line of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import muster.merge
from muster.merge import Update
from muster.training.merge.robust import gram
from muster.training.merge.sorting_network import mean_between

GENERATOR = np.random.default_rng(5)


def updates_of(count: int, size: int, dtype: Any, together: bool) -> tuple[dict[str, Any], list[Update]]:
    """Weights that training has changed by 1e-5 of themselves, from one base or each from its own."""
    base = {"w": GENERATOR.standard_normal(size).astype(dtype)}
    found = []
    for _ in range(count):
        own = (
            base if together else {"w": (base["w"] * (1 + 1e-3 * GENERATOR.standard_normal())).astype(dtype)}
        )
        change = 1 + 1e-5 * GENERATOR.standard_normal(size)
        found.append(Update({"w": (own["w"] * change).astype(dtype)}, own))
    return base, found


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 255), (7, 1000), (10, 70_001)])
def test_inner_products_are_those_of_centred_changes(
    count: int, size: int, dtype: Any, together: bool
) -> None:
    model, updates = updates_of(count, size, dtype, together)
    changes = np.stack([update.delta("w") for update in updates])
    changes -= changes.mean(axis=0)
    expected = changes @ changes.T
    np.testing.assert_allclose(
        gram(model, updates), expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max()
    )


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "f", "size"), [(5, 1, 257), (10, 2, 70_001), (50, 12, 3001)])
def test_a_trimmed_mean_is_that_of_sorted_changes(
    count: int, f: int, size: int, dtype: Any, together: bool
) -> None:
    model, updates = updates_of(count, size, dtype, together)
    changes = np.sort([update.delta("w") for update in updates], axis=0)
    merged, _ = muster.merge.get("trimmed-mean", f=f).merge(model, updates, {})
    exact = model["w"].astype(np.float64) + changes[f:-f].mean(axis=0)
    assert merged["w"].dtype == dtype
    np.testing.assert_allclose(merged["w"], exact, rtol=2.4e-7 if dtype == np.float32 else 1e-13)


def test_infinite_values_are_the_greatest_and_the_least() -> None:
    rows = np.array([[np.inf, 1.0], [3.0, -np.inf], [2.0, 5.0], [-np.inf, 4.0], [1.0, 2.0]])
    np.testing.assert_array_equal(mean_between(rows, 1, 4), [2.0, 7 / 3])
