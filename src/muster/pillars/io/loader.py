"""`LookAheadLoader`: iterated as `torch.utils.data.DataLoader` is, planned for all epochs."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DistributedSampler, default_collate

from muster.errors import DataError
from muster.pillars.io.access_order import AccessOrder, Dealt, Order, Tail
from muster.pillars.io.batches import BatchMaker
from muster.pillars.io.loader_statistics import LoaderStatistics, Tally
from muster.pillars.io.look_ahead_run import LookAheadRun
from muster.pillars.io.patience import Patience
from muster.pillars.io.rendezvous import Meeting
from muster.pillars.io.session import Cache, Session, Settings
from muster.pillars.io.worker_pool import WorkerPool


class LookAheadLoader:
    """Loads batches for data-parallel training, reading ahead along the order that the seed has fixed for all epochs.

    In the first epoch each sample is read from the store once by the whole job, by the rank that uses it first, and kept in
    the memory or on the disk of one rank; later epochs read from there, whichever rank it is, and ask the store only
    for what fits nowhere. The order is that of `DistributedSampler`, a full global shuffle. Ideas: Dryden et al.,
    "Clairvoyant Prefetching for Distributed Machine Learning I/O" (SC '21); the placement is our own
    (`muster.pillars.io.plan`).

    All ranks of the process group make their loaders in the same order and iterate the same epochs::

        loader = LookAheadLoader(dataset, 32, sampler=DistributedSampler(dataset, seed=7), epochs=10, workers=4)
        for epoch in range(10):
            loader.set_epoch(epoch)
            for images, labels in loader:
                ...

    Without `set_epoch`, a loader with a sampler repeats the sampler's epoch, as DataLoader does; one without goes on to
    the next.

    Arguments:
        dataset: a `muster.io.StoredSamples`, whose bytes are cached and decoded where they are needed; or any map-style
            data set, of which whole samples are cached, unless reading one draws random numbers.
        batch_size: samples per rank and batch.
        sampler: gives seed, shuffle, ranks and what becomes of the tail. None: a shuffle over the ranks of the process
            group, if there is one. A `muster.pillars.io.access_order.Dealt` says all of it, batches included.
        epochs: of the whole training, counted from 0.
        memory_bytes: what this rank may keep in memory. None: its share of half of what the machine has left.
        disk: a folder and how many bytes this rank may keep there; in a file without a name, gone with the process.
        workers: processes that decode, begun at once with the data set as it is then; 0: the training process itself.
        seed: of the shuffle, without a sampler; of the workers' generators.
        on_corrupt: ``stop`` raises; ``skip`` leaves corrupt samples out of their batch, and counts and names them.
        collate_fn: makes a batch of a list of samples; torch's `default_collate` if None.
        drop_last: leave a last batch out that is not full.
        pin_memory: copy batches into page-locked memory.
        padding: False: an epoch that the ranks do not divide gives the last ranks one sample less, instead of repeating
            samples as `DistributedSampler` does.
        cache: ``stored`` bytes, ``decoded`` samples or ``none``. ``auto``: decoded where that saves time, all of it fits and
            decoding draws no random numbers; else stored.
        lookahead_bytes: most bytes of samples on their way, without what is kept.
        prefetch_factor: batches that each worker has in hand.
        seed_each_sample: seed the generators of torch, NumPy and Python before each sample by (seed, epoch, index); without
            it, workers seed them before each batch.
        most_requests: never more requests of the store at once; the best number below is found by measuring.
        retries, backoff_s, stall_timeout_s: a request that fails, comes short, or gets no answer in ``stall_timeout_s``
            seconds is made again up to ``retries`` times, ``backoff_s`` seconds later and twice as late each time.
        peer_timeout_s: how long to wait for another rank before the store is asked, in seconds.
        share_memory: map the memory of ranks on this machine; False: ask for samples over TCP as between machines.
        peer_address: address of this machine to serve others at; None: the one that reaches ``MASTER_ADDR``.

    Raises:
        ValueError: an argument is out of its range.
        DataError: while iterating: a sample is corrupt or cannot be read; names it.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        sampler: DistributedSampler[Any] | Dealt | None = None,
        epochs: int = 1,
        memory_bytes: int | None = None,
        disk: tuple[str | os.PathLike[str], int] | None = None,
        workers: int = 0,
        seed: int | None = None,
        on_corrupt: Literal["stop", "skip"] = "stop",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        padding: bool = True,
        cache: Cache = "auto",
        lookahead_bytes: int = 256 << 20,
        prefetch_factor: int = 2,
        seed_each_sample: bool = False,
        most_requests: int = 32,
        retries: int = 5,
        backoff_s: float = 0.1,
        stall_timeout_s: float = 30.0,
        peer_timeout_s: float = 10.0,
        share_memory: bool = True,
        peer_address: str | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("epochs", epochs, 1),
            ("workers", workers, 0),
            ("memory_bytes", memory_bytes or 0, 0),
            ("lookahead_bytes", lookahead_bytes, 1),
            ("prefetch_factor", prefetch_factor, 1),
            ("most_requests", most_requests, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; give at least {least}")
        if on_corrupt not in ("stop", "skip"):
            raise ValueError(f"on_corrupt is {on_corrupt!r}; give 'stop' or 'skip'")
        if cache not in ("auto", "stored", "decoded", "none"):
            raise ValueError(f"cache is {cache!r}; give 'auto', 'stored', 'decoded' or 'none'")
        if sampler is not None and type(sampler) not in (DistributedSampler, Dealt):
            raise ValueError(
                f"the order of {type(sampler).__name__} cannot be known beforehand; give a torch DistributedSampler, or none"
            )
        self.dataset, self.batch_size, self.epochs = dataset, batch_size, epochs
        self._order, self._rank = _order(dataset, batch_size, sampler, seed, drop_last, padding)
        self.sampler = None if isinstance(sampler, Dealt) else sampler
        self._meeting = Meeting(self._rank, self._order.world_size)
        self._settings = Settings(
            batch_size=batch_size,
            workers=workers,
            prefetch_factor=prefetch_factor,
            memory_bytes=memory_bytes,
            disk=None if disk is None else (os.fspath(disk[0]), disk[1]),
            lookahead_bytes=lookahead_bytes,
            cache=cache,
            skip_corrupt=on_corrupt == "skip",
            seed_each_sample=seed_each_sample,
            most_requests=most_requests,
            share_memory=share_memory,
            peer_address=peer_address,
            patience=Patience(retries, backoff_s, stall_timeout_s, peer_timeout_s),
        )
        self._collate = collate_fn or default_collate
        self._workers: WorkerPool | None = None
        if workers:
            self._start_workers()  # they import what they need while the training process builds its model
        self._finish = _pinned if pin_memory else _unchanged
        self._tally = Tally()
        self._session: Session | None = None
        self._run: LookAheadRun | None = None
        self._epoch = 0  # of the next or the current pass
        self._start = 0  # where in the epoch the current pass began
        self._done = 0  # batches that it has handed out
        self._over = False  # whether that pass has come to its end
        self._finalizer: Any = None

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is; does nothing to the pass that a loaded state has begun."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)
        if epoch != self._epoch or self._over:
            self._epoch, self._start, self._done, self._over = epoch, 0, 0, False

    @property
    def epoch(self) -> int:
        """The epoch of the next pass, or of the one under way; after `load_state_dict` the one to go on with."""
        return self._epoch + 1 if self._over else self._epoch

    def __len__(self) -> int:
        """Batches in a whole epoch of this rank."""
        return self._order.batches(self._epoch, self._rank)

    def __iter__(self) -> Iterator[Any]:
        if self.sampler is not None:
            self.set_epoch(self.sampler.epoch)
        elif self._over:
            self.set_epoch(self._epoch + 1)
        # A pass that was broken off begins again; one whose state was loaded goes on.
        epoch, start = self._epoch, self._start
        self._done = 0
        run = self._run_from(epoch, start)
        return self._batches(run, epoch, start)

    def state_dict(self) -> dict[str, int]:
        """Where the whole job is in the order of samples, counting the batches that were handed out.

        It is the same on all ranks after the same number of batches, and fits any number of ranks.
        """
        return {
            "epoch": self.epoch,
            "position": 0 if self._over else self._order.position_after(self._done, self._start),
            "samples": self._order.samples,
            "seed": self._order.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where another loader was; the rest of the epoch is dealt to the ranks that there are now.

        Raises:
            DataError: the state is of another data set or another shuffle.
        """
        own = {"samples": self._order.samples, "seed": self._order.seed}
        for name, value in own.items():
            if state[name] != value:
                raise DataError(
                    f"the loader's state has {name} {state[name]}, this loader has {value}; give the data set and the seed "
                    "that it was saved with"
                )
        self._epoch, self._start, self._done, self._over = state["epoch"], state["position"], 0, False
        if self._start >= self._order.samples:
            self._epoch, self._start = self._epoch + 1, 0
        if self.sampler is not None:
            self.sampler.set_epoch(self._epoch)

    def statistics(self) -> LoaderStatistics:
        """What this rank's loader has done since it was made."""
        if self._session is not None:
            self._session.measure()
        return copy.deepcopy(self._tally.now)

    def close(self) -> None:
        """Ends workers, threads and connections; without it that happens when the loader is collected."""
        if self._finalizer is not None:
            self._finalizer()
        if self._workers is not None:
            self._workers.close()
        self._session = self._run = self._workers = None

    def __enter__(self) -> LookAheadLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_from(self, epoch: int, start: int) -> LookAheadRun:
        """What reads ahead: as it is if it stands there, else begun anew."""
        if self._session is None:
            if self._settings.workers and self._workers is None:
                self._start_workers()
            self._session = Session(
                self.dataset,
                self._order,
                self._rank,
                range(epoch, max(self.epochs, epoch + 1)),
                start,
                self._meeting,
                self._settings,
                self._maker(),
                self._workers,
                self._finish,
                self._tally,
            )
            self._finalizer = weakref.finalize(self, self._session.close)
        run = self._run
        if run is None or not run.stands_at(epoch, start):
            run = self._run = self._session.start(epoch, start, self.epochs)
        return run

    def _maker(self) -> BatchMaker:
        return BatchMaker(
            self.dataset,
            self._collate,
            skip_corrupt=self._settings.skip_corrupt,
            seed=self._order.seed,
            seed_each_sample=self._settings.seed_each_sample,
        )

    def _start_workers(self) -> None:
        self._workers = WorkerPool(self._settings.workers, self._maker())
        weakref.finalize(self, self._workers.close)

    def _batches(self, run: LookAheadRun, epoch: int, start: int) -> Iterator[Any]:
        for number in range(self._order.batches(epoch, self._rank, start)):
            if run is not self._run:
                raise RuntimeError("this pass was ended by a later one; a loader gives one pass at a time")
            batch = run.next()
            self._done = number + 1
            yield batch
        self._over = True


def _order(
    dataset: Any,
    batch_size: int,
    sampler: DistributedSampler[Any] | Dealt | None,
    seed: int | None,
    drop_last: bool,
    padding: bool,
) -> tuple[Order, int]:
    samples = len(dataset)
    if samples == 0:
        raise DataError("the data set has no samples; give one with at least one")
    if isinstance(sampler, Dealt):
        return sampler.order, sampler.rank
    if sampler is None:
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        tail: Tail = "pad" if padding else "keep"
        return AccessOrder(samples, world_size, batch_size, seed or 0, True, tail, drop_last), rank
    if len(sampler.dataset) != samples:  # type: ignore[arg-type]
        raise DataError(
            f"the sampler is for {len(sampler.dataset):,} samples, the data set has {samples:,}; "  # type: ignore[arg-type]
            "make the sampler with the data set"
        )
    tail = "drop" if sampler.drop_last else "pad" if padding else "keep"
    order = AccessOrder(
        samples, sampler.num_replicas, batch_size, sampler.seed, sampler.shuffle, tail, drop_last
    )
    return order, sampler.rank


def _unchanged(batch: Any) -> Any:
    return batch


def _pinned(batch: Any) -> Any:
    """A batch with its tensors in page-locked memory."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {key: _pinned(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_pinned(value) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_pinned(value) for value in batch)
    return batch
