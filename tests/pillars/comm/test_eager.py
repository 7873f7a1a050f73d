"""The partial all-reduce: nothing is lost or counted twice, replicas stay equal, stragglers do not hold up the others."""

from __future__ import annotations

import time

import pytest
import torch

from muster.errors import RankFailed

STEPS = 16


class _Tap(torch.nn.Module):
    """Layers whose gradients a test chooses: the loss is the sum of parameters times given numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(300)) for _ in range(4))

    def forward(self, wanted: torch.Tensor) -> torch.Tensor:
        return sum((part * wanted[index]).sum() for index, part in enumerate(self.parts))  # type: ignore[return-value]


def _gradient(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return (
        torch.randint(-50, 50, (4, 300), generator=generator).float() * 12
    )  # sums and thirds are exact in fp32


def _conserved(context, straggler: int):
    from torch.nn.parallel import DistributedDataParallel

    from muster.pillars.comm.eager import EagerExchange

    net = _Tap()
    replica = DistributedDataParallel(net, bucket_cap_mb=0.001)
    exchange = EagerExchange(most_behind=3, seed=5)
    replica.register_comm_hook(None, exchange.hook)
    received = torch.zeros(4, 300)
    for step in range(STEPS):
        if context.rank == straggler and step >= 2:
            time.sleep(0.02)
        replica.zero_grad()
        replica(_gradient(step, context.rank)).backward()
        received += torch.stack([part.grad for part in net.parts])
    torch.distributed.barrier()
    unsent = torch.stack(exchange.unsent())  # one parameter in each bucket, in torch's order
    torch.distributed.all_reduce(unsent)
    exchange.close()
    return received, unsent, exchange.late


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows.sum(dim=1).argsort()]


@pytest.mark.parametrize("straggler", [-1, 1])
def test_all_that_was_computed_is_received_once_or_still_unsent(local_engine, straggler: int) -> None:
    results = local_engine.run(lambda context: _conserved(context, straggler), ranks=3)
    computed = sum(_gradient(step, rank) for step in range(STEPS) for rank in range(3))
    for received, unsent, _ in results:
        assert torch.equal(received, results[0][0])  # the same averages everywhere
        torch.testing.assert_close(_sorted(computed - 3 * received), _sorted(unsent), rtol=0, atol=1e-2)
    if straggler >= 0:
        assert results[straggler][2] > 0


def test_a_rank_that_is_killed_ends_the_gang(local_engine) -> None:
    def dying(context):
        import os
        import signal

        from torch.nn.parallel import DistributedDataParallel

        from muster.pillars.comm.eager import EagerExchange

        net = _Tap()
        replica = DistributedDataParallel(net)
        replica.register_comm_hook(None, EagerExchange().hook)
        for step in range(200):
            if step == 9 and context.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            replica(_gradient(step, context.rank)).backward()

    with pytest.raises(RankFailed, match="rank 1"):
        local_engine.run(dying, ranks=2)
