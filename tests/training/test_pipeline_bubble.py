"""The bubble of a real pipeline, from its own trace, beside the formula; stages sleep, so that they do not share cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from muster.gang import Engine, RankContext, engine
from muster.training.pipeline import Costs, bubble_formula, make_schedule

RANKS = 4
TRIES = 5


@pytest.fixture(scope="module")
def pipeline_engine() -> Iterator[Engine]:
    """Forked ranks that need not import torch's pipelines each anew."""
    with engine("local", preload=["muster.training.pipeline", "torch.distributed.pipelining"]) as started:
        yield started


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, seconds: float) -> Tensor:
        context.seconds = seconds
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(context.seconds)
        return gradients[0], None


class _Stage(nn.Module):
    """Sleeps in forward, in the backward for its input and in that for its weight."""

    def __init__(self, forward_s: float, input_s: float, weight_s: float) -> None:
        super().__init__()
        self.forward_s, self.input_s, self.weight_s = forward_s, input_s, weight_s
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Tensor:
        time.sleep(self.forward_s)
        return _Sleep.apply(value, self.input_s) + _Sleep.apply(self.weight, self.weight_s)  # type: ignore[no-any-return]


def _measure(
    engine: Engine, name: str, micro_batches: int, unit_s: float, cost: Costs, wanted: float
) -> list[float]:
    """The bubble of each step until one is within 10 % of what is wanted: a busy machine can only widen it."""

    def run(context: RankContext) -> list[float]:
        from muster.training.pipeline import Pipeline

        schedule = make_schedule(name, RANKS, micro_batches)
        # the first stage's input wants a gradient too, so that its backward is as long as the others'
        batch = torch.zeros(micro_batches, 1, requires_grad=True)
        forward, weight = cost.forward * unit_s, cost.weight * unit_s
        stages = [_Stage(forward, cost.backward * unit_s - weight, weight) for _ in range(schedule.stages)]
        pipeline = Pipeline(
            stages,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=micro_batches,
            schedule=name,
            balance=[1] * schedule.stages,
        )
        bubbles: list[float] = []
        while len(bubbles) < TRIES:
            pipeline.step(batch, batch.detach())
            bubbles.append(pipeline.timeline().bubble)
            if abs(bubbles[-1] - wanted) < 0.1 * wanted:
                break
        return bubbles

    return engine.run(run, ranks=RANKS, threads=1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "micro_batches", "backward", "wanted"),
    [
        ("gpipe", 4, 1, 3 / 7),  # (D-1)/(N+D-1)
        ("1f1b", 4, 1, 3 / 7),
        ("1f1b", 8, 2, 3 / 11),
        ("chimera", 4, 1, 2 / 10),  # (D-2)/(2N+D-2)
        ("chimera", 4, 2, 2 / 8),  # (D-2)/(1.5N+D-2)
        ("interleaved", 4, 1, 3 / 11),  # of two stages per rank: (D-1)/(2N+D-1)
        ("looped-bfs", 4, 1, 3 / 11),
    ],
)
def test_the_measured_bubble_is_within_a_tenth_of_the_formula(
    pipeline_engine: Engine, name: str, micro_batches: int, backward: float, wanted: float
) -> None:
    cost = Costs(1, backward)
    formula = bubble_formula(make_schedule(name, RANKS, micro_batches), cost)
    assert formula is not None
    assert float(formula) == pytest.approx(wanted)
    bubbles = _measure(pipeline_engine, name, micro_batches, 0.08, cost, wanted)
    assert min(bubbles) == pytest.approx(wanted, rel=0.1), bubbles
    if name == "chimera":
        assert min(bubbles) < (RANKS - 1) / (micro_batches + RANKS - 1), "not smaller than 1F1B's"


def test_the_measured_bubble_of_zero_bubble_schedules_is_within_a_tenth_of_the_simulation(
    pipeline_engine: Engine,
) -> None:
    """Torch gives the first stage no backward for its input, and the whole of it in place of that for its weights."""
    cost = Costs(1, 2, 1, first_input=False)
    wanted = make_schedule("zero-bubble", RANKS, 4).simulate(cost).bubble
    assert wanted < 3 / 11, "not smaller than interleaved 1F1B's"
    bubbles = _measure(pipeline_engine, "zero-bubble", 4, 0.1, cost, wanted)
    assert min(bubbles) == pytest.approx(wanted, rel=0.1), bubbles


def test_the_pillar_clock_learns_of_forward_backward_and_waiting(pipeline_engine: Engine) -> None:
    def run(context: RankContext) -> dict[str, Any]:
        from muster.training.pipeline import Pipeline

        batch = torch.zeros(4, 1, requires_grad=True)
        pipeline = Pipeline(
            [_Stage(0.02, 0.01, 0.01) for _ in range(RANKS)],
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=4,
            balance=[1] * RANKS,
        )
        context.clock.begin_step(1, sampled=True)
        pipeline.step(batch, batch.detach())
        times = context.clock.end_step()
        assert times is not None
        pillars = context.clock.pillars(times, [])
        timeline = pipeline.timeline()
        return {
            "names": [name for lane, name, _, _ in times.timeline() if lane == "loop"],
            "pillars": pillars,
            "rank": timeline.rank_times(context.rank),
            "makespan": timeline.makespan,
        }

    for found in pipeline_engine.run(run, ranks=RANKS, threads=1):
        pillars, rank = found["pillars"], found["rank"]
        assert found["names"].count("forward") == found["names"].count("backward") == 4
        assert pillars.io + pillars.compute + pillars.comm + pillars.idle == pytest.approx(pillars.wall)
        assert rank.compute + rank.comm + rank.idle == pytest.approx(found["makespan"])
        assert rank.compute >= 4 * 0.04
        # three of seven units are waiting; the clock's step is a little longer than the makespan
        assert pillars.idle == pytest.approx(pillars.wall - rank.compute, abs=0.05)
        assert pillars.idle > 3 * 0.04 * 0.9
