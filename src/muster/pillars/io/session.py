"""What a loader builds once, when it is first iterated: the ranks meet, plan, and open their caches to each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from muster.errors import DataError
from muster.pillars.io.access_order import Ids, Order
from muster.pillars.io.batches import BatchMaker, Form
from muster.pillars.io.concurrency import Concurrency
from muster.pillars.io.fetching import Fetcher, replicated
from muster.pillars.io.first_sample import FirstSample, look_at_first_sample
from muster.pillars.io.holdings import Holdings
from muster.pillars.io.loader_statistics import Tally
from muster.pillars.io.look_ahead_run import LookAheadRun
from muster.pillars.io.patience import Patience
from muster.pillars.io.peers import Peer, PeerService, this_machine
from muster.pillars.io.plan import count_accesses, place, replicas
from muster.pillars.io.rendezvous import Introduction, Meeting, serving_host
from muster.pillars.io.routes import RankAccesses
from muster.pillars.io.samples import StoredSamples
from muster.pillars.io.shelf import Shelf
from muster.pillars.io.staging import StagingArea
from muster.pillars.io.worker_pool import WorkerPool

Cache = Literal["auto", "stored", "decoded", "none"]


@dataclass(frozen=True)
class Settings:
    """What a user chose; see `muster.io.LookAheadLoader`."""

    batch_size: int
    workers: int
    prefetch_factor: int
    memory_bytes: int | None
    disk: tuple[str, int] | None
    lookahead_bytes: int
    cache: Cache
    skip_corrupt: bool
    seed_each_sample: bool
    most_requests: int
    share_memory: bool
    peer_address: str | None
    patience: Patience = field(default_factory=Patience)


class Session:
    """Everything of a loader that outlives an epoch.

    Arguments:
        samples: the data set.
        order: who uses what.
        rank: this one.
        epochs: those that are left.
        position: how much of the first of them has been used.
        meeting: of the ranks.
        settings: the user's.
        maker: makes batches.
        pool: the worker processes that do so, or None.
        finish: is called with every batch last of all.
        tally: the statistics.
    """

    def __init__(
        self,
        samples: Any,
        order: Order,
        rank: int,
        epochs: range,
        position: int,
        meeting: Meeting,
        settings: Settings,
        maker: BatchMaker,
        pool: WorkerPool | None,
        finish: Callable[[Any], Any],
        tally: Tally,
    ) -> None:
        self._order, self._rank, self._settings = order, rank, settings
        self._finish, self._tally, self._meeting = finish, tally, meeting
        stored = samples if isinstance(samples, StoredSamples) else None
        self._stored = stored
        self._stored_sizes = _sizes(stored, order.samples) if stored is not None else None
        self._maker, self._pool = maker, pool
        self._concurrency = Concurrency(most=settings.most_requests)
        self._run: LookAheadRun | None = None
        self._service: PeerService | None = None
        self._closed = False

        first = look_at_first_sample(
            samples, stored, order, rank, epochs.start, position, settings, self._stored_sizes, tally
        )
        self._first: FirstSample | None = first
        known = meeting.introduce(self._introduction(first))
        cache, sizes = self._what_is_cached(known)
        tally.now.cache = cache
        together = meeting.together
        self._accesses = count_accesses(order, rank, epochs, position, alone=not together)
        memory, disk = _capacities(known, rank, order.world_size, sizes, cache)
        self._placement = place(self._accesses, sizes, memory, disk)
        tally.now.planned_store_reads = self._placement.store_reads(self._accesses)
        machines = [each.machine for each in known] if together else [this_machine()] * order.world_size
        form = Form.STORED if cache == "stored" else Form.RAW
        shelves = self._shelves(memory[rank], disk[rank])
        peers = self._open_to_peers(shelves, machines)
        staging = StagingArea(settings.lookahead_bytes) if settings.workers else None
        self._holdings = Holdings(shelves, staging, peers, form)
        self._maker.areas = list(self._holdings.areas)
        if pool is not None:
            pool.share(self._holdings)
            tally.now.decode_workers = pool.size
        mapped = self._holdings.mapped_ranks(order.world_size)
        distinct = [
            machine if mapped[other] else f"{machine} {other}" for other, machine in enumerate(machines)
        ]
        distinct[rank] = machines[rank]
        self._replicated = replicated(*replicas(self._placement, self._accesses, sizes, rank, distinct))

    def start(self, epoch: int, position: int, epochs: int) -> LookAheadRun:
        """Begins to read ahead from some position on, in place of what was read ahead before.

        Arguments:
            epoch, position: where.
            epochs: where to end.
        """
        left = range(epoch, max(epochs, epoch + 1))
        first, self._first = self._first, None
        accesses = self._accesses
        if self._run is not None:
            self._run.close()
            self._run.fetcher.settle(5.0)
            accesses = count_accesses(
                self._order, self._rank, left, position, alone=not self._meeting.together
            )
        settings, holdings = self._settings, self._holdings
        ahead = RankAccesses(
            self._order,
            self._placement,
            accesses,
            self._rank,
            holdings.mapped_ranks(self._order.world_size),
            left,
            position,
        )
        fetcher = Fetcher(
            self._stored,
            self._stored_sizes,
            ahead,
            self._placement,
            holdings,
            self._replicated,
            lookahead_bytes=settings.lookahead_bytes,
            slack=2 * settings.batch_size,
            concurrency=self._concurrency,
            patience=settings.patience,
            tally=self._tally,
            first=first.as_place() if first is not None else None,
        )
        self._run = LookAheadRun(
            ahead,
            fetcher,
            holdings,
            self._placement,
            self._maker,
            prefetch=settings.prefetch_factor * settings.workers,
            rank=self._rank,
            finish=self._finish,
            tally=self._tally,
        )
        if self._pool is not None:
            self._run.use(self._pool)
        return self._run

    def measure(self) -> None:
        """Brings the statistics up to date with what is measured elsewhere."""
        now = self._tally.now
        now.store_bytes_per_s = dict(self._concurrency.bytes_per_s)
        now.requests_at_once = self._concurrency.best
        kept = [shelf.bytes_kept for shelf in self._holdings.shelves]
        now.memory_bytes, now.disk_bytes = kept[0], sum(kept[1:])

    @property
    def worker_processes(self) -> Sequence[int]:
        """Process ids of the workers."""
        return self._pool.processes if self._pool is not None else []

    def close(self) -> None:
        """Ends threads, workers and connections."""
        if self._closed:
            return
        self._closed = True
        if self._run is not None:
            self._run.close()
        if self._pool is not None:
            self._pool.close()
        if self._service is not None:
            self._service.close()
        for peer in self._holdings.peers.values():
            peer.close()

    # ---- once, at the start --------------------------------------------------------------------------------------

    def _introduction(self, first: FirstSample | None) -> Introduction:
        settings = self._settings
        return Introduction(
            samples=self._order.samples,
            seed=self._order.seed,
            memory_bytes=settings.memory_bytes,
            available_bytes=_available_memory(),
            disk_bytes=settings.disk[1] if settings.disk is not None else 0,
            sample_bytes=first.raw_bytes if first is not None else 0,
            cache=first.cache if first is not None else settings.cache,
            machine=this_machine() if settings.share_memory else f"{this_machine()} rank {self._rank}",
        )

    def _what_is_cached(self, known: list[Introduction]) -> tuple[str, Ids]:
        """Stored bytes, decoded samples, or nothing, and how many bytes each takes: the same on all ranks."""
        wanted = {each.cache for each in known}
        raw = max(each.sample_bytes for each in known)
        n = self._order.samples
        if self._stored_sizes is None:
            cache = "decoded" if wanted == {"decoded"} else "none"
            return cache, np.full(n, raw, dtype=np.int64)
        if wanted == {"none"}:
            return "none", self._stored_sizes
        # Decoded samples are the larger ones: they are cached where all of them fit.
        fits = raw * n <= sum(_memory_of_all(known))
        if wanted == {"decoded"} and (self._settings.cache == "decoded" or fits):
            return "decoded", np.full(n, raw, dtype=np.int64)
        return "stored", self._stored_sizes

    def _shelves(self, memory: int, disk: int) -> list[Shelf]:
        shelves = [Shelf(memory, self._order.samples)]
        if disk and self._settings.disk is not None:
            shelves.append(Shelf(disk, self._order.samples, Path(self._settings.disk[0])))
        return shelves

    def _open_to_peers(self, shelves: list[Shelf], machines: list[str]) -> dict[int, Peer]:
        if not self._meeting.together:
            return {}
        token = self._meeting.token()
        alone = len(set(machines)) == 1
        host = None if alone else serving_host(machines, self._settings.peer_address)
        self._service = PeerService(shelves, token, host, self._settings.patience.peer_s)
        addresses = self._meeting.exchange_addresses(self._service.address)
        peers = {}
        for rank, address in enumerate(addresses):
            if rank == self._rank:
                continue
            lost = _Loss(self._tally, rank)
            near = machines[rank] == machines[self._rank]
            peers[rank] = Peer(address, token, self._settings.patience.peer_s, lost, local=near)
            peers[rank].map_shelves()
        return peers


@dataclass(frozen=True)
class _Loss:
    tally: Tally
    rank: int

    def __call__(self, reason: str) -> None:
        self.tally.lost_peer(self.rank, reason)


def _sizes(stored: StoredSamples, samples: int) -> Ids:
    sizes = np.asarray(stored.sizes(), dtype=np.int64)
    if sizes.shape != (samples,):
        raise DataError(f"sizes() of the data set has shape {sizes.shape}; it should be ({samples},)")
    return sizes


def _available_memory() -> int:
    """Bytes that this process could still take, by the machine and by its control group."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, max(0, limit - used))
    return available


def _memory_of_all(known: list[Introduction]) -> list[int]:
    """What each rank keeps in memory; who did not say takes a share of half of what its machine has left."""
    machines = [each.machine.partition(" ")[0] for each in known]
    return [
        each.memory_bytes
        if each.memory_bytes is not None
        else each.available_bytes // 2 // machines.count(machine)
        for each, machine in zip(known, machines, strict=True)
    ]


def _capacities(
    known: list[Introduction], rank: int, world_size: int, sizes: Ids, cache: str
) -> tuple[list[int], list[int]]:
    if cache == "none":
        return [0] * world_size, [0] * world_size
    total = int(sizes.sum())
    memory = [min(each, total) for each in _memory_of_all(known)]
    disk = [min(each.disk_bytes, total) for each in known]
    if len(known) == world_size:
        return memory, disk
    # Ranks that cannot reach each other: each plans for itself.
    return (
        [memory[0] if other == rank else 0 for other in range(world_size)],
        [disk[0] if other == rank else 0 for other in range(world_size)],
    )
