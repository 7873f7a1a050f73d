"""Deadlines follow what was measured, of the worker itself if it is known, and are not moved by a few slow leases."""

from __future__ import annotations

import random

import numpy as np
import pytest

from muster.engine.pool.pace import Expectation, Pace


def test_median_and_spread_are_those_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 0.2, 100_000)
    found = Expectation.of(values)
    assert found.median == pytest.approx(3.0, abs=0.005)
    assert found.spread == pytest.approx(0.2, rel=0.02)


def test_while_nothing_is_known_the_first_allowance_holds() -> None:
    pace = Pace(first_s=42.0)
    assert pace.allowed_s("a", 100) == 42.0
    assert pace.typical_s(100) is None


def test_a_known_worker_is_judged_by_itself_and_a_new_one_by_the_others() -> None:
    """Two workers at 0.1 s a sample and one at 0.5: 6 spreads or half of the median above it."""
    pace = Pace(least_s=0.0)
    for worker, rate in (("a", 0.1), ("b", 0.1), ("slow", 0.5)):
        for _ in range(5):
            pace.ended(worker, 20, 20 * rate)
    assert pace.allowed_s("slow", 10) == pytest.approx(10 * 0.5 * 1.5)
    assert pace.allowed_s("a", 10) == pytest.approx(10 * 0.1 * 1.5)
    assert pace.allowed_s("new", 10) == pytest.approx(10 * 0.1 * 1.5)
    assert pace.typical_s(10) == pytest.approx(1.0)
    pace.ended("new", 10, 30.0)
    assert pace.expectation("new") != Expectation.of([3.0])  # one lease says little


def test_the_spread_widens_the_allowance_and_outliers_do_not() -> None:
    draws = random.Random(1)
    even, uneven, hit = Pace(), Pace(), Pace()
    for number in range(32):
        time = draws.gauss(1.0, 0.01)
        even.ended("a", 10, time)
        uneven.ended("a", 10, draws.gauss(1.0, 0.3))
        hit.ended("a", 10, 100.0 if number % 8 == 0 else time)
    assert uneven.allowed_s("a", 10) > 1.3 * even.allowed_s("a", 10)
    assert hit.allowed_s("a", 10) == pytest.approx(even.allowed_s("a", 10), rel=0.05)


def test_a_worker_that_changes_its_speed_is_known_anew() -> None:
    pace = Pace(remembered=8)
    for _ in range(50):
        pace.ended("a", 1, 1.0)
    for _ in range(8):
        pace.ended("a", 1, 5.0)
    assert pace.allowed_s("a", 1) == pytest.approx(7.5)


def test_no_lease_gets_less_than_the_least() -> None:
    pace = Pace(least_s=2.0)
    for _ in range(3):
        pace.ended("a", 1000, 0.001)
    assert pace.allowed_s("a", 1) == 2.0
