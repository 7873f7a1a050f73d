"""Numbers of instances over time: sums by hand, and against counting in small steps."""

from __future__ import annotations

import math
import random

import pytest

from muster.errors import RefusedInput
from muster.fleet import Availability

# Two instances for 10 s, none for 5 s, three for 5 s, one for 20 s.
STEPS = Availability((0.0, 10.0, 15.0, 20.0), (2, 0, 3, 1), 40.0, notice_s=2.0)


def test_instance_seconds_are_the_areas_of_the_steps() -> None:
    assert STEPS.instance_seconds() == 2 * 10 + 0 * 5 + 3 * 5 + 1 * 20
    assert STEPS.instance_seconds(12.0) == 20
    assert STEPS.instance_seconds(17.0) == 20 + 2 * 3
    assert STEPS.instance_seconds(40 + 3.0) == 55 + 6  # after its end it begins again
    assert STEPS.mean == 55 / 40


def test_interruptions_are_the_instances_that_went() -> None:
    assert STEPS.interruptions == 2 + 0 + 2
    assert STEPS.interruptions_per_s == 4 / 55


def test_a_change_holds_from_its_time_on() -> None:
    assert [STEPS.at(time) for time in (0, 9.999, 10, 15, 39.999, 40, 50)] == [2, 2, 0, 3, 1, 2, 0]
    assert [STEPS.next_change_s(time) for time in (0, 9.999, 10, 20, 39, 40)] == [10, 10, 15, 40, 40, 50]
    assert Availability((0.0,), (3,), 5.0).next_change_s(1) == math.inf
    assert Availability((0.0, 2.0, 4.0), (1, 0, 1), 6.0).next_change_s(5) == 8  # at 6 s nothing changes


def test_compression_divides_all_times() -> None:
    fast = STEPS.compressed(10)
    assert fast.times_s == (0, 1, 1.5, 2)
    assert (fast.length_s, fast.notice_s) == (4, 0.2)
    assert fast.instance_seconds() == pytest.approx(5.5)
    assert fast.interruptions_per_s == pytest.approx(10 * STEPS.interruptions_per_s)


@pytest.mark.parametrize("begin", [0.0, 3.0, 10.0, 17.5, 39.0])
def test_another_beginning_changes_only_where_it_begins(begin: float) -> None:
    moved = STEPS.begun_at(begin)
    assert moved.length_s == 40
    assert moved.instance_seconds() == pytest.approx(55)
    assert [moved.at(time / 4) for time in range(160)] == [STEPS.at(begin + time / 4) for time in range(160)]


def test_a_run_begins_when_something_is_there() -> None:
    late = Availability((0.0, 7.0, 9.0), (0, 1, 0), 10.0)
    assert late.begun_with_an_instance() == Availability((0.0, 2.0), (1, 0), 10.0)
    with pytest.raises(RefusedInput, match="never any instance"):
        Availability((0.0,), (0,), 1.0).begun_with_an_instance()


def test_scaling_keeps_the_proportion_and_who_is_there() -> None:
    trace = Availability((0.0, 1.0, 2.0, 3.0), (16, 8, 1, 0), 4.0)
    assert trace.scaled(8).instances == (8, 4, 1, 0)
    assert Availability((0.0, 1.0), (1, 0), 2.0).scaled(8).instances == (8, 0)
    assert Availability((0.0, 1.0), (16, 15), 2.0).scaled(8).instances == (8,)  # ceil(7.5): no change is left


def test_sums_agree_with_counting_in_small_steps() -> None:
    draw = random.Random(0)
    for _ in range(50):
        ticks = sorted(draw.sample(range(1, 400), draw.randint(1, 30)))
        changes = [(0.0, draw.randint(0, 5)), *((tick / 8, draw.randint(0, 5)) for tick in ticks)]
        steps = Availability.of(changes, 50.0)
        until = draw.randrange(0, 1600) / 8
        counted = sum(steps.at((k + 0.5) / 8) for k in range(int(until * 8))) / 8
        assert steps.instance_seconds(until) == pytest.approx(counted)
        after = [k / 8 for k in range(int(until * 8) + 1, 10_000) if steps.at(k / 8) != steps.at((k - 1) / 8)]
        assert steps.next_change_s(until) == (after[0] if after else math.inf)


@pytest.mark.parametrize(
    ("times", "instances", "length", "notice", "told"),
    [
        ((), (), 1.0, 0.0, "0 times and 0 numbers"),
        ((0.0, 1.0), (1,), 2.0, 0.0, "2 times and 1 numbers"),
        ((1.0,), (1,), 2.0, 0.0, "begins at 1 s"),
        ((0.0, 1.0, 1.0), (1, 2, 3), 2.0, 0.0, "expected times that grow"),
        ((0.0, 3.0), (1, 2), 3.0, 0.0, "expected times that grow"),
        ((0.0,), (1,), math.inf, 0.0, "expected times that grow"),
        ((0.0,), (1,), math.nan, 0.0, "expected times that grow"),
        ((0.0,), (-1,), 1.0, 0.0, "found -1 instances"),
        ((0.0,), (1,), 1.0, -1.0, "a notice of -1 s"),
    ],
)
def test_what_is_no_such_function_is_refused(
    times: tuple[float, ...], instances: tuple[int, ...], length: float, notice: float, told: str
) -> None:
    with pytest.raises(RefusedInput, match=told):
        Availability(times, instances, length, notice)


def test_what_cannot_be_made_from_it_is_refused() -> None:
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RefusedInput, match="compress: found"):
            STEPS.compressed(factor)
    with pytest.raises(RefusedInput, match="begin: found 40 s"):
        STEPS.begun_at(40.0)
    with pytest.raises(RefusedInput, match="scaled to 0 instances"):
        STEPS.scaled(0)
