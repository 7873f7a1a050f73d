"""`muster.clock.watch`: an existing loop, its pillars, and nothing else changed."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from muster import clock
from muster.engine.records import SCHEMAS


def _data(count: int = 24, width: int = 6) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(count, width, generator=generator), torch.randn(count, 1, generator=generator)
    )


def _loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader, pause_s: float = 0.0) -> None:
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        time.sleep(pause_s)
        optimizer.step()


class _SlowSamples(torch.utils.data.Dataset):
    """A data set whose every sample takes a known time: delay is what is measured here."""

    def __init__(self, delay_s: float) -> None:
        self.inside, self.delay_s = _data(), delay_s

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, index: int):
        time.sleep(self.delay_s)
        return self.inside[index]


def test_known_delays_appear_in_their_pillars_and_columns_sum_to_the_wall() -> None:
    model = torch.nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with clock.watch(model, optimizer, DataLoader(_SlowSamples(0.01), batch_size=4)) as watched:
        begin = time.perf_counter()
        _loop(model, optimizer, watched.loader, pause_s=0.03)
        passed = time.perf_counter() - begin
    table = watched.table()
    assert table.schema.equals(SCHEMAS["steps"])
    rows = table.to_pylist()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["samples"] for row in rows] == [4] * 6
    assert {row["learning_rate"] for row in rows} == {0.1}
    for row in rows:
        assert row["io"] >= 4 * 0.01
        assert row["compute"] >= 0.03
        assert row["comm"] == row["idle"] == 0.0
        assert row["io"] + row["compute"] + row["comm"] + row["idle"] == pytest.approx(row["wall"], abs=1e-9)
    for before, after in pairwise(rows):
        assert after["start"] == pytest.approx(before["start"] + before["wall"], abs=1e-9)
    assert 6 * 0.07 <= sum(row["wall"] for row in rows) <= passed + 0.01
    (own,) = watched.summary()
    assert own["io"] == pytest.approx(sum(row["io"] for row in rows))
    assert watched.summary(skip=2)[0]["steps"] == 4


def test_a_watched_loop_trains_to_the_same_bits_and_its_loader_is_the_loader() -> None:
    results = []
    for watching in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loader = DataLoader(_data(), batch_size=5)
        if watching:
            watched = clock.watch(model, optimizer, loader)
            assert len(watched.loader) == 5
            assert watched.loader.batch_size == 5
            loader = watched.loader
        for _ in range(3):
            _loop(model, optimizer, loader)
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)
    assert [row["samples"] for row in watched.table().to_pylist()] == [5, 5, 5, 5, 4] * 3


def test_a_stall_is_idle_and_nothing_is_counted_after_the_end() -> None:
    model = torch.nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = clock.watch(model, optimizer, [(torch.ones(2, 6), torch.ones(2, 1))] * 2)
    for inputs, targets in watched.loader:
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        with watched.stall("evaluate"):
            time.sleep(0.02)
        optimizer.step()
    watched.close()
    optimizer.step()
    rows = watched.table().to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert row["stall"] == row["idle"] >= 0.02


def _ranks(context, how: str):
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data.distributed import DistributedSampler

    from muster import comm
    from muster.pillars.comm.link import Link
    from muster.pillars.comm.tuner import Pace

    def trained(watching: bool) -> tuple[bytes, list[dict], list[dict]]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(*[torch.nn.Linear(6, 6) for _ in range(3)], torch.nn.Linear(6, 1))
        replica = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        sampler = DistributedSampler(_data())
        loader = DataLoader(_data(), batch_size=3, sampler=sampler)
        if how == "hooked":
            replica.register_comm_hook(None, allreduce_hook)
        link, pace = Link.uniform(2, latency_s=1e-4, bytes_per_s=1e7), Pace(2, 1, 1, 4)
        if how == "attached":
            comm.attach(replica, "bf16", link=link, pace=pace)
        watched = clock.watch(replica, optimizer, loader) if watching else None
        if how == "attached later":
            comm.attach(replica, "bf16", link=link, pace=pace)
        for epoch in range(6):
            if context.rank == 1 and epoch == 3:
                time.sleep(0.1)  # a straggler, once
            inside = watched.loader if watched else loader
            inside.sampler.set_epoch(epoch)
            _loop(replica, optimizer, inside)
        rows, sums = ([], []) if watched is None else (watched.table().to_pylist(), watched.summary())
        if watched is not None:
            watched.close()
        _loop(replica, optimizer, loader)
        dist.barrier()
        weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
        return weights.numpy().tobytes(), rows, sums

    alone = trained(False)[0] if how in ("plain", "hooked") else b""
    weights, rows, sums = trained(True)
    return alone, weights, rows, sums


@pytest.mark.parametrize("how", ["plain", "hooked", "attached", "attached later"])
def test_ranks_see_communication_and_stragglers_whoever_owns_the_hook(local_engine, how: str) -> None:
    first, second = local_engine.run(lambda context: _ranks(context, how), ranks=2)
    assert first[1] == second[1]
    for alone, _, rows, sums in (first, second):
        assert len(rows) == 24
        assert alone in (b"", first[1])  # watching changes no bit
        for row in rows:
            total = row["io"] + row["compute"] + row["comm"] + row["idle"]
            assert total == pytest.approx(row["wall"], abs=1e-9)
        assert sum(row["comm"] > 0 for row in rows) >= 20
        assert [entry["rank"] for entry in sums] == [0, 1]
    # Rank 1 slept 0.1 s before it fetched: rank 0 waited for it, and rank 1 did not wait for anybody.
    assert sum(row["idle"] for row in first[2]) >= 0.08
    assert first[3] == second[3]


def test_torchs_hooks_in_c_are_refused_with_a_sentence(local_engine) -> None:
    def watched(context) -> str:
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        from muster.errors import RefusedInput

        net = torch.nn.Linear(6, 1)
        replica = DistributedDataParallel(net)
        replica._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
        try:
            clock.watch(replica, torch.optim.SGD(net.parameters(), lr=0.1))
        except RefusedInput as refusal:
            return str(refusal)
        return ""

    for told in local_engine.run(watched, ranks=2):
        assert "cannot be timed" in told
