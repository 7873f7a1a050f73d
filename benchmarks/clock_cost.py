"""How much CPU time the pillar clock itself takes in a step, by its marginal cost."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from muster.engine.gang import RankContext


class ClockCost(NamedTuple):
    """CPU seconds of the clock's work in one step."""

    loop: float
    hook_per_bucket: float
    buckets: int

    @property
    def total(self) -> float:
        return self.loop + self.hook_per_bucket * self.buckets


def clock_cost(context: RankContext, buckets: int) -> ClockCost:
    """Measures the clock of one rank; all ranks must call it together, and no step may be open.

    Arguments:
        context: the rank.
        buckets: collectives in a step.
    """
    return ClockCost(_loop_cost(context, buckets), _hook_cost(context), buckets)


def _loop_cost(context: RankContext, buckets: int) -> float:
    """CPU time of one step's calls outside the hook (s), as the training loop and the ledger make them."""
    clock, repeats = context.clock, 2000
    clock.begin_step(0)
    clock.end_step()
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(buckets)))
    replica = DistributedDataParallel(model, bucket_cap_mb=1e-6)
    replica.register_comm_hook(None, clock.hook(allreduce_hook))
    for _ in range(2):
        replica(torch.ones(1, 1)).sum().backward()
    clock.begin_step(0)
    replica(torch.ones(1, 1)).sum().backward()
    passed = clock.end_step()
    assert passed is not None
    assert len(passed.flights) == buckets
    began = time.thread_time()
    for _ in range(repeats):
        clock.begin_step(1)
        with clock.waiting():
            pass
        for name in ("forward", "backward", "optimizer"):
            with clock.span(name):
                pass
        with clock.in_a_collective():
            pass
        clock.pillars(passed, clock.resolve_enters(passed))
    spent = time.thread_time() - began
    clock.end_step()
    return spent / repeats


def _hook_cost(context: RankContext, passes: int = 15, more: int = 1000) -> float:
    """CPU time of one bucket's hook (s), by letting it run many times more in a real backward pass.

    Counted in all threads, with its future, its part in the autograd engine's final callbacks and the marks there. Every
    bucket is counted at the price of the last one, the only one that has such callbacks.
    """
    clock = context.clock
    replica = DistributedDataParallel(torch.nn.Linear(4, 4))
    repeats = 0

    def landed_at_once(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    repeated = clock.hook(landed_at_once)

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        for _ in range(repeats):
            repeated(state, bucket)
        return repeated(state, bucket)

    hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    replica.register_comm_hook(None, hook)
    inputs, spent = torch.ones(2, 4), {0: [], more: []}
    for number in range(2 * passes + 4):
        repeats = more if number % 2 else 0
        clock.begin_step(number)
        began = time.process_time()
        replica(inputs).sum().backward()
        if number >= 4:
            spent[repeats].append(time.process_time() - began)
        clock.end_step()
    return float(np.median(spent[more]) - np.median(spent[0])) / more
