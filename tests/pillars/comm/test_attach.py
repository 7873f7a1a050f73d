"""`muster.comm.attach`: another layout, the same gradients; the same choice on all ranks; refusals; state."""

from __future__ import annotations

import pytest
import torch

from muster.errors import RankFailed


def _net(width: int = 48, layers: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(width, width, dtype=torch.float32) for _ in range(layers)])


def _batch(step: int, rank: int, width: int = 48) -> torch.Tensor:
    return torch.randn(4, width, generator=torch.Generator().manual_seed(1000 * step + rank))


def _wrap(net: torch.nn.Module, **options: object):
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(net, gradient_as_bucket_view=True, **options)


def _link(ranks: int):
    from muster.pillars.comm.link import Link

    return Link.uniform(ranks, latency_s=2e-4, bytes_per_s=20e6, shared=1.0)


def _hash(net: torch.nn.Module) -> str:
    import hashlib

    return hashlib.sha256(
        b"".join(parameter.detach().numpy().tobytes() for parameter in net.parameters())
    ).hexdigest()


def _layouts(replica) -> list[int]:
    """The bytes of the model's buckets as torch tells them."""
    told = replica._get_ddp_logging_data()
    return [int(size) for size in (told.get("rebuilt_bucket_sizes") or told["bucket_sizes"]).split(",")]


def _train(replica, net, steps: int, rank: int, first: int = 0, after=None) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(first, first + steps):
        replica(_batch(step, rank)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        if after is not None:
            after(step)


def _mean_gradients(context):
    """At every step the gradient is the mean of what each rank would have computed alone."""
    from muster import comm
    from muster.pillars.comm.tuner import Pace

    net = _net()
    replica = _wrap(net)
    attached = comm.attach(replica, link=_link(context.world_size), pace=Pace(3, 1, 2, check_every=8))
    worst = 0.0
    for step in range(40):
        alone = [torch.zeros_like(parameter) for parameter in net.parameters()]
        for rank in range(context.world_size):
            twin = _net()
            twin.load_state_dict(net.state_dict())
            twin(_batch(step, rank)).square().mean().backward()
            for total, parameter in zip(alone, twin.parameters(), strict=True):
                total += parameter.grad / context.world_size
        replica(_batch(step, context.rank)).square().mean().backward()
        for expected, parameter in zip(alone, net.parameters(), strict=True):
            scale = float(expected.abs().max())
            worst = max(worst, float((parameter.grad - expected).abs().max()) / scale)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.01 * parameter.grad
        replica.zero_grad(set_to_none=step % 3 == 0)
    return worst, attached.settled, [decision["what"] for decision in attached.decisions], _hash(net)


def test_every_step_of_a_tuned_loop_has_the_mean_gradient_whatever_is_tried(local_engine) -> None:
    results = local_engine.run(_mean_gradients, ranks=2)
    for worst, settled, _, _ in results:
        assert worst < 2**-7  # bf16 has eight bits of significand; fp32 steps are far below
        assert settled
    assert results[0][2] == results[1][2]
    assert results[0][3] == results[1][3]


def _imposed(context):
    """A named compression and a layout of our own, seen by torch."""
    from muster.pillars.comm.reducer import rebuild_reducer, reduced_parameters

    net = _net(layers=4)
    replica = _wrap(net)
    _train(replica, net, 2, context.rank)
    before = _hash(net)
    names = reduced_parameters(replica)[1]
    order = list(reversed(range(len(names))))
    seen: list[tuple[int, int]] = []

    def hook(state, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append((bucket.index(), bucket.buffer().numel()))
        work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0] / context.world_size)

    hook.__annotations__ = {
        "bucket": torch.distributed.GradBucket,
        "return": torch.futures.Future[torch.Tensor],
    }
    rebuild_reducer(replica, order=order, ends=[1, 4, 8], hook=hook)
    unchanged = before == _hash(net)
    _train(replica, net, 3, context.rank, first=2)
    with_hook = _hash(net)

    plain = _net(layers=4)
    _train(_wrap(plain), plain, 5, context.rank)
    return seen, unchanged, with_hook == _hash(plain)


