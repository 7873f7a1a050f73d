"""A stage that raises, or a rank killed in the middle of a step, ends the pipeline with the culprit named; nothing hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from muster.errors import RankFailed
from muster.gang import Engine, RankContext, engine

RANKS = 4


@pytest.fixture(scope="module")
def pipeline_engine() -> Iterator[Engine]:
    """Forked ranks that need not import torch's pipelines each anew."""
    with engine("local", preload=["muster.training.pipeline", "torch.distributed.pipelining"]) as started:
        yield started


class _Trap(nn.Module):
    """A layer that goes wrong in the third micro-batch after it was armed, where `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.armed, self.passed = how, False, 0
        self.linear = nn.Linear(2, 2)

    def forward(self, value: Tensor) -> Tensor:
        self.passed += self.armed
        output: Tensor = self.linear(value)
        if self.passed == 3:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "forward":
                raise ValueError("a stage gone wrong")
            if self.how == "backward":
                output.register_hook(_fail)
        return output


def _fail(gradient: Tensor) -> Tensor:
    raise ValueError("a stage gone wrong")


def _train(engine: Engine, name: str, how: str, culprit: int) -> RankFailed:
    def run(context: RankContext) -> None:
        from muster.training.pipeline import Pipeline

        stages = RANKS * (2 if name in ("interleaved", "zero-bubble") else 1)
        layers = [_Trap(how) if stage == culprit else nn.Linear(2, 2) for stage in range(stages)]
        batch = torch.ones(8, 2)
        pipeline = Pipeline(
            layers,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=8,
            schedule=name,
            balance=[1] * stages,
        )
        pipeline.step(batch, batch)
        trap = layers[culprit]
        assert isinstance(trap, _Trap)
        # in a bidirectional pipeline the other copy of the stage is on rank D-1-p, and stays whole
        trap.armed = context.rank == culprit
        pipeline.step(batch, batch)

    began = time.monotonic()
    with pytest.raises(RankFailed) as failure:
        engine.run(run, ranks=RANKS, threads=1)
    assert time.monotonic() - began < 60
    return failure.value


@pytest.mark.parametrize("how", ["forward", "backward"])
@pytest.mark.parametrize("name", ["1f1b", "zero-bubble", "chimera"])
def test_a_stage_that_raises_stops_all_ranks_with_its_own_error(
    pipeline_engine: Engine, name: str, how: str
) -> None:
    failure = _train(pipeline_engine, name, how, culprit=2)
    assert failure.rank == 2
    assert "rank 2 raised ValueError: a stage gone wrong" in str(failure)


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "chimera"])
def test_a_rank_killed_in_the_middle_of_a_step_is_named(pipeline_engine: Engine, name: str) -> None:
    failure = _train(pipeline_engine, name, "killed", culprit=1)
    assert failure.rank == 1
    assert "rank 1 died" in str(failure)
