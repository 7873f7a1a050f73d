"""Bucket layouts: against every partition there is, against DistributedDataParallel's own rule, with cut tensors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from muster.pillars.comm.layout import capped_layout, cost_by_bytes, fly, merged, plan_layout


def all_layouts(count: int) -> Iterator[tuple[int, ...]]:
    """The 2^(count-1) ways to cut a row of gradients."""
    for cuts in range(count):
        for chosen in combinations(range(1, count), cuts):
            yield (*chosen, count)


def end_by_hand(ready: np.ndarray, sizes: np.ndarray, ends: tuple[int, ...], seconds) -> float:
    time, first = -np.inf, 0
    for stop in ends:
        time = max(time, ready[stop - 1]) + seconds(sum(sizes[first:stop]))
        first = stop
    return time


def random_case(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    ready = np.sort(generator.uniform(0, 1, count))
    return ready, generator.lognormal(0, 1.5, count)


def affine(seed: int):
    generator = np.random.default_rng(seed + 1000)
    alpha, beta = generator.uniform(0.0, 0.3), generator.uniform(0.01, 0.3)
    return lambda size: alpha + beta * size


def kinked(size):
    """Cheap up to 1, a jump there, dearer per byte beyond 4: neither convex nor concave."""
    return 0.02 + 0.03 * size + 0.05 * (size > 1) + 0.1 * np.maximum(size - 4, 0)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_plan_ends_when_the_best_of_all_partitions_ends(count: int) -> None:
    for seed in range(25):
        ready, sizes = random_case(seed, count)
        for seconds in (affine(seed), kinked):
            best = min(end_by_hand(ready, sizes, layout, seconds) for layout in all_layouts(count))
            cost = cost_by_bytes(sizes, seconds)
            flights = fly(ready, plan_layout(ready, cost), cost)
            assert flights[-1].end == pytest.approx(best, rel=1e-12)
            assert [flight.first for flight in flights[1:]] == [flight.stop for flight in flights[:-1]]
            assert flights[0].first == 0
            assert flights[-1].stop == count


def test_cutting_tensors_never_ends_earlier_where_the_cost_is_affine() -> None:
    """Every tensor in three pieces, each ready when the tensor is: the best of all layouts of pieces is no better."""
    for seed in range(40):
        ready, sizes = random_case(seed, 4)
        seconds = affine(seed)
        pieces, when = np.repeat(sizes / 3, 3), np.repeat(ready, 3)
        cut = min(end_by_hand(when, pieces, layout, seconds) for layout in all_layouts(12))
        cost = cost_by_bytes(sizes, seconds)
        assert fly(ready, plan_layout(ready, cost), cost)[-1].end <= cut + 1e-12


def test_where_large_messages_are_slower_per_byte_cutting_would_help() -> None:
    """The limit of the argument above, as its documentation states it."""

    def superadditive(size):
        return 0.01 + 0.1 * size + np.maximum(size - 1, 0)

    cost, halves = cost_by_bytes([2.0], superadditive), cost_by_bytes([1.0, 1.0], superadditive)
    whole = fly([0.0], plan_layout([0.0], cost), cost)[-1].end
    cut = fly([0.0, 0.0], plan_layout([0.0, 0.0], halves), halves)[-1].end
    assert cut < whole / 2


def test_slack_buys_fewer_buckets_and_is_not_overdrawn() -> None:
    fewer = 0
    for seed in range(30):
        ready, sizes = random_case(seed, 12)
        cost = cost_by_bytes(sizes, lambda size: 0.001 + 0.03 * size)
        exact = fly(ready, plan_layout(ready, cost), cost)
        lean = fly(ready, plan_layout(ready, cost, slack=0.05), cost)
        assert len(lean) <= len(exact)
        assert lean[-1].end - ready[0] <= 1.05 * (exact[-1].end - ready[0]) + 1e-9
        fewer += len(exact) - len(lean)
    assert fewer > 30  # more than one bucket saved in the mean


def test_no_latency_lets_every_gradient_leave_alone_and_no_bandwidth_cost_joins_all() -> None:
    ready, sizes = [0.0, 1.0, 2.0], [4.0, 4.0, 4.0]
    assert plan_layout(ready, cost_by_bytes(sizes, lambda size: 0.2 * size)) == [1, 2, 3]
    assert plan_layout([0.0, 0.0, 0.0], cost_by_bytes(sizes, lambda size: 1.0 + 0 * size)) == [3]


def test_size_limits_cut_as_torch_cuts() -> None:
    for seed in range(30):
        generator = np.random.default_rng(seed)
        counts = generator.integers(1, 3000, 40)
        caps = [int(cap) for cap in generator.integers(100, 20_000, generator.integers(1, 5))]
        tensors = [torch.empty(int(count)) for count in counts]
        indices, _ = dist._compute_bucket_assignment_by_size(tensors, caps, [False] * len(tensors))
        assert capped_layout([4.0 * count for count in counts], caps) == [
            max(bucket) + 1 for bucket in indices
        ]


def test_joining_neighbours_keeps_order_and_loses_little() -> None:
    for seed in range(10):
        ready, sizes = random_case(seed, 200)
        cost = cost_by_bytes(sizes, lambda size: 0.0005 + 0.002 * size)
        exact = fly(ready, plan_layout(ready, cost), cost)[-1].end
        groups = merged(ready, sizes, 64)
        assert len(groups) <= 64
        assert groups == sorted(set(groups))
        assert groups[-1] == 200
        starts = [0, *groups[:-1]]
        coarse_sizes = [sum(sizes[a:b]) for a, b in zip(starts, groups, strict=True)]
        coarse = cost_by_bytes(coarse_sizes, lambda size: 0.0005 + 0.002 * size)
        coarse_ready = [ready[b - 1] for b in groups]
        end = fly(coarse_ready, plan_layout(coarse_ready, coarse), coarse)[-1].end
        assert end <= exact * 1.02


def test_a_plan_over_two_thousand_gradients_is_cheap() -> None:
    ready, sizes = random_case(0, 2000)
    cost = cost_by_bytes(sizes, lambda size: 0.001 + 0.0001 * size)
    ends = plan_layout(ready, cost)
    assert ends[-1] == 2000


@pytest.mark.parametrize(("ready", "reason"), [([], "at least one"), ([1.0, 0.5], "order")])
def test_a_layout_of_nonsense_is_refused(ready: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan_layout(ready, cost_by_bytes([1.0] * len(ready), lambda size: size))
