"""Speed-up, efficiency and what is lost, against numbers worked out by hand; intervals against published ones."""

from __future__ import annotations

import numpy as np
import pytest

from muster.tuning._intervals import median_interval
from muster.tuning._measured import StepTimes, step_times
from muster.tuning._scaling import scaling


def times(ranks: int, samples_per_s: float, batch: int, **shares: float) -> StepTimes:
    """A measurement whose pillars are shares of its step."""
    step = batch / samples_per_s
    pillars = {name: shares.get(name, 0.0) * step for name in ("io", "compute", "comm", "idle")}
    return StepTimes(ranks, 30, samples_per_s, step, pillars, 0.0, pillars, (1.0, 0))


def test_weak_scaling_by_hand() -> None:
    # a step of 1 s for 8 samples on one rank becomes one of 1.25 s for 16 on two: 12.8 samples/s, 1.6 times as many
    one = [times(1, 8.0, 8, compute=1.0)] * 3
    two = [times(2, 12.8, 16, compute=0.8, comm=0.2)] * 3
    found = scaling("weak", {(1, 8): one, (2, 16): two})
    first, last = found.points
    assert (first.speed_up.median, first.efficiency.median, first.lost) == (1.0, 1.0, {})
    assert last.speed_up.median == pytest.approx(1.6)
    assert last.efficiency.median == pytest.approx(0.8)
    assert last.lost == pytest.approx({"io": 0.0, "compute": 0.0, "comm": 0.25, "idle": 0.0})
    assert found.limit == "comm"
    assert "80 % efficient" in found.sentence


def test_strong_scaling_by_hand() -> None:
    # 16 samples in 2 s on one rank, in 1.25 s on four, of which each computes 0.5 s as it should: 0.75 s are lost
    one = [times(1, 8.0, 16, compute=1.0)] * 3
    four = [times(4, 12.8, 16, compute=0.4, idle=0.6)] * 3
    found = scaling("strong", {(1, 16): one, (4, 16): four})
    assert found.points[1].speed_up.median == pytest.approx(1.6)
    assert found.points[1].efficiency.median == pytest.approx(0.4)
    assert found.points[1].lost == pytest.approx({"io": 0.0, "compute": 0.0, "comm": 0.0, "idle": 0.75})
    assert found.limit == "idle"


def test_what_is_lost_sums_to_what_the_step_is_longer_by() -> None:
    one = [times(1, 10.0, 8, compute=0.9, io=0.1)] * 2
    two = [times(2, 15.0, 16, compute=0.7, io=0.2, comm=0.06, idle=0.04)] * 2
    last = scaling("weak", {(1, 8): one, (2, 16): two}).points[-1]
    assert sum(last.lost.values()) == pytest.approx(16 / 15 - 8 / 10)


def test_perfect_scaling_is_limited_by_nothing() -> None:
    found = scaling(
        "weak", {(1, 8): [times(1, 8.0, 8, compute=1.0)], (2, 16): [times(2, 16.0, 16, compute=1.0)]}
    )
    assert found.limit is None
    assert "nothing limits it" in found.sentence


def test_ratios_are_taken_within_a_repeat() -> None:
    # in the second repeat the machine was half as fast for both: the speed-up is 2 in each
    one = [times(1, 8.0, 8, compute=1.0), times(1, 4.0, 8, compute=1.0)]
    two = [times(2, 16.0, 16, compute=1.0), times(2, 8.0, 16, compute=1.0)]
    speed_up = scaling("weak", {(1, 8): one, (2, 16): two}).points[1].speed_up
    assert (speed_up.median, speed_up.low, speed_up.high) == (2.0, 2.0, 2.0)


def test_the_interval_of_a_median_agrees_with_order_statistics() -> None:
    # For n = 101 the exact distribution-free 95 % interval of the median is between the order statistics 41 and 61
    # (binomial with p = 1/2: P(40 < B < 61) = 0.954), whose percentile bootstrap converges to the same.
    interval = median_interval(np.arange(1.0, 102.0).tolist())
    assert (interval.median, interval.count) == (51.0, 101)
    assert abs(interval.low - 41) <= 1
    assert abs(interval.high - 61) <= 1


def test_one_value_has_an_interval_of_no_width_and_none_is_refused() -> None:
    assert median_interval([3.0]).plain() == {"median": 3.0, "low": 3.0, "high": 3.0, "count": 1}
    with pytest.raises(ValueError, match="no values"):
        median_interval([])


def steps(*rows: tuple[int, int, float, float, float, float, float]) -> dict[str, np.ndarray]:
    """Columns of `steps` from (rank, step, io, compute, comm, idle without stall, stall); 4 samples each."""
    rank, step, io, compute, comm, idle, stall = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "rank": rank,
        "step": step,
        "io": io,
        "compute": compute,
        "comm": comm,
        "idle": idle + stall,
        "stall": stall,
        "wall": io + compute + comm + idle + stall,
        "comm_hidden": 0.0 * io,
        "samples": 4 + 0 * rank,
    }


def test_throughput_leaves_checkpoints_out_and_the_rank_waited_for_is_the_one_without_idle_time() -> None:
    # two ranks, two steps of 1 s; rank 1 waits 0.4 s for data and rank 0 for rank 1; then a checkpoint of 5 s
    found = step_times(
        steps(
            (0, 1, 0.0, 0.5, 0.1, 0.4, 0.0),
            (1, 1, 0.4, 0.5, 0.1, 0.0, 0.0),
            (0, 2, 0.0, 0.5, 0.1, 0.4, 5.0),
            (1, 2, 0.4, 0.5, 0.1, 0.0, 5.0),
        )
    )
    assert found.samples_per_s == pytest.approx(16 / 2)
    assert found.step_s == pytest.approx(1.0)
    assert found.shares == pytest.approx({"io": 0.2, "compute": 0.5, "comm": 0.1, "idle": 0.2})
    assert found.critical_shares == pytest.approx({"io": 0.4, "compute": 0.5, "comm": 0.1, "idle": 0.0})
    assert found.slowest == (1.0, 1)
