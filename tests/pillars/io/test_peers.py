"""The ranks of a job read each sample from the store once, whoever keeps it, and outlive a peer that dies or stalls."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from muster.engine.gang import Engine, RankContext
from muster.io import LoaderStatistics, LookAheadLoader
from muster.pillars.io.peers import Peer, PeerService, token_from
from muster.pillars.io.shelf import Shelf
from pillars.io.counted_store import CountedStore

SAMPLES, EPOCHS, SIZE = 120, 3, 2000


def use_everything(
    context: RankContext, folder: str, **options: Any
) -> tuple[list[list[int]], LoaderStatistics]:
    """One rank's passes: the rows it saw, and its statistics. The ranks end an epoch together, as gradients make them."""
    store = CountedStore(Path(folder))
    sampler = DistributedSampler(store, context.world_size, context.rank, seed=11)
    rows = []
    with LookAheadLoader(store, 8, sampler=sampler, epochs=EPOCHS, **options) as loader:
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            for batch in loader:
                rows += batch.tolist()
                torch.distributed.barrier()
        statistics = loader.statistics()
        torch.distributed.barrier()  # nobody leaves while others may still ask
    return rows, statistics


def check(store: CountedStore, ranks: int, results: list[tuple[list[list[int]], LoaderStatistics]]) -> None:
    """Right samples, right order."""
    for rank, (rows, statistics) in enumerate(results):
        wanted = []
        for epoch in range(EPOCHS):
            sampler = DistributedSampler(store, ranks, rank, seed=11)
            sampler.set_epoch(epoch)
            wanted += list(sampler)
        assert [row[0] for row in rows] == wanted
        assert all(row == store.expected(row[0]) for row in rows)
        found = statistics.from_memory + statistics.from_disk + statistics.from_peers + statistics.from_store
        assert found == statistics.samples == len(wanted)


@pytest.fixture
def store(tmp_path: Path) -> CountedStore:
    return CountedStore.made(tmp_path / "s", SAMPLES, SIZE, SIZE + 1)


OPTIONS = [
    pytest.param(3, {"cache": "stored"}, id="mapped"),
    pytest.param(3, {"cache": "stored", "share_memory": False}, id="over TCP"),
    pytest.param(2, {"cache": "stored", "workers": 1}, id="mapped, workers"),
    pytest.param(2, {"cache": "decoded", "workers": 1}, id="decoded, workers"),
    pytest.param(2, {"cache": "decoded", "share_memory": False}, id="decoded, over TCP"),
]


