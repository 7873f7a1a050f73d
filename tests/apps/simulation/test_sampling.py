"""The order of members: exact inclusion probabilities at every length and deadline, against brute force."""

from __future__ import annotations

from itertools import combinations
from math import factorial, sqrt

import numpy as np
import pytest

from muster.apps.simulation.sampling import (
    RunOrder,
    draw_order,
    expected_exceedance,
    informativeness,
)
from muster.errors import RefusedInput

SIZES = np.array([1.0, 0.6, 0.35, 0.2, 0.15, 0.1, 0.05])


def schedule(order, durations, workers):
    """When each member ends, where a free worker takes the next one of the order: the oracle, one event at a time."""
    free, ends = [0.0] * workers, np.empty(len(order))
    for member in order:
        worker = free.index(min(free))
        free[worker] += durations[member]
        ends[member] = free[worker]
    return ends


def test_the_first_n_weighted_by_their_inverse_probability_are_unbiased_and_uncorrelated_for_every_n():
    """In 40,000 orders the mean of ``1[i in sample] / p_i`` is 1 for each member, and that of products of two is 1."""
    orders, members = 40_000, len(SIZES)
    keys = (1 - np.random.default_rng(1).random((orders, members))) / SIZES
    ranked = np.sort(keys, axis=1)
    for count in (2, 3, 5):
        threshold = ranked[:, count, None]
        inside = keys < threshold
        assert (inside.sum(axis=1) == count).all()
        shares = inside / np.minimum(1, threshold * SIZES)
        assert (np.abs(shares.mean(axis=0) - 1) <= 4 * shares.std(axis=0) / sqrt(orders) + 1e-12).all()
        for i, j in combinations(range(members), 2):
            product = shares[:, i] * shares[:, j]
            assert product.mean() == pytest.approx(1, abs=4.5 * product.std() / sqrt(orders) + 1e-12)
    # And these are the numbers that the code works with.
    for row in range(5):
        order = RunOrder(SIZES, keys[row])
        finished = keys[row] < ranked[row, 3]
        sample = order.prefix(finished)
        np.testing.assert_array_equal(sample.used, finished)
        np.testing.assert_allclose(sample.probability, np.minimum(1, ranked[row, 3] * SIZES))


def test_larger_members_come_first_in_proportion():
    """With sizes far below the whole, the first of all is member i with a probability in proportion to its size."""
    sizes = np.repeat([4.0, 2.0, 1.0], 40)
    first = np.array([draw_order(sizes, seed=(3, k)).members[0] for k in range(4000)])
    drawn = np.array([(sizes[first] == size).sum() for size in (4.0, 2.0, 1.0)])
    expected = 4000 * np.array([4, 2, 1]) / 7
    assert ((drawn - expected) ** 2 / expected).sum() < 13.8  # chi-squared, 2 degrees of freedom, 0.1 %


