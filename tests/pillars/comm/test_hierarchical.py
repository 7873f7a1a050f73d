"""The all-reduce in two levels: the sum, what crosses between machines, and training with it."""

from __future__ import annotations

import pytest
import torch

from muster.errors import RankFailed


def _summed(context, machines: list[str]):
    from muster.pillars.comm.hierarchical import HierarchicalWire

    wire = HierarchicalWire(None, lambda: machines[context.rank])
    generator = torch.Generator().manual_seed(context.rank)
    tensor = torch.randint(-1000, 1000, (5001,), generator=generator).float()  # sums are exact in fp32
    expected = tensor.clone()
    torch.distributed.all_reduce(expected)
    wire.all_reduce(tensor)
    return torch.equal(tensor, expected), wire.machines, wire.leader, wire.sent_bytes


@pytest.mark.parametrize(
    ("machines", "groups", "sent_words"),
    [
        (
            ["a", "a", "b", "b"],
            [[0, 1], [2, 3]],
            [1 + 1, 1, 1 + 1, 1],
        ),  # leaders: 2 (M-1)/M n out, n back to one
        (["a", "b", "b", "b"], [[0], [1, 2, 3]], [1, 1 + 2, 1, 1]),
        (["b", "a", "b", "a"], [[0, 2], [1, 3]], [2, 2, 1, 1]),
        (["a", "a", "a", "a"], [[0, 1, 2, 3]], [3, 1, 1, 1]),
        (["a", "b", "c", "d"], [[0], [1], [2], [3]], [1.5] * 4),
    ],
)
def test_the_sum_is_that_of_all_ranks_and_only_leaders_cross(
    local_engine, machines, groups, sent_words
) -> None:
    results = local_engine.run(lambda context: _summed(context, machines), ranks=4)
    for rank, (exact, found, leader, sent) in enumerate(results):
        assert exact
        assert found == groups
        assert leader == any(group[0] == rank for group in groups)
        assert sent == pytest.approx(4 * 5001 * sent_words[rank], abs=4)


def _trained(context, hierarchical: bool):
    import hashlib

    from torch.nn.parallel import DistributedDataParallel

    from muster.pillars.comm.exchange import Exchange
    from muster.pillars.comm.hierarchical import HierarchicalWire

    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(16, 16, dtype=torch.float64) for _ in range(4)])
    replica = DistributedDataParallel(net, bucket_cap_mb=0.004)
    if hierarchical:
        machine = "a" if context.rank < 1 else "b"
        exchange = Exchange(
            net.named_parameters(), wire=lambda group: HierarchicalWire(group, lambda: machine)
        )
        replica.register_comm_hook(None, exchange.hook)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(context.rank)
    for _ in range(10):
        optimizer.zero_grad()
        replica(torch.randn(4, 16, dtype=torch.float64, generator=generator)).square().mean().backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    if hierarchical:
        exchange.close()
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest(), weights


def test_training_with_it_is_training_without_it_to_rounding(local_engine) -> None:
    flat = local_engine.run(lambda context: _trained(context, False), ranks=3)
    levels = local_engine.run(lambda context: _trained(context, True), ranks=3)
    assert len({digest for digest, _ in levels}) == 1
    assert torch.allclose(flat[0][1], levels[0][1], rtol=1e-12, atol=1e-14)


def _killed(context):
    import os
    import signal

    from muster.pillars.comm.hierarchical import HierarchicalWire

    wire = HierarchicalWire(None, lambda: "ab"[context.rank % 2])
    for step in range(20):
        if context.rank == 3 and step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        wire.all_reduce(torch.ones(1000))


def test_a_rank_killed_within_one_level_ends_all(local_engine) -> None:
    with pytest.raises(RankFailed, match="rank 3"):
        local_engine.run(_killed, ranks=4)
