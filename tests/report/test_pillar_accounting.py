"""Seconds, shares and bounds against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from muster.report._columns import bin_means, bins, step_means, survives
from muster.report._pillars import (
    compute_only_bound,
    gain_bounds,
    limit_sentence,
    shares,
    step_seconds,
    time_per_rank,
)


def rows(*content: tuple[int, int, float, float, float, float]) -> dict[str, np.ndarray]:
    """Columns of `steps` from (attempt, rank, io, compute, comm, idle)."""
    attempt, rank, io, compute, comm, idle = (np.array(column) for column in zip(*content, strict=True))
    zero = np.zeros(rank.size)
    return {
        "attempt": attempt,
        "rank": rank,
        "io": io,
        "compute": compute,
        "comm": comm,
        "idle": idle,
        "wall": io + compute + comm + idle,
        "comm_hidden": zero + 0.5,
        "stall": zero,
        "samples": zero.astype(np.int64) + 4,
    }


def bounds(data: dict[str, np.ndarray]) -> dict[str, float]:
    return gain_bounds(data["attempt"], data["rank"], data)


def test_seconds_of_a_rank_are_summed_over_its_steps_and_shares_over_the_ranks() -> None:
    data = rows((0, 0, 1.0, 6.0, 2.0, 1.0), (0, 1, 0.0, 8.0, 2.0, 0.0), (0, 0, 1.0, 6.0, 2.0, 1.0))
    zero, one = time_per_rank(data)
    assert (zero.io, zero.compute, zero.comm, zero.idle, zero.wall) == (2.0, 12.0, 4.0, 2.0, 20.0)
    assert (one.rank, one.compute, one.samples, one.comm_hidden) == (1, 8.0, 4, 0.5)
    assert shares((zero, one)) == pytest.approx(
        {"io": 2 / 30, "compute": 20 / 30, "comm": 6 / 30, "idle": 2 / 30}
    )


def test_of_equal_ranks_without_idle_time_the_bound_is_wall_over_wall_minus_the_pillar() -> None:
    data = rows((0, 0, 2.0, 5.0, 3.0, 0.0), (0, 1, 2.0, 5.0, 3.0, 0.0))
    assert bounds(data) == pytest.approx({"io": 10 / 8, "compute": 10 / 5, "comm": 10 / 7, "idle": 1.0})


def test_a_slow_loader_on_one_rank_is_charged_for_the_idle_time_of_the_other() -> None:
    # Without the loader's 5 s both ranks need 5 s, so the run takes half; the shares alone would say 20 / 15.
    data = rows((0, 0, 5.0, 5.0, 0.0, 0.0), (0, 1, 0.0, 5.0, 0.0, 5.0))
    assert bounds(data)["io"] == pytest.approx(2.0)


def test_idle_time_is_gained_by_dealing_out_the_straggler_s_work() -> None:
    # 10 s and 6 s of work: 8 s each if it were even.
    data = rows((0, 0, 0.0, 10.0, 0.0, 0.0), (0, 1, 0.0, 6.0, 0.0, 4.0))
    assert bounds(data)["idle"] == pytest.approx(10 / 8)


def test_a_restart_is_a_barrier_so_bounds_add_up_over_attempts() -> None:
    # Rank 0 is busy in the first attempt and rank 1 in the second: 8 + 8 s at least without communication.
    data = rows(
        (0, 0, 0.0, 8.0, 2.0, 0.0),
        (0, 1, 0.0, 2.0, 2.0, 6.0),
        (1, 0, 0.0, 2.0, 2.0, 6.0),
        (1, 1, 0.0, 8.0, 2.0, 0.0),
    )
    assert bounds(data)["comm"] == pytest.approx(20 / 16)
    assert step_seconds(data["attempt"], data["rank"], data["wall"]) == 20.0


def test_a_run_of_compute_alone_could_not_be_bounded_by_removing_compute() -> None:
    data = rows((0, 0, 0.0, 3.0, 0.0, 0.0))
    assert bounds(data) == {"io": 1.0, "compute": float("inf"), "comm": 1.0, "idle": 1.0}


@pytest.mark.parametrize("seed", range(5))
def test_no_replay_of_the_recorded_work_beats_the_bound(seed: int) -> None:
    """Lockstep steps of random work last as long as their busiest rank, with and without a pillar."""
    draw = np.random.default_rng(seed)
    work = draw.exponential(1.0, (3, 40, 4))  # [io compute comm, steps, ranks]
    lasts = work.sum(axis=0).max(axis=1)
    idle = lasts[:, None] - work.sum(axis=0)
    rank = np.tile(np.arange(4), 40)
    pillars = {name: work[place].ravel() for place, name in enumerate(("io", "compute", "comm"))}
    bound = gain_bounds(np.zeros_like(rank), rank, pillars | {"idle": idle.ravel()})
    for place, name in enumerate(("io", "compute", "comm")):
        without = np.delete(work, place, axis=0).sum(axis=0).max(axis=1).sum()
        assert 1.0 <= lasts.sum() / without <= bound[name]


def test_the_sentence_names_the_largest_pillar_and_its_bound() -> None:
    data = rows((0, 0, 1.0, 8.1, 0.5, 0.4), (0, 1, 1.0, 8.1, 0.5, 0.4))
    only = compute_only_bound(data["attempt"], data["rank"], data["wall"], data["compute"])
    assert limit_sentence(shares(time_per_rank(data)), bounds(data), only) == (
        "Compute limits this run: 81 % of rank time. Without any communication, idle time or waiting "
        "for data it would be at most 1.23 × as fast."
    )
    data = rows((0, 0, 6.0, 3.0, 1.0, 0.0))
    assert limit_sentence(shares(time_per_rank(data)), bounds(data), 1.0) == (
        "Waiting for data limits this run: 60 % of rank time. If data were always there, "
        "it would be at most 2.50 × as fast."
    )


def test_without_a_step_nothing_is_claimed() -> None:
    empty = {name: column[:0] for name, column in rows((0, 0, 1.0, 1.0, 1.0, 1.0)).items()}
    assert time_per_rank(empty) == ()
    assert bounds(empty) == {}
    assert step_seconds(empty["attempt"], empty["rank"], empty["wall"]) == 0.0
    assert limit_sentence({}, {}, 1.0).startswith("No step has been recorded")


def test_a_step_done_again_replaces_the_earlier_one_on_every_rank() -> None:
    step = np.array([1, 1, 2, 2, 2])
    attempt = np.array([0, 0, 0, 0, 1])
    assert survives(step, attempt).tolist() == [True, True, False, False, True]


def test_the_lineage_is_that_of_the_engine_s_own_function() -> None:
    from muster.engine.records import surviving

    draw = np.random.default_rng(3)
    step, attempt = draw.integers(1, 30, 200), draw.integers(0, 4, 200)
    listed = [
        {"step": int(s), "attempt": int(a), "row": row}
        for row, (s, a) in enumerate(zip(step, attempt, strict=True))
    ]
    assert np.flatnonzero(survives(step, attempt)).tolist() == [row["row"] for row in surviving(listed)]


def test_means_over_ranks_and_bins_leave_out_what_is_unknown() -> None:
    steps, means = step_means(np.array([1, 1, 2, 3]), np.array([1.0, 3.0, np.nan, 5.0]))
    assert steps.tolist() == [1, 2, 3]
    assert means[[0, 2]].tolist() == [2.0, 5.0]
    assert np.isnan(means[1])
    edges = bins(5, 2)
    assert edges.tolist() == [0, 2, 5]
    assert bin_means(np.array([1.0, 3.0, np.nan, 4.0, 6.0]), edges).tolist() == [2.0, 5.0]
    assert bins(3, 10).tolist() == [0, 1, 2, 3]
