"""What the machine itself gives two processes: the same work in one process and in two, with no communication at all.

Two cores may be two threads of one core, or share a power budget, a cache or a neighbour; then two processes that never
speak to each other are not twice as fast as one either. Measured beside a scaling experiment, it is the most the experiment
could have reached.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier as BarrierType
from typing import Any


def arithmetic(until: float) -> float:
    """Steps of a linear congruential generator until a time; touches no memory to speak of."""
    count, state = 0, 1
    while time.perf_counter() < until:
        for _ in range(10_000):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
        count += 1
    return count


def training(until: float) -> float:
    """Training steps of EDSR-small on 8 patches of 64 pixels until a time; shares caches and memory with its like."""
    import torch

    from muster.vision import EDSR

    torch.set_num_threads(1)
    model = EDSR("edsr-small")
    optimizer = torch.optim.Adam(model.parameters())
    low, high = torch.rand(8, 3, 32, 32), torch.rand(8, 3, 64, 64)
    count = 0
    while time.perf_counter() < until:
        torch.nn.functional.l1_loss(model(low), high).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        count += 1
    return count


_WORK = {"arithmetic": arithmetic, "training": training}


def speed_up(work: str, seconds: float) -> float:
    """How much more two processes get done at once than one alone.

    Arguments:
        work: `arithmetic` or `training`.
        seconds: how long each of the two measurements lasts.
    """
    return _rate(work, 2, seconds) / _rate(work, 1, seconds)


def _rate(work: str, processes: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    ready, counts = context.Barrier(processes), context.Queue()
    children = [context.Process(target=_spin, args=(work, ready, seconds, counts)) for _ in range(processes)]
    for child in children:
        child.start()
    total = sum(counts.get(timeout=seconds + 120) for _ in children)
    for child in children:
        child.join()
    return total / seconds


def _spin(work: str, ready: BarrierType, seconds: float, counts: Any) -> None:
    _WORK[work](time.perf_counter() + 0.5)  # imports, caches, clock frequency
    ready.wait()
    begun = time.perf_counter()
    count = _WORK[work](begun + seconds)
    counts.put(count * seconds / (time.perf_counter() - begun))