def test_an_imposed_layout_is_the_very_layout_and_on_two_ranks_trains_to_the_same_bits(local_engine) -> None:
    bias, weight = 48, 48 * 48
    each = [bias, 2 * weight + bias, 2 * weight + 2 * bias]  # backwards: bias, weight, bias, weight...
    for seen, unchanged, same_bits in local_engine.run(_imposed, ranks=2):
        assert unchanged
        assert seen == [(index, size) for _ in range(3) for index, size in enumerate(each)]
        assert same_bits  # a sum of two numbers has one order


def _by_limits(context):
    from muster import comm

    net = _net()
    replica = _wrap(net)
    attached = comm.attach(replica, "none", buckets=[0.01, 0.02])
    _train(replica, net, 4, context.rank)
    ours = _layouts(replica)
    twin_net = _net()
    twin = _wrap(twin_net, bucket_cap_mb_list=[0.01, 0.02])
    _train(twin, twin_net, 4, context.rank)
    attached.detach()
    _train(replica, net, 4, context.rank)
    own = _layouts(replica)
    return ours, _layouts(twin), own


def test_limits_in_mib_give_the_buckets_that_torch_gives_and_detaching_gives_the_own_back(
    local_engine,
) -> None:
    for ours, torchs, own in local_engine.run(_by_limits, ranks=2):
        assert ours == torchs
        layer = 4 * (48 * 48 + 48)
        assert ours == [2 * layer, 3 * layer, 3 * layer]  # limits: 10,485 bytes, then 20,971
        assert own == [8 * layer]  # all of it is below 1 MiB


def _planned(context):
    from muster import comm
    from muster.pillars.comm.tuner import Pace

    net = _net(width=96)
    replica = _wrap(net)
    told: list[object] = []
    attached = comm.attach(replica, "none", link=_link(context.world_size), pace=Pace(3, 1, 1, check_every=0))

    def batch(step: int) -> torch.Tensor:
        return _batch(step, context.rank, 96)

    for step in range(20):
        with torch.no_grad():
            replica(batch(step))  # an evaluation is no step
        with replica.no_sync():  # nor is a micro-batch whose gradients stay here
            replica(batch(step)).square().mean().backward()
        replica(batch(step)).square().mean().backward()
        replica.zero_grad()
    told.append(attached.settled)
    profile = attached.profile
    assert profile is not None
    times = list(profile.ready_s)
    told.append(times == sorted(times) and profile.forward_s <= times[0] and times[-1] <= profile.backward_s)
    told.append(profile.backward_s <= profile.exchanged_s <= profile.step_s)
    hooks = len(replica._forward_pre_hooks) + len(replica._forward_hooks)
    hooks += sum(len(parameter._post_accumulate_grad_hooks or ()) for parameter in net.parameters())
    return told, hooks, profile.names, attached.plan.ends


def test_the_profile_is_ordered_and_agreed_and_its_hooks_are_gone_afterwards(local_engine) -> None:
    first, second = local_engine.run(_planned, ranks=2)
    assert first[0] == [True, True, True]
    assert first[1] == 0
    assert first[2:] == second[2:]
    assert set(first[2][:2]) == {"7.weight", "7.bias"}  # the last layer's gradients come first


def _resumed(context, name: str):
    """Ten steps in one go, and five, a state, and five more in another model."""
    from muster import comm
    from muster.pillars.comm.tuner import Pace

    def fresh():
        net = _net()
        replica = _wrap(net)
        pace = Pace(2, 1, 1, check_every=0)
        return net, replica, comm.attach(replica, name, link=_link(context.world_size), pace=pace)

    net, replica, attached = fresh()
    _train(replica, net, 16, context.rank)
    assert attached.settled
    state, weights = attached.state_dict(), {key: value.clone() for key, value in net.state_dict().items()}
    _train(replica, net, 8, context.rank, first=16)
    undisturbed = _hash(net)
    other, twin, attached_again = fresh()
    other.load_state_dict(weights)
    attached_again.load_state_dict(state)
    _train(twin, other, 8, context.rank, first=16)
    attached.detach()
    attached_again.detach()
    return undisturbed, _hash(other)


@pytest.mark.parametrize("name", ["none", "bf16", "int8"])
def test_a_resumed_loop_goes_on_with_the_same_bits(local_engine, name: str) -> None:
    results = local_engine.run(lambda context: _resumed(context, name), ranks=2)
    assert len({digest for pair in results for digest in pair}) == 1


