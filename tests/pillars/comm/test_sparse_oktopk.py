"""Ok-Topk: what it sums, and how little it sends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import namespaces
from muster.gang import Engine, RankContext

NUMEL = 30_000


def gradient(rank: int, step: int, skew: float = 0.0) -> torch.Tensor:
    """Gaussian; with ``skew`` the front of the bucket is larger, and ever more of it."""
    values = torch.randn(NUMEL, generator=torch.Generator().manual_seed(1000 * step + rank))
    return values * torch.exp(-skew * (1 + step / 50) * torch.arange(NUMEL) / NUMEL)


@pytest.mark.parametrize(("ranks", "skew"), [(2, 0.0), (3, 3.0), (4, 0.0), (8, 0.0), (8, 3.0)])
def test_a_rank_sends_at_most_6k_words_whatever_the_number_of_ranks(
    local_engine: Engine, ranks: int, skew: float
) -> None:
    steps = 66  # more than two periods of thresholds and one of boundaries

    def run(context: RankContext) -> tuple[int, int, list[int]]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        torch.set_num_threads(1)
        compressor = load_compressor("oktopk")(
            parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"), density=0.02
        )
        wire, selected = Wire(), []
        for step in range(steps):
            bucket = gradient(context.rank, step, skew)
            compressor.average(bucket, wire)
            assert int(bucket.count_nonzero()) == compressor.selected
            selected.append(compressor.selected)
        return wire.sent_bytes, compressor.wire_bytes, selected

    everybody = local_engine.run(run, ranks=ranks)
    selected = everybody[0][2]
    # An index and a value are a word each; k is what was selected of the sum, step by step.
    bound = 6 * sum(selected) * (ranks - 1) / ranks
    for sent, counted, same in everybody:
        assert sent == counted
        assert same == selected
        assert sent / 4 <= bound
    # Nobody keeps the bound by selecting next to nothing, or everything: 2 % of the bucket, give or take a quarter.
    assert min(selected) >= 0.8 * 600
    assert max(selected) <= 1.25 * 600


def test_the_first_step_is_the_top_k_of_the_sum_of_the_ranks_own_top_k(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[list[float]]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        compressor = load_compressor("oktopk")(
            parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"), density=0.02
        )
        results = []
        for step in range(2):
            bucket = gradient(context.rank, step)
            compressor.average(bucket, Wire())
            results += [bucket.tolist(), compressor.residual.tolist()]
        return results

    everybody = local_engine.run(run, ranks=3)
    assert everybody[0][0] == everybody[1][0] == everybody[2][0]
    assert everybody[0][2] == everybody[1][2] == everybody[2][2]

    k, total, picked = 600, np.zeros(NUMEL, np.float32), []
    for rank in range(3):
        mine = gradient(rank, 0).numpy()
        picked.append(np.argsort(-np.abs(mine), kind="stable")[:k])
        total[picked[-1]] += mine[picked[-1]]
    chosen = np.argsort(-np.abs(total), kind="stable")[:k]
    mean = np.zeros(NUMEL, np.float32)
    mean[chosen] = total[chosen] / np.float32(3)
    assert everybody[0][0] == mean.tolist()
    for rank in range(3):
        left = gradient(rank, 0).numpy().copy()
        left[np.intersect1d(picked[rank], chosen)] = 0
        assert everybody[rank][1] == left.tolist()


def test_nothing_is_lost_over_many_steps(local_engine: Engine) -> None:
    """The sum over steps of what was applied, and what is left, is the sum of all gradients."""

    def run(context: RankContext) -> list[float]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        compressor = load_compressor("oktopk")(
            parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"), density=0.01
        )
        applied, wire = torch.zeros(NUMEL, dtype=torch.float64), Wire()
        for step in range(40):
            bucket = gradient(context.rank, step, skew=2.0)
            compressor.average(bucket, wire)
            applied += bucket
        left = compressor.residual.double()
        torch.distributed.all_reduce(left)
        return (applied + left / context.world_size).tolist()

    results = local_engine.run(run, ranks=4)
    expected = sum(gradient(rank, step, skew=2.0).double() for rank in range(4) for step in range(40)) / 4
    np.testing.assert_allclose(results[0], expected.numpy(), atol=2e-5)


SENDER = """
    import os, sys, torch, torch.distributed as dist
    from muster.pillars.comm.compress import Wire, load_compressor, parts_of
    meeting, rank = sys.argv[1], 0
    for other in range(1, 4):
        if os.fork() == 0:
            rank = other
            break
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=4)
    compressor = load_compressor("oktopk")(
        parts_of([(400_000,)]), torch.float32, torch.device("cpu"), density=0.05)
    wire = Wire()
    def sent_by_the_kernel():
        for line in open("/proc/net/dev"):
            if line.strip().startswith("lo:"):
                return int(line.split(":")[1].split()[8])
    dist.barrier()
    before = sent_by_the_kernel()
    dist.barrier()
    selected = 0
    for step in range(8):
        bucket = torch.randn(400_000, generator=torch.Generator().manual_seed(10 * step + rank))
        compressor.average(bucket, wire)
        selected += compressor.selected
    dist.barrier()
    everybody = torch.tensor(wire.sent_bytes)
    on_the_wire = sent_by_the_kernel() - before
    dist.all_reduce(everybody)
    if rank == 0:
        print(on_the_wire, int(everybody), selected, flush=True)
    dist.barrier()
    os._exit(0)
"""


@pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or "possible")
def test_the_kernel_counts_what_we_count(tmp_path: Path) -> None:
    """Four ranks in a network namespace of their own; its loopback device carries nothing else."""
    program = tmp_path / "sender.py"
    program.write_text(textwrap.dedent(SENDER))
    with namespaces.empty() as network:
        command = network.within(sys.executable, str(program), str(tmp_path / "meeting"))
        told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    on_the_wire, payload, selected = (int(word) for word in told.split())
    # Headers of TCP and IP, acknowledgements and Gloo's own come on top; loopback's packets are large.
    assert payload < on_the_wire < 1.1 * payload
    assert on_the_wire / 4 <= 4 * 6 * selected * 3 / 4
