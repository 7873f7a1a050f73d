"""How fast this machine selects, scatters, streams and multiplies: what compression costs beside communication."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from muster.pillars.comm.compress.compressor import ComputeRates
from muster.pillars.comm.compress.selection import reaching


def measure_rates(device: torch.device | None = None, *, numel: int = 1 << 20) -> ComputeRates:
    """Measures in about a tenth of a second, with as many threads as torch is set to.

    Arguments:
        device: where the buckets are; the CPU by default.
        numel: elements of the vectors it measures with; large enough to leave the caches.
    """
    device = device or torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(numel, generator=generator).to(device)
    other = values.clone()
    chosen = torch.randperm(numel, generator=generator)[: numel // 100].sort().values.to(device)
    picked = values[chosen]
    rows = 512
    matrix, vectors = values.view(rows, -1), torch.ones(numel // rows, 4, device=device)
    one = torch.ones(1, device=device)

    streamed = _median_s(lambda: other.add_(values), device)
    selected = _median_s(lambda: reaching(values, 2.5758), device)
    scattered = _median_s(lambda: other.index_add_(0, chosen, picked), device)
    multiplied = _median_s(lambda: matrix @ vectors, device)
    called = _median_s(lambda: [one.add_(1.0) for _ in range(100)], device) / 100
    return ComputeRates(
        stream_bytes_per_s=12 * numel / streamed,
        select_elements_per_s=numel / selected,
        scatter_elements_per_s=len(chosen) / scattered,
        matmul_flops_per_s=2 * numel * 4 / multiplied,
        call_s=called,
    )


def _median_s(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    taken = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin)
    return max(median(taken[1:]), 1e-9)  # the first one paid for allocation
