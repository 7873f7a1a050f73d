"""The renewal model: its formula, a simulation of it, and the best length by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from muster.engine.pool.lease_length import best_length_s, expected_s
from muster.errors import RefusedInput


def test_the_formula_gives_the_known_value() -> None:
    """s = 1, lambda = 0.5, R = 0.1: (1/0.5 + 0.1)(e^0.5 - 1)."""
    assert round(expected_s(1.0, interruptions_per_s=0.5, restart_s=0.1), 4) == 1.3623
    assert expected_s(7.0, interruptions_per_s=0.0) == 7.0


@pytest.mark.parametrize(("work", "rate", "restart"), [(1.0, 0.5, 0.1), (3.0, 0.4, 2.0), (0.2, 3.0, 0.0)])
def test_the_formula_is_the_mean_of_what_happens(work: float, rate: float, restart: float) -> None:
    generator, count = np.random.default_rng(0), 40_000
    times = np.zeros(count)
    unfinished = np.arange(count)
    while len(unfinished):
        until = generator.exponential(1 / rate, len(unfinished))
        done = until >= work
        times[unfinished] += np.where(done, work, until + restart)
        unfinished = unfinished[~done]
    expected = expected_s(work, interruptions_per_s=rate, restart_s=restart)
    assert abs(times.mean() - expected) < 4 * times.std() / math.sqrt(count)


@pytest.mark.parametrize(("overhead", "rate"), [(0.5, 0.01), (2.0, 1 / 30), (10.0, 0.5), (1e-3, 1e-4)])
def test_the_best_length_is_the_least_cost_on_a_grid(overhead: float, rate: float) -> None:
    best = best_length_s(overhead, interruptions_per_s=rate)
    grid = best * np.geomspace(0.2, 5, 20_001)
    cost = [expected_s(s + overhead, interruptions_per_s=rate, restart_s=3.0) / s for s in grid]
    assert abs(grid[int(np.argmin(cost))] / best - 1) < 2e-3


def test_rare_interruptions_give_youngs_rule() -> None:
    assert best_length_s(1.0, interruptions_per_s=1e-8) == pytest.approx(math.sqrt(2e8), rel=1e-3)


@pytest.mark.parametrize(("overhead", "rate"), [(0.0, 1.0), (1.0, -1.0), (1.0, math.inf)])
def test_what_makes_no_sense_is_refused(overhead: float, rate: float) -> None:
    with pytest.raises(RefusedInput, match="expected above 0"):
        best_length_s(overhead, interruptions_per_s=rate)


def test_negative_work_is_refused() -> None:
    with pytest.raises(RefusedInput, match="work_s: found -1"):
        expected_s(-1.0, interruptions_per_s=1.0)