def test_equal_sizes_give_every_order_the_same_chance():
    seen: dict[tuple[int, ...], int] = {}
    for k in range(4800):
        order = tuple(draw_order(np.ones(4), seed=k).members.tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == factorial(4)
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 49.7  # chi-squared, 23 degrees, 0.1 %


def test_a_seed_fixes_the_order():
    assert draw_order(SIZES, seed=4).members.tolist() == draw_order(SIZES, seed=4).members.tolist()
    assert draw_order(SIZES, seed=4).keys.tolist() != draw_order(SIZES, seed=5).keys.tolist()


def test_the_prefix_ends_at_the_first_member_that_has_not_finished():
    order = RunOrder(np.ones(5), np.array([0.5, 0.1, 0.9, 0.2, 0.7]))  # runs 1, 3, 0, 4, 2
    sample = order.prefix(np.array([False, True, True, True, False]))
    assert np.flatnonzero(sample.used).tolist() == [1, 3]  # 2 has finished early, and does not count
    np.testing.assert_allclose(sample.probability, 0.5)  # the key of member 0
    nothing = order.prefix(np.zeros(5, bool))
    assert not nothing.used.any()
    assert (nothing.probability > 0).all()
    everything = order.prefix(np.ones(5, bool))
    assert everything.used.all()
    assert (everything.probability == 1).all()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_probability_to_finish_by_a_deadline_is_that_found_by_moving_each_member_through_the_order(
    workers,
):
    """Brute force: a member's key is put just before and just after each other key, and the whole schedule is run again."""
    random = np.random.default_rng(workers)
    compared = 0
    for _ in range(40):
        members = 12
        sizes, durations = random.uniform(0.2, 1, members), random.choice([1.0, 2.0, 5.0], members)
        order = draw_order(sizes, seed=int(random.integers(1 << 30)))
        deadline = float(random.uniform(0.2, 0.8) * durations.sum() / workers)
        finished = schedule(order.members, durations, workers) <= deadline
        known = np.where(finished, durations, np.nan)  # what runs on is not known
        sample = order.finished_by(finished, known, deadline_s=deadline, workers=workers)
        np.testing.assert_array_equal(sample.used, finished)
        for member in np.flatnonzero(finished):
            others = np.delete(order.keys, member)
            in_time = []
            for place in [0.0, *sorted(others)]:  # just after each of these keys
                keys = order.keys.copy()
                keys[member] = place * (1 + 1e-12) + 1e-15
                ends = schedule(np.argsort(keys), durations, workers)
                in_time.append(ends[member] <= deadline)
            assert in_time == sorted(in_time, reverse=True)  # it is a threshold
            last = in_time.count(True)
            threshold = sorted(others)[last - 1] if last <= len(others) else np.inf
            assert sample.probability[member] == pytest.approx(min(1, threshold * sizes[member]))
            compared += 1
    assert compared > 100


def test_by_a_deadline_slow_members_bias_the_prefix_of_parallel_workers_but_not_all_that_finished():
    """Four workers; members that matter take four times as long. Two estimates of a sum that is known, in 1,500 orders."""
    members, workers, deadline, orders = 15, 4, 10.0, 1500
    slow = np.arange(members) % 3 == 0
    durations, values = np.where(slow, 8.0, 2.0), np.where(slow, 1.0, 0.0)
    sizes = np.random.default_rng(8).uniform(0.5, 1, members)
    by_prefix, by_all, counts = np.empty(orders), np.empty(orders), np.empty((orders, 2))
    for k in range(orders):
        order = draw_order(sizes, seed=(8, k))
        finished = schedule(order.members, durations, workers) <= deadline
        prefix = order.prefix(finished)
        whole = order.finished_by(finished, durations, deadline_s=deadline, workers=workers)
        by_prefix[k] = (values / prefix.probability)[prefix.used].sum()
        by_all[k] = (values / whole.probability)[whole.used].sum()
        counts[k] = prefix.used.sum(), whole.used.sum()
    truth = values.sum()
    assert by_all.mean() == pytest.approx(truth, abs=3.5 * by_all.std() / sqrt(orders))
    assert by_prefix.mean() < truth - 5 * by_prefix.std() / sqrt(orders)  # slow members are missing
    assert counts[:, 1].mean() > counts[:, 0].mean() + 1  # results that the prefix throws away


def test_with_one_worker_the_prefix_is_unbiased_whatever_members_take():
    members, deadline, orders = 12, 15.0, 4000
    slow = np.arange(members) % 2 == 0
    durations, values = np.where(slow, 6.0, 1.0), np.where(slow, 1.0, 0.0)
    found = np.empty(orders)
    for k in range(orders):
        order = draw_order(np.linspace(0.5, 1, members), seed=(9, k))
        sample = order.prefix(schedule(order.members, durations, 1) <= deadline)
        found[k] = (values / sample.probability)[sample.used].sum()
    assert found.mean() == pytest.approx(values.sum(), abs=3.5 * found.std() / sqrt(orders))


def test_no_other_sizes_make_the_expected_variance_smaller():
    """Neyman's allocation: with inclusion probabilities in proportion to these sizes, the sum of the curves' variances, each
    in its own unit, is less than with 300 other sizes that have as many members in the sample."""
    random = np.random.default_rng(6)
    weights = random.dirichlet(np.full(40, 2.0))
    expected = random.uniform(0.05, 0.95, (40, 3, 4))
    variance = weights[:, None, None] ** 2 * expected * (1 - expected)
    cost = (variance / variance.sum(axis=0)).sum(axis=(1, 2))

    def total(sizes):
        probability = 5 * sizes / sizes.sum()
        assert probability.max() < 1
        return float((cost / probability).sum())

    best = informativeness(weights, expected, doubt=0.01)
    for _ in range(300):
        assert total(best) < total(best * np.exp(0.3 * random.standard_normal(40)))


def test_expectations_are_those_of_a_logistic_distribution():
    found = expected_exceedance(np.array([[1.0, 2.0, 0.0]]), np.array([1.0, 2.0]), 0.5)
    assert found.shape == (1, 3, 2)
    assert found[0, 0, 0] == pytest.approx(0.5)
    assert found[0, 1, 1] == pytest.approx(0.5)
    assert found[0, 0, 1] == pytest.approx(1 - found[0, 1, 0])
    assert 0 < found[0, 2, 0] < 1e-8
    # One and a half standard deviations: 1 / (1 + exp(1.5 pi / sqrt 3)).
    assert expected_exceedance([[1.0]], [np.exp(0.75)], 0.5)[0, 0, 0] == pytest.approx(
        1 / (1 + np.exp(1.5 * np.pi / sqrt(3)))
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: RunOrder(np.array([1.0, 0.0]), np.ones(2)), "sizes: expected a finite number above 0"),
        (lambda: RunOrder(np.ones(2), np.ones(3)), "2 sizes and 3 keys"),
        (lambda: draw_order(SIZES, seed=1).prefix(np.ones(3, bool)), r"finished: found shape \(3,\)"),
        (
            lambda: draw_order(SIZES, seed=1).finished_by(
                np.ones(7, bool), np.ones(7), deadline_s=9, workers=0
            ),
            "workers: found 0",
        ),
        (
            lambda: draw_order(SIZES, seed=1).finished_by(
                np.ones(7, bool), -np.ones(7), deadline_s=9, workers=1
            ),
            "durations_s: expected seconds",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(RefusedInput, match=says):
        call()