@pytest.mark.parametrize(("ranks", "options"), OPTIONS)
def test_a_job_whose_memory_holds_the_data_reads_each_sample_once(
    store: CountedStore, local_engine: Engine, ranks: int, options: dict[str, Any]
) -> None:
    run = functools.partial(
        use_everything, folder=str(store.folder), memory_bytes=SAMPLES * SIZE // ranks, **options
    )
    results = local_engine.run(run, ranks=ranks)
    check(store, ranks, results)
    assert store.reads() == Counter({sample: 1 for sample in range(SAMPLES)})
    statistics = [each for _, each in results]
    assert sum(each.store_reads for each in statistics) == SAMPLES == statistics[0].planned_store_reads
    # Of two later epochs half or two thirds are a peer's; decoded samples are so small that second copies fit.
    copies = options["cache"] == "decoded" and "share_memory" in options
    assert sum(each.from_peers for each in statistics) > (SAMPLES // 2 if copies else SAMPLES * 2 // 3)
    assert all(not each.lost_peers and each.lost_copies == 0 for each in statistics)


@pytest.mark.parametrize("share_memory", [True, False])
def test_what_fits_nowhere_is_read_again_in_later_epochs_and_nothing_else(
    store: CountedStore, local_engine: Engine, share_memory: bool
) -> None:
    """Memory for a quarter and disks for a quarter: (1/2 + 3 * 1/2) reads for each sample."""
    run = functools.partial(
        use_everything,
        folder=str(store.folder),
        memory_bytes=SAMPLES * SIZE // 8,
        disk=(str(store.folder / "cache"), SAMPLES * SIZE // 8),
        cache="stored",
        share_memory=share_memory,
        lookahead_bytes=5 * SIZE,
    )
    results = local_engine.run(run, ranks=2)
    check(store, 2, results)
    assert Counter(store.reads().values()) == {1: SAMPLES // 2, EPOCHS: SAMPLES // 2}
    for _, statistics in results:
        assert statistics.planned_store_reads == SAMPLES // 2 + EPOCHS * SAMPLES // 2
        assert statistics.memory_bytes == statistics.disk_bytes == SAMPLES * SIZE // 8
    assert list((store.folder / "cache").iterdir()) == []  # the disk cache has no name


def test_memory_on_one_rank_alone_serves_both(store: CountedStore, local_engine: Engine) -> None:
    """The first user hands what it has read to the rank that has room for it."""

    def run(context: RankContext, folder: str) -> Any:
        room = SAMPLES * SIZE if context.rank == 1 else 0
        return use_everything(context, folder, cache="stored", memory_bytes=room)

    results = local_engine.run(functools.partial(run, folder=str(store.folder)), ranks=2)
    check(store, 2, results)
    assert store.reads() == Counter({sample: 1 for sample in range(SAMPLES)})
    assert [each.memory_bytes for _, each in results] == [0, SAMPLES * SIZE]


def test_ranks_that_cannot_reach_each_other_plan_for_themselves(store: CountedStore) -> None:
    sampler = DistributedSampler(store, 2, 0, seed=11)  # and no process group
    with LookAheadLoader(
        store, 8, sampler=sampler, epochs=4, cache="stored", memory_bytes=SAMPLES * SIZE
    ) as loader:
        for epoch in range(4):
            loader.set_epoch(epoch)
            list(loader)
    assert set(store.reads().values()) == {1}


# ---- a peer that dies, stalls or lies ------------------------------------------------------------------------------

SERVER = """
import sys, time
from muster.pillars.io.peers import PeerService, token_from
from muster.pillars.io.shelf import Shelf
shelf = Shelf(1 << 20, 100)
for sample in range(50):
    shelf.put(sample, bytes([sample]) * 1000)
service = PeerService([shelf], token_from("secret"), "127.0.0.1")
address = service.address
print(address.machine, address.local, address.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def serving() -> Iterator[tuple[subprocess.Popen[str], Callable[..., Peer], list[str]]]:
    """A process that serves samples 0 to 49, and a function that makes peers of it."""
    from muster.pillars.io.peers import PeerAddress

    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    machine, local, port = process.stdout.readline().split()
    losses: list[str] = []

    def peer(token: str = "secret", *, local_memory: bool) -> Peer:
        address = PeerAddress(machine, local, "127.0.0.1", int(port))
        return Peer(address, token_from(token), 0.5, losses.append, local=local_memory)

    try:
        yield process, peer, losses
    finally:
        process.kill()
        process.communicate()


def test_samples_are_mapped_or_sent_and_absent_ones_are_said_to_be(serving: Any) -> None:
    _, made, losses = serving
    near, far = made(local_memory=True), made(local_memory=False)
    near.map_shelves()
    assert bytes(near.mapped(7)) == bytes([7]) * 1000 == far.get(7)
    assert near.mapped(60) is None
    assert far.get(60) is None
    assert far.put(60, b"new")
    assert near.mapped(60) == b"new"
    assert losses == []


def test_a_stranger_without_the_token_is_not_served(serving: Any) -> None:
    _, made, losses = serving
    stranger = made("guess", local_memory=False)
    assert stranger.get(7) is None
    assert stranger.lost
    assert len(losses) == 1
    assert made(local_memory=False).get(7) == bytes([7]) * 1000  # the service goes on


def test_a_killed_peer_is_given_up_and_its_mapped_memory_stays_readable(serving: Any) -> None:
    process, made, losses = serving
    near, far = made(local_memory=True), made(local_memory=False)
    near.map_shelves()
    assert far.get(7) is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert far.get(8) is None
    assert far.lost
    assert bytes(near.mapped(8)) == bytes([8]) * 1000
    assert not near.alive()
    assert len(losses) == 2


def test_a_stopped_peer_is_given_up_after_its_time(serving: Any) -> None:
    process, made, losses = serving
    far = made(local_memory=False)
    assert far.get(7) is not None
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)  # a signal sent is not yet a process stopped
    began = time.monotonic()
    assert far.get(8) is None
    assert 0.4 < time.monotonic() - began < 30
    assert losses == ["no answer in 0.5 s"]


def test_damaged_bytes_are_never_taken(tmp_path: Path) -> None:
    """Memory that is overwritten after the checksum was written: the sample counts as absent."""
    shelf = Shelf(10_000, 4)
    shelf.put(2, b"sample" * 100)
    service = PeerService([shelf], token_from("secret"), "127.0.0.1")
    try:
        lost: list[str] = []
        near = Peer(service.address, token_from("secret"), 2, lost.append)
        far = Peer(service.address, token_from("secret"), 2, lost.append, local=False)
        near.map_shelves()
        assert bytes(near.mapped(2) or b"") == b"sample" * 100 == far.get(2)
        os.pwrite(shelf.files.data, b"X", 17)
        assert near.mapped(2) is None
        assert far.get(2) is None
        assert lost == []
    finally:
        service.close()


def test_a_sample_that_arrives_damaged_is_not_kept() -> None:
    shelf = Shelf(10_000, 4)
    service = PeerService([shelf], token_from("secret"), "127.0.0.1")
    try:
        connection = Client(("127.0.0.1", service.address.port))
        answer_challenge(connection, token_from("secret"))
        deliver_challenge(connection, token_from("secret"))
        connection.send_bytes(
            (1).to_bytes(1, "little") + (3).to_bytes(8, "little") + (12345).to_bytes(4, "little")
        )
        connection.send_bytes(b"not what the checksum says")
        assert connection.recv_bytes()[0] == 2  # it will not be kept, so nobody need wait for it
        assert 3 not in shelf
    finally:
        service.close()


def test_the_sockets_are_bound_to_loopback() -> None:
    service = PeerService([Shelf(100, 1)], token_from("secret"), "127.0.0.1")
    try:
        with open("/proc/net/tcp") as file:
            listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
        mine = [each for each in listening if each.endswith(f":{service.address.port:04X}")]
        assert mine == [f"0100007F:{service.address.port:04X}"]
        assert dataclasses.asdict(service.address)["host"] == "127.0.0.1"
    finally:
        service.close()


def die_in_the_second_epoch(context: RankContext, folder: str, how: int) -> Any:
    """Rank 1 is killed or stopped once it has read its share; rank 0 goes on alone."""
    store = CountedStore(Path(folder))
    sampler = DistributedSampler(store, 2, context.rank, seed=11)
    loader = LookAheadLoader(
        store,
        8,
        sampler=sampler,
        epochs=2,
        cache="stored",
        memory_bytes=SAMPLES * SIZE,
        share_memory=False,
        peer_timeout_s=0.5,
    )
    rows = [row for batch in loader for row in batch.tolist()]
    torch.distributed.barrier()
    if context.rank == 1:
        if how == signal.SIGSTOP:
            child = os.fork()  # somebody must wake it up again, or the gang would never end
            if child == 0:
                time.sleep(4)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), how)
        else:
            loader.close()  # its sockets are gone as if it had died; the gang needs a result of it
        return None
    time.sleep(0.3)
    loader.set_epoch(1)
    rows += [row for batch in loader for row in batch.tolist()]
    return rows, loader.statistics()


@pytest.mark.parametrize("how", [0, signal.SIGSTOP], ids=["gone", "stopped"])
def test_a_peer_that_goes_while_serving_is_replaced_by_the_store(
    store: CountedStore, local_engine: Engine, how: int
) -> None:
    run = functools.partial(die_in_the_second_epoch, folder=str(store.folder), how=int(how))
    rows, statistics = local_engine.run(run, ranks=2)[0]
    wanted = []
    for epoch in range(2):
        sampler = DistributedSampler(store, 2, 0, seed=11)
        sampler.set_epoch(epoch)
        wanted += list(sampler)
    assert [row[0] for row in rows] == wanted
    assert all(row == store.expected(row[0]) for row in rows)
    assert list(statistics.lost_peers) == [1]
    assert statistics.lost_copies > 0
    assert statistics.from_store == SAMPLES // 2 + statistics.lost_copies
