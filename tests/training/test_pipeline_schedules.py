"""What each rank of a pipeline would do when, against the formulas of the schedules' authors and against hand-made grids."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest

from muster.errors import RefusedInput
from muster.training.pipeline import Costs, RankTimes, Schedule, bubble_formula, make_schedule

SIZES = [(2, 2), (2, 6), (4, 4), (4, 8), (6, 6), (6, 18)]
RATIOS = [(1, 1), (1, 2), (3, 1)]


def _bubble(schedule: Schedule, forward: int, backward: int, weight: int = 0) -> Fraction:
    """Idle time over all time, counted slot by slot from the simulated spans, in whole numbers."""
    spans = schedule.simulate(Costs(forward, backward, weight)).spans
    makespan = max(int(span.end) for span in spans)
    busy = sum(1 for span in spans for _ in range(int(span.start), int(span.end)))
    return 1 - Fraction(busy, schedule.ranks * makespan)


@pytest.mark.parametrize(("f", "b"), RATIOS)
@pytest.mark.parametrize(
    ("name", "d", "n"),
    [
        *((name, d, n) for name in ("gpipe", "1f1b") for d, n in [*SIZES, (3, 5), (1, 4), (4, 9)]),
        ("gpipe", 4, 1),
        ("gpipe", 5, 3),
    ],
)
def test_gpipe_and_1f1b_idle_for_d_minus_1_of_n_plus_d_minus_1(
    name: str, d: int, n: int, f: int, b: int
) -> None:
    """Huang et al. 2019, section 2.3; whatever forward and backward take."""
    assert _bubble(make_schedule(name, d, n), f, b) == Fraction(d - 1, n + d - 1)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_chimera_idles_for_d_minus_2_of_2n_plus_d_minus_2_if_backward_takes_as_long(d: int, n: int) -> None:
    assert _bubble(make_schedule("chimera", d, n), 1, 1) == Fraction(d - 2, 2 * n + d - 2)


@pytest.mark.parametrize("d", [2, 4, 6, 8, 10, 16, 32])
def test_chimera_idles_for_d_minus_2_of_1_5_n_plus_d_minus_2_if_backward_takes_twice_as_long(d: int) -> None:
    bubble = _bubble(make_schedule("chimera", d, d), 1, 2)
    assert bubble == Fraction(d - 2) / (Fraction(3, 2) * d + d - 2)
    assert bubble < _bubble(make_schedule("1f1b", d, d), 1, 2)


@pytest.mark.parametrize(("d", "n"), SIZES)
@pytest.mark.parametrize(("f", "b"), RATIOS)
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("name", ["interleaved", "looped-bfs"])
def test_interleaving_divides_the_bubble_time_by_the_stages_per_rank(
    name: str, v: int, d: int, n: int, f: int, b: int
) -> None:
    """Narayanan et al. 2021: bubble time over ideal time is (D-1)/(vN), of the same model cut into v times as many stages."""
    bubble = _bubble(make_schedule(name, d, n, stages_per_rank=v), f, b)
    assert bubble / (1 - bubble) == Fraction(d - 1, v * n)


@pytest.mark.parametrize(("d", "n"), SIZES)
@pytest.mark.parametrize(("f", "b", "w"), [(1, 2, 1), (1, 3, 1), (2, 4, 2), (2, 3, 1)])
@pytest.mark.parametrize("v", [1, 2])
def test_zb1p_idles_for_forward_plus_input_minus_weight_per_other_rank(
    v: int, d: int, n: int, f: int, b: int, w: int
) -> None:
    """Qi et al. 2024: (p-1)(T_F + T_B - T_W), where T_B is the backward for the input."""
    bubble = _bubble(make_schedule("zero-bubble", d, n, stages_per_rank=v), f, b, w)
    assert bubble / (1 - bubble) == Fraction((d - 1) * (f + (b - w) - w), n * v * (f + b))


@pytest.mark.parametrize("d", [2, 4, 6])
def test_in_zbv_no_rank_idles_between_its_first_and_its_last_action(d: int) -> None:
    """Qi et al. 2024, if forward and both halves of the backward take as long, and there are at least 2D micro-batches."""
    timeline = make_schedule("zbv", d, 2 * d).simulate(Costs(1, 2, 1))
    for rank in range(d):
        spans = timeline.of_rank(rank)
        assert spans[-1].end - spans[0].start == sum(span.end - span.start for span in spans) == 12 * d


@pytest.mark.parametrize(
    ("name", "v"),
    [
        ("gpipe", 1),
        ("1f1b", 1),
        ("chimera", 1),
        ("interleaved", 2),
        ("looped-bfs", 2),
        ("zero-bubble", 2),
        ("zbv", 2),
    ],
)
@pytest.mark.parametrize(("d", "n"), SIZES)
@pytest.mark.parametrize(("f", "b", "w"), [(1, 1, 0), (1, 2, 1), (2, 3, 1)])
def test_the_formula_is_what_the_simulation_finds(
    name: str, v: int, d: int, n: int, f: int, b: int, w: int
) -> None:
    schedule = make_schedule(name, d, n, stages_per_rank=v)
    formula = bubble_formula(schedule, Costs(f, b, w))
    if name == "zbv" and not (f == w == b - w and n >= 2 * d):
        assert formula is None
    else:
        assert formula == _bubble(schedule, f, b, w)


@pytest.mark.parametrize(
    "name", ["gpipe", "1f1b", "chimera", "interleaved", "looped-bfs", "zero-bubble", "zbv"]
)
@pytest.mark.parametrize(("d", "n"), [(2, 2), (4, 4), (4, 6), (4, 8), (4, 10)])
def test_every_micro_batch_goes_once_through_every_stage_and_back(name: str, d: int, n: int) -> None:
    schedule = make_schedule(name, d, n)
    done = Counter(
        (action.kind, action.stage, action.micro_batch) for order in schedule.orders for action in order
    )
    backward = "B" if name in ("gpipe", "1f1b", "chimera", "interleaved", "looped-bfs") else "IW"
    wanted = {
        (kind, stage, micro)
        for kind in "F" + backward
        for stage in range(schedule.stages)
        for micro in range(n)
    }
    assert set(done) == wanted
    assert set(done.values()) == {1}
    timeline = schedule.simulate()
    starts = {span.action: span.start for span in timeline.spans}
    for rank, order in enumerate(schedule.orders):
        assert all(schedule.rank_of(action.stage, action.replica) == rank for action in order)
        assert sorted(order, key=starts.__getitem__) == list(order)


def test_chimera_drawn_for_four_ranks_has_two_idle_slots_in_each() -> None:
    """D - 2 = 2, where 1F1B has 2(D-1) = 6; worked out by hand."""
    drawn = make_schedule("chimera", 4, 4).simulate().draw()
    assert [line.split()[2:] for line in drawn.splitlines()] == [
        ["0", "1", ".", "2'", "[2]'", "3'", "[3]'", "[0]", ".", "[1]"],
        [".", "0", "2'", "1", "3'", "[2]'", "[0]", "[3]'", "[1]", "."],
        [".", "2'", "0", "3'", "1", "[0]", "[2]'", "[1]", "[3]'", "."],
        ["2'", "3'", ".", "0", "[0]", "1", "[1]", "[2]'", ".", "[3]'"],
    ]


def test_a_timeline_can_be_read_by_other_programs() -> None:
    timeline = make_schedule("1f1b", 2, 2).simulate(Costs(1, 2))
    read = json.loads(timeline.to_json())
    assert (read["ranks"], read["stages"], read["makespan"], read["bubble"]) == (
        2,
        2,
        9.0,
        pytest.approx(1 / 3),
    )
    assert [
        (span["rank"], span["name"], span["micro_batch"], span["start"], span["end"])
        for span in read["spans"]
    ] == [
        (0, "forward", 0, 0, 1),
        (0, "forward", 1, 1, 2),
        (0, "backward", 0, 4, 6),
        (0, "backward", 1, 7, 9),
        (1, "forward", 0, 1, 2),
        (1, "backward", 0, 2, 4),
        (1, "forward", 1, 4, 5),
        (1, "backward", 1, 5, 7),
    ]


def test_waiting_for_the_network_and_waiting_for_a_neighbour_are_told_apart() -> None:
    """GPipe, two ranks, one micro-batch, an action takes 1 and a message 3.

    Rank 0 computes until 1, rank 1 from 4 to 6, rank 0 from 9 to 10. Each waits 3 for a message and 5 for the other's work.
    """
    timeline = make_schedule("gpipe", 2, 1).simulate(latency=3)
    assert timeline.makespan == 10
    assert [timeline.rank_times(rank) for rank in (0, 1)] == [RankTimes(compute=2, comm=3, idle=5)] * 2


@pytest.mark.parametrize(
    ("name", "d", "n", "v", "message"),
    [
        ("gpiep", 4, 4, None, "there is no 'gpiep'; right would be one of gpipe, 1f1b"),
        ("1f1b", 0, 4, None, "0 ranks and 4 micro-batches cannot be; right would be at least 1"),
        ("1f1b", 4, 0, None, "4 ranks and 0 micro-batches cannot be"),
        ("1f1b", 4, 3, None, "1f1b cannot have 3 for 4 ranks; right would be at least 4"),
        ("chimera", 3, 6, None, "3 is odd; right would be an even number of ranks"),
        (
            "interleaved",
            4,
            9,
            None,
            "deals 9 into 2 rounds of 4 ranks, which leaves 1; right would be 8 or 12",
        ),
        (
            "zero-bubble",
            2,
            5,
            None,
            "deals 5 into 2 rounds of 2 ranks, which leaves 1; right would be 4 or 6",
        ),
        ("zbv", 4, 8, 3, "zbv cannot have 3 on a rank; right would be 2"),
        ("gpipe", 4, 8, 2, "gpipe cannot have 2 on a rank; right would be 1"),
        ("interleaved", 4, 8, 0, "interleaved cannot have 0 on a rank; right would be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    name: str, d: int, n: int, v: int | None, message: str
) -> None:
    with pytest.raises(RefusedInput, match=message) as refused:
        make_schedule(name, d, n, stages_per_rank=v)
    assert "\n" not in str(refused.value)
