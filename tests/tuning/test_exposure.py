"""Every blocked moment belongs to one collective: by hand, on a fine time grid, and summing to the columns of `steps`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from muster.engine.clock import Bucket, partition
from muster.tuning._exposure import collective_costs
from muster.tuning._size_classes import size_classes

Columns = dict[str, Any]


def tables(ranks: list[tuple[list[Bucket], tuple[float, float], float]]) -> tuple[Columns, Columns]:
    """Tables of one step, as the pillar clock books it: of each rank its buckets, when it was blocked, its stall."""
    steps: list[dict[str, Any]] = []
    collectives: list[dict[str, Any]] = []
    for rank, (buckets, blocked, stall) in enumerate(ranks):
        pillars = partition(wall=1.0, io=0.0, stall=stall, blocked=blocked, buckets=buckets)
        who = {"attempt": 0, "rank": rank, "step": 1}
        columns = ("comm", "idle", "stall", "comm_hidden")
        steps.append(who | {name: getattr(pillars, name) for name in columns})
        for bucket in buckets:
            collectives.append(
                who
                | {"kind": "all_reduce", "group": "world", "bytes": bucket.bytes}
                | {"enter": bucket.enter, "last_enter": bucket.last_enter, "end": bucket.end}
            )
    return _columns(steps), _columns(collectives)


def _columns(rows: list[dict[str, Any]]) -> Columns:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def bucket(index: int, enter: float, last_enter: float, end: float, size: int = 1000) -> Bucket:
    return Bucket(index=index, bytes=size, ready=enter, enter=enter, last_enter=last_enter, end=end)


def test_by_hand_two_buckets_of_which_the_second_waits_for_the_last_rank() -> None:
    # computed until 0.5; the first bucket is under way from 0.2 to 0.6, the second from 0.6 (its turn) to 0.9,
    # the last rank entered the second at 0.7: the loop is idle from 0.5 to 0.7 and communicates from 0.7 to 0.9
    steps, collectives = tables([([bucket(0, 0.2, 0.2, 0.6), bucket(1, 0.5, 0.7, 0.9)], (0.5, 0.9), 0.0)])
    costs = collective_costs(steps, collectives)
    assert costs.waited == pytest.approx([0.1, 0.1])
    assert costs.exposed == pytest.approx([0.0, 0.2])
    assert costs.hidden == pytest.approx([0.3, 0.0])
    assert costs.service == pytest.approx([0.4, 0.2])


def test_by_hand_buckets_in_flight_together_queue_in_the_order_in_which_they_end() -> None:
    steps, collectives = tables(
        [([bucket(0, 0.1, 0.1, 0.4), bucket(1, 0.2, 0.2, 0.5), bucket(2, 0.3, 0.3, 0.9)], (0.3, 0.9), 0.0)]
    )
    costs = collective_costs(steps, collectives)
    assert costs.service == pytest.approx([0.3, 0.1, 0.4])
    assert costs.exposed == pytest.approx([0.1, 0.1, 0.4])
    assert costs.hidden == pytest.approx([0.2, 0.0, 0.0])


def test_a_stall_in_the_step_is_no_collectives_fault() -> None:
    steps, collectives = tables([([bucket(0, 0.5, 0.5, 0.6)], (0.5, 0.6), 0.3)])
    costs = collective_costs(steps, collectives)
    assert (costs.exposed.sum(), costs.waited.sum()) == (pytest.approx(0.1), 0.0)


@pytest.mark.parametrize("seed", range(40))
def test_sums_over_collectives_are_the_columns_of_the_steps_and_a_fine_grid_agrees(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ranks, count = int(draw.integers(1, 4)), int(draw.integers(1, 7))
    enters = np.sort(draw.uniform(0.1, 0.5, (ranks, count)), axis=1)
    last = enters.max(axis=0)
    end = 0.0
    ends = np.array(
        [
            end := max(end, begin) + took
            for begin, took in zip(last, draw.uniform(0.01, 0.1, count), strict=True)
        ]
    )
    made = []
    for rank in range(ranks):
        buckets = [bucket(i, enters[rank, i], last[i], ends[i]) for i in range(count)]
        blocked_from = enters[rank, -1] + draw.uniform(0, 0.02)
        made.append((buckets, (min(blocked_from, ends[-1]), float(ends[-1])), float(draw.uniform(0, 0.1))))
    steps, collectives = tables(made)
    costs = collective_costs(steps, collectives)
    for rank in range(ranks):
        mine = collectives["rank"] == rank
        comm, waiting = steps["comm"][rank], steps["idle"][rank] - steps["stall"][rank]
        assert costs.exposed[mine].sum() == pytest.approx(comm, abs=1e-12)
        assert costs.waited[mine].sum() == pytest.approx(waiting, abs=1e-12)
        assert costs.hidden[mine].sum() == pytest.approx(steps["comm_hidden"][rank], abs=1e-12)
        exposed, waited, hidden = brute_force(made[rank][0], made[rank][1])
        assert costs.exposed[mine] == pytest.approx(exposed, abs=2e-4)
        assert costs.waited[mine] == pytest.approx(waited, abs=2e-4)
        assert costs.hidden[mine] == pytest.approx(hidden, abs=2e-4)


def brute_force(buckets: list[Bucket], blocked: tuple[float, float]) -> tuple[Any, Any, Any]:
    """The definitions of docs/profile.md, moment by moment on a grid of 20,000 moments."""
    exposed, waited, hidden = (np.zeros(len(buckets)) for _ in range(3))
    grid = (np.arange(20_000) + 0.5) / 20_000
    last_enter_of_last = max(buckets, key=lambda each: each.index).last_enter
    for moment in grid:
        if blocked[0] <= moment < blocked[1]:
            next_to_end = min((b.end, i) for i, b in enumerate(buckets) if b.end > moment)[1]
            (waited if moment < last_enter_of_last else exposed)[next_to_end] += 1 / grid.size
        else:
            in_flight = [(b.end, i) for i, b in enumerate(buckets) if b.last_enter <= moment < b.end]
            if in_flight:
                hidden[min(in_flight)[1]] += 1 / grid.size
    return exposed, waited, hidden


def test_size_classes_count_each_collective_once_for_all_ranks() -> None:
    buckets = [
        bucket(0, 0.1, 0.1, 0.2, size=4096),
        bucket(1, 0.2, 0.2, 0.3, size=4097),
        bucket(2, 0.3, 0.3, 0.5, size=10_000),
    ]
    steps, collectives = tables([(buckets, (0.3, 0.5), 0.0)] * 2)
    small, large = size_classes(steps, collectives, link_time_s=lambda size: size / 1e6)
    assert (small.low, small.high, small.count, small.bytes) == (0, 4096, 1, 4096)
    assert (large.low, large.high, large.count, large.bytes) == (4096, 16384, 2, 14_097)
    assert small.bytes_per_s == pytest.approx(4096 / 0.1)
    assert large.bytes_per_s == pytest.approx(14_097 / 0.3)
    assert large.achieved == pytest.approx(14_097 / 0.3 / 1e6)
    assert (small.exposed_s, small.hidden_s) == (0.0, pytest.approx(0.1))
    assert (large.exposed_s, large.hidden_s) == (pytest.approx(0.2), pytest.approx(0.1))


def test_a_run_without_collectives_has_no_classes() -> None:
    steps, collectives = tables([([bucket(0, 0.1, 0.1, 0.2)], (0.1, 0.2), 0.0)])
    assert size_classes(steps, {name: values[:0] for name, values in collectives.items()}) == ()
