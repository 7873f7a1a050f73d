"""The bubble of a real pipeline, from its own trace, beside the formula; stages sleep, so that they do not share cores."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from muster.engine.gang import Limits, Supervision
from muster.engine.run_folder import RunFolder
from muster.gang import Engine, RankContext, engine
from muster.training.pipeline import Costs, RankTimes, Schedule, bubble_formula, make_schedule

RANKS = 4
TRIES = 8


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


def _measure(engine: Engine, schedule: Schedule, unit_s: float, cost: Costs, wanted: float) -> list[float]:
    """The bubble of each step until one is within 10 % of what is wanted: a busy machine can only widen it."""

    def run(context: RankContext) -> list[float]:
        from muster.training.pipeline import Pipeline

        # the first stage's input wants a gradient too, so that its backward is as long as the others'
        batch = torch.zeros(schedule.micro_batches, 1, requires_grad=True)
        forward, weight = cost.forward * unit_s, cost.weight * unit_s
        stages = [_Stage(forward, cost.backward * unit_s - weight, weight) for _ in range(schedule.stages)]
        pipeline = Pipeline(
            stages,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=schedule.micro_batches,
            schedule=schedule.name,
            stages_per_rank=schedule.stages_per_rank,
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
    schedule = make_schedule(name, RANKS, micro_batches)
    formula = bubble_formula(schedule, cost)
    assert formula is not None
    assert float(formula) == pytest.approx(wanted)
    bubbles = _measure(pipeline_engine, schedule, 0.08, cost, wanted)
    assert min(bubbles) == pytest.approx(wanted, rel=0.1), bubbles
    if name == "chimera":
        assert min(bubbles) < (RANKS - 1) / (micro_batches + RANKS - 1), "not smaller than 1F1B's"


def test_the_measured_bubble_of_zero_bubble_schedules_is_within_a_tenth_of_the_simulation(
    pipeline_engine: Engine,
) -> None:
    """Torch gives the first stage no backward for its input, and the whole of it in place of that for its weights."""
    cost = Costs(1, 2, 1, first_input=False)
    schedule = make_schedule("zero-bubble", RANKS, 4, stages_per_rank=1)
    wanted = schedule.simulate(cost).bubble
    assert wanted < 3 / 7, "not smaller than 1F1B's"
    bubbles = _measure(pipeline_engine, schedule, 0.08, cost, wanted)
    assert min(bubbles) == pytest.approx(wanted, rel=0.1), bubbles


def test_the_run_folder_of_a_pipeline_tells_its_bubble(pipeline_engine: Engine, tmp_path: Path) -> None:
    """The trace's forward and backward spans give the bubble, and a step's waiting is idle and not computing."""

    def train(context: RankContext) -> list[tuple[float, RankTimes]]:
        from muster.engine.step_ledger import StepLedger
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
        ledger = StepLedger(context, buckets=0, trace_every=1)
        told = []
        for step in (1, 2, 3):
            ledger.begin(step)
            loss = pipeline.step(batch, batch.detach())
            ledger.end(loss=loss * 4, samples=4, flops=0.0, learning_rate=0.0, checkpoint_due=False)
            timeline = pipeline.timeline()
            told.append((timeline.bubble, timeline.rank_times(context.rank)))
        ledger.drain()
        return told

    run = RunFolder.create(tmp_path, "pipeline", app="", steps=3, job_yaml="", environment={})
    limits = Limits(ranks=RANKS, min_ranks=RANKS, max_ranks=RANKS, threads=1)
    told = Supervision(pipeline_engine.launcher(), limits, run=run).supervise(train)
    steps, spans = run.table("steps").to_pylist(), run.table("spans").to_pylist()
    assert len(steps) == 3 * RANKS
    for row in steps:
        mine = [span for span in spans if (span["rank"], span["step"]) == (row["rank"], row["step"])]
        names = Counter(span["name"] for span in mine)
        assert names["forward"] == names["backward"] == 4
        rank_times = told[row["rank"]][row["step"] - 1][1]
        assert row["io"] + row["compute"] + row["comm"] + row["idle"] == pytest.approx(row["wall"])
        assert row["wall"] - row["idle"] >= rank_times.compute >= 4 * 0.04
        waited = sum(span["end"] - span["start"] for span in mine if span["name"] == "wait")
        assert row["idle"] == pytest.approx(waited)
        assert waited >= 0.9 * (rank_times.comm + rank_times.idle)
    for step in (1, 2, 3):
        busy = [
            span for span in spans if span["step"] == step and span["name"] in ("forward", "backward", "loss")
        ]
        makespan = max(span["end"] for span in busy) - min(span["start"] for span in busy)
        bubble = 1 - sum(span["end"] - span["start"] for span in busy) / (RANKS * makespan)
        assert bubble == pytest.approx(told[0][step - 1][0], abs=0.02)


def test_the_costly_layer_is_found_by_measuring(pipeline_engine: Engine) -> None:
    def sizes(context: RankContext) -> list[int]:
        from muster.training.pipeline import Pipeline

        layers = [
            _Stage(0.002, 0.0, 0.002),
            _Stage(0.02, 0.02, 0.0),
            *(_Stage(0.002, 0.0, 0.002) for _ in range(4)),
        ]
        batch = torch.zeros(4, 1)
        return Pipeline(
            layers, context, example=batch, loss_fn=functional.mse_loss, micro_batches=4, schedule="gpipe"
        ).sizes

    assert pipeline_engine.run(sizes, ranks=3, threads=1) == [[1, 1, 4]] * 3
