"""Finding the largest elements by a sampled threshold, beside a full sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.pillars.comm.compress.selection import largest, reaching


def by_sorting(values: torch.Tensor, count: int) -> list[int]:
    order = torch.argsort(values.abs(), descending=True, stable=True)[:count]
    return sorted(order.tolist())


@pytest.mark.parametrize("numel", [10, 1000, 300_000])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.3, 1.0])
def test_the_selection_is_the_exact_top_k_of_gaussian_values(numel: int, density: float) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(1))
    count = max(1, round(density * numel))
    found = largest(values, count, torch.Generator().manual_seed(2))
    assert found.tolist() == by_sorting(values, count)


def test_heavy_tails_and_a_sample_that_misleads_still_give_at_least_three_quarters() -> None:
    generator = torch.Generator().manual_seed(3)
    for seed in range(30):
        values = torch.randn(400_000, generator=generator) ** 9  # a handful of elements dwarfs all others
        found = largest(values, 4000, torch.Generator().manual_seed(seed))
        assert 3000 <= len(found) <= 4000
        assert set(found.tolist()) <= set(by_sorting(values, 4000))


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-38]), min_size=1, max_size=30), st.integers(1, 30)
)
@settings(max_examples=100, deadline=None)
def test_ties_are_cut_to_the_count_and_zeros_never_selected(numbers: list[float], count: int) -> None:
    values = torch.tensor(numbers)
    count = min(count, len(numbers))
    found = largest(values, count, torch.Generator().manual_seed(0))
    # 1e-38 is below the smallest normal fp32 number: it counts as zero.
    normal = int((values.abs() > 1.2e-38).sum())
    assert len(found) == min(count, normal)
    magnitudes = sorted(values.abs().tolist(), reverse=True)[: len(found)]
    assert sorted(values[found].abs().tolist(), reverse=True) == magnitudes
    assert found.tolist() == sorted(set(found.tolist()))


def test_what_is_not_finite_is_always_selected() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(4))
    values[[17, 4321, 99]] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert {17, 99, 4321} <= set(largest(values, 50, torch.Generator().manual_seed(0)).tolist())
    assert reaching(torch.tensor([1.0, torch.nan, 3.0]), 2.0).tolist() == [1, 2]
    everything = torch.full((100,), torch.nan)
    assert len(largest(everything, 10, torch.Generator().manual_seed(0))) == 10
