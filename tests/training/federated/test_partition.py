"""Dealing data to parties: every sample once, as uneven as asked."""

from __future__ import annotations

import numpy as np
import pytest

from muster.errors import RefusedInput
from muster.federated import dirichlet, even

LABELS = np.repeat(np.arange(10), 300)


def test_every_sample_is_dealt_once_and_the_same_seed_deals_alike() -> None:
    for parts in (even(3001, 7, seed=3), dirichlet(LABELS, 7, 0.3, seed=3)):
        together = np.sort(np.concatenate(parts))
        np.testing.assert_array_equal(together, np.arange(len(together)))
        assert len(together) in (3000, 3001)
    assert {len(part) for part in even(3001, 7)} == {428, 429}
    for one, other in zip(dirichlet(LABELS, 5, 0.3, seed=1), dirichlet(LABELS, 5, 0.3, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(
        len(one) != len(other)
        for one, other in zip(
            dirichlet(LABELS, 5, 0.3, seed=1), dirichlet(LABELS, 5, 0.3, seed=2), strict=True
        )
    )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_moments_of_a_dirichlet_distribution(alpha: float) -> None:
    """Each class's share of a party has mean 1/n and variance (n - 1)/(n^2 (n alpha + 1))."""
    parties, shares = 5, []
    for seed in range(60):
        for part in dirichlet(LABELS, parties, alpha, seed=seed, least=0):
            shares.append(np.bincount(LABELS[part], minlength=10) / 300)
    values = np.concatenate(shares)
    variance = (parties - 1) / (parties**2 * (parties * alpha + 1))
    assert abs(values.mean() - 1 / parties) < 1e-9
    assert abs(values.var() / variance - 1) < 0.12


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(RefusedInput, match="3 samples cannot be dealt to 4 parties"):
        even(3, 4)
    with pytest.raises(RefusedInput, match="alpha: found 0"):
        dirichlet(LABELS, 3, 0)
    with pytest.raises(RefusedInput, match="no draw of a thousand"):
        dirichlet(np.zeros(10, int), 5, 0.001, least=2)
