"""Compiling is tried, measured, and taken back where it fails or does not pay; all ranks decide alike."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from muster.engine.gang import Engine, RankContext
from muster.pillars.compute import CompiledForward, CompileTrial, try_compiling

CPU = torch.device("cpu")


class Slow(nn.Module):
    """Sleeps where it is not traced: a compiled pass, whose graph has no sleep in it, is faster by that."""

    def __init__(self, sleep_s: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.sleep_s = sleep_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            time.sleep(self.sleep_s)
        return (self.weight * x).sum()


def trial(model: nn.Module, backend: Any, *, must: bool = False) -> tuple[CompileTrial, CompiledForward]:
    compiled = CompiledForward(model, backend=backend)

    def one() -> None:
        model(torch.ones(3)).backward()

    return try_compiling(compiled, one, one, must=must, device=CPU), compiled


def test_what_is_faster_is_kept_and_gives_the_same_result() -> None:
    model = Slow(0.05)
    found, compiled = trial(model, "aot_eager")
    assert (found.kept, compiled.enabled) == (True, True)
    assert found.eager_s is not None
    assert found.compiled_s is not None
    assert found.eager_s > 0.05 > found.compiled_s
    assert model(torch.full((3,), 2.0)).item() == 6.0
    with compiled.eager():
        began = time.perf_counter()
        assert model(torch.full((3,), 2.0)).item() == 6.0
        assert time.perf_counter() - began > 0.05
    assert "forward" in model.__dict__
    compiled.disable()
    assert "forward" not in model.__dict__


def test_what_is_slower_is_taken_back() -> None:
    def slow_backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def run(*arguments: Any) -> Any:
            time.sleep(0.05)
            return graph.forward(*arguments)

        return run

    model = Slow(0.0)
    found, compiled = trial(model, slow_backend)
    assert (found.kept, compiled.enabled, "forward" in model.__dict__) == (False, False, False)
    assert "× as fast as eager" in found.why


def test_a_backend_that_fails_is_named_and_the_model_goes_on_without_it() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise OSError("the disk is on fire")

    model = Slow(0.0)
    for must in (False, True):
        torch._dynamo.reset()
        found, _ = trial(model, broken, must=must)
        assert not found.kept
        assert "the disk is on fire" in found.failure
        assert model(torch.ones(3)).item() == 3.0


def test_if_it_must_be_kept_it_is_not_measured() -> None:
    found, compiled = trial(Slow(0.0), "eager", must=True)
    assert (found.kept, found.eager_s, compiled.enabled) == (True, None, True)


@pytest.mark.parametrize("failing_rank", [None, 1])
def test_all_ranks_decide_alike_also_where_one_cannot_compile(
    local_engine: Engine, failing_rank: int | None
) -> None:
    def decide(context: RankContext) -> tuple[bool, bool, str, float]:
        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
            if context.rank == failing_rank:
                raise RuntimeError("not on this machine")
            return graph.forward

        model = Slow(0.05)
        replica = nn.parallel.DistributedDataParallel(model)
        compiled = CompiledForward(model, backend=backend)

        def joint() -> None:
            replica(torch.full((3,), float(context.rank))).backward()

        def local() -> None:
            with replica.no_sync():
                joint()

        found = try_compiling(compiled, local, joint, must=False, device=CPU, group=context.control)
        replica.zero_grad()
        joint()
        return found.kept, compiled.enabled, found.failure, float(model.weight.grad.sum())  # type: ignore[union-attr]

    results = local_engine.run(decide, ranks=2)
    kept = failing_rank is None
    assert [result[:2] for result in results] == [(kept, kept)] * 2
    assert ("not on this machine" in results[0][2]) is not kept
    assert [result[3] for result in results] == [3 * 0.5] * 2  # the mean of the ranks' inputs, 0 and 1
    assert not dist.is_initialized()