def _refusals(context) -> dict[str, str]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from muster import comm
    from muster.errors import RefusedInput

    hooked = _wrap(_net(layers=2))
    hooked.register_comm_hook(None, allreduce_hook)
    mixed = torch.nn.Sequential(_net(layers=2), torch.nn.Linear(48, 48, dtype=torch.float64))
    cases = {
        "bare": lambda: comm.attach(_net(layers=2)),  # type: ignore[arg-type]
        "hooked": lambda: comm.attach(hooked),
        "static": lambda: comm.attach(_wrap(_net(layers=2), static_graph=True)),
        "unknown": lambda: comm.attach(_wrap(_net(layers=2)), "zip"),
        "limits": lambda: comm.attach(_wrap(_net(layers=2)), "none", buckets=-1.0),
        "word": lambda: comm.attach(_wrap(_net(layers=2)), "none", buckets="best"),
        "types": lambda: comm.attach(_wrap(mixed)),
    }
    told = {}
    for name, case in cases.items():
        try:
            case()
            told[name] = "not refused"
        except RefusedInput as refusal:
            told[name] = str(refusal)
    return told


def test_what_cannot_be_tuned_is_refused_with_a_sentence(local_engine) -> None:
    words = {
        "bare": "wrap it in DistributedDataParallel",
        "hooked": "instead of register_comm_hook",
        "static": "static_graph=True; use buckets='keep'",
        "unknown": "no compressor 'zip'; use one of",
        "limits": "positive number of MiB",
        "word": "use 'auto', 'keep'",
        "types": "several types",
    }
    for told in local_engine.run(_refusals, ranks=2):
        assert told.keys() == words.keys()
        for name, part in words.items():
            assert part in told[name]


def _kept(context):
    from muster import comm

    net = _net()
    replica = _wrap(net, static_graph=True)
    attached = comm.attach(replica, "bf16", buckets="keep")
    _train(replica, net, 5, context.rank)
    sent = attached.exchange.wire.sent_bytes
    return _hash(net), sent / 5


def test_kept_buckets_are_compressed_where_they_are(local_engine) -> None:
    results = local_engine.run(_kept, ranks=2)
    assert results[0][0] == results[1][0]
    dense = 4 * 8 * (48 * 48 + 48)  # what an fp32 all-reduce of two ranks sends per rank
    assert all(0.45 * dense <= sent <= 0.55 * dense for _, sent in results)


def _clocked(context):
    """The training loop's way: its own clock, told of the model before it is attached."""
    from muster import clock, comm

    net = _net()
    replica = _wrap(net)
    clock.time_exchange(replica, context.clock)
    attached = comm.attach(replica, "none", link=_link(context.world_size), pace=comm.Pace(2, 1, 1, 0))
    counts = []

    def after(step: int) -> None:
        ended = context.clock.begin_step(step + 1)
        if ended is not None:
            counts.append(len(ended.flights))

    context.clock.begin_step(0)
    _train(replica, net, 20, context.rank, after=after)
    return counts, len(attached.plan.ends)


def test_a_loop_with_a_clock_of_its_own_sees_every_bucket_of_every_step(local_engine) -> None:
    for counts, buckets in local_engine.run(_clocked, ranks=2):
        assert len(counts) == 20
        assert min(counts) >= 1
        assert counts[-1] == buckets


def _alone(context):
    from muster import comm

    net = _net(layers=2)
    replica = _wrap(net)
    attached = comm.attach(replica)
    _train(replica, net, 3, 0)
    return attached.settled, attached.plan


def test_one_rank_has_nothing_to_exchange(local_engine) -> None:
    assert local_engine.run(_alone, ranks=1) == [(True, None)]


def _dying(context):
    import os
    import signal

    from muster import comm

    net = _net()
    replica = _wrap(net)
    comm.attach(replica, "bf16", link=_link(context.world_size))
    for step in range(50):
        if step == 9 and context.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        _train(replica, net, 1, context.rank, first=step)


def test_a_rank_killed_while_layouts_are_tried_ends_the_gang(local_engine) -> None:
    with pytest.raises(RankFailed, match="rank 1"):
        local_engine.run(_dying, ranks=2)
