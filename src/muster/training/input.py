"""The micro-batches of one rank: by PyTorch's DataLoader, or by the loader that looks ahead. Both give the same."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, default_collate

from muster.engine.gang import RankContext
from muster.pillars.io.access_order import Dealt, StepOrder
from muster.pillars.io.loader import LookAheadLoader
from muster.pillars.io.patience import Patience
from muster.pillars.io.samples import StoredSamples
from muster.spec.gang_how import GangHow
from muster.training.order import GlobalOrder, RankBatches, SampleKey, SeededSamples

_COUNTS = (
    "samples",
    "from_memory",
    "from_disk",
    "from_peers",
    "from_store",
    "store_reads",
    "store_bytes",
    "store_retries",
    "peer_bytes",
    "lost_copies",
)


def looks_ahead(data: Dataset[Any], how: GangHow) -> bool:
    """Whether a job's store is read ahead of use."""
    wanted = how.input.loader
    return wanted == "look-ahead" or (wanted == "auto" and isinstance(data, StoredSamples))


@dataclass(frozen=True)
class InputTotals:
    """What the loaders of all ranks together have done; see `muster.pillars.io.loader_statistics`."""

    cache: str
    planned_store_reads: int
    counts: dict[str, int]


class Input:
    """What a rank trains on, from a step on.

    Arguments:
        context: of the rank.
        data: the application's training data.
        how: the job's.
        seed: the job's.
        first_step: to begin with (from 0).
        steps: to end with; None: those of the job.
    """

    def __init__(
        self,
        context: RankContext,
        data: Dataset[Any],
        how: GangHow,
        seed: int,
        first_step: int,
        steps: int | None = None,
    ) -> None:
        self._context, self._data, self._how, self._seed = context, data, how, seed
        self._first_step, self._steps = first_step, how.steps if steps is None else steps
        self._samples = SeededSamples(data, seed)
        self._batches = RankBatches(
            GlobalOrder(len(data), how.batch, seed),  # type: ignore[arg-type]
            context.rank,
            context.world_size,
            micro_batch=how.micro_batch,
            first_step=first_step,
            steps=self._steps,
        )
        self._loader: LookAheadLoader | None = None

    def sizes(self, step: int) -> list[int]:
        """Samples in each micro-batch of a step."""
        return [len(keys) for keys in self._batches.of(step)]

    def first_batch(self) -> tuple[Any, int]:
        """The first micro-batch and its number of samples, read for this call alone."""
        keys = self._batches.of(min(self._first_step, self._steps - 1))[0]
        return default_collate([self._read(key) for key in keys]), len(keys)

    def _read(self, key: SampleKey) -> Any:
        if not isinstance(self._data, StoredSamples):
            return self._samples[key]
        return Patience().read(lambda: self._samples[key], key.index)

    def batches(self) -> Iterator[Any]:
        """The micro-batches in order; called once, by all ranks together."""
        return self._look_ahead() if looks_ahead(self._data, self._how) else self._plain()

    def totals(self) -> InputTotals | None:
        """The sums over all ranks, which call this together; None where nobody looks ahead."""
        if self._loader is None:
            return None
        own = self._loader.statistics()
        counts = torch.tensor([getattr(own, name) for name in _COUNTS], dtype=torch.int64)
        with self._context.clock.in_a_collective():
            dist.all_reduce(counts, group=self._context.control)
        return InputTotals(
            own.cache, own.planned_store_reads, dict(zip(_COUNTS, counts.tolist(), strict=True))
        )

    def close(self) -> None:
        """Ends what reads ahead."""
        if self._loader is not None:
            self._loader.close()

    def _plain(self) -> Iterator[Any]:
        workers = self._how.loader_workers
        with warnings.catch_warnings():
            # More of them than cores are right where they wait for a store; the report says what they deliver.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                self._samples,
                batch_sampler=self._batches,  # type: ignore[arg-type]
                num_workers=workers,
                persistent_workers=workers > 0,
                multiprocessing_context=_from_a_server(type(self._data).__module__) if workers else None,
                pin_memory=self._context.device.type == "cuda",
            )
        return iter(loader)

    def _look_ahead(self) -> Iterator[Any]:
        context, how, own = self._context, self._how, self._how.input
        order = StepOrder(
            samples=len(self._data),  # type: ignore[arg-type]
            world_size=context.world_size,
            seed=self._seed,
            batch=how.batch,
            micro_batch=how.micro_batch or -(-how.batch // context.world_size),
            steps=self._steps,
        )
        loader = self._loader = LookAheadLoader(
            self._data,
            order.micro_batch,
            sampler=Dealt(order, context.rank),
            epochs=order.stretches,
            memory_bytes=None if own.memory is None else own.memory.bytes,
            disk=None if own.disk is None else (own.folder or tempfile.gettempdir(), own.disk.bytes),
            workers=how.loader_workers,
            pin_memory=context.device.type == "cuda",
            cache=own.cache,
            seed_each_sample=True,
            peer_address=context.address,
        )
        stretch, position = order.place_of(self._first_step)
        loader.load_state_dict(
            {"epoch": stretch, "position": position, "samples": order.samples, "seed": order.seed}
        )
        with context.clock.in_a_collective():  # the ranks meet and plan
            first = iter(loader)
        return _one_after_another(loader, first, order.stretches - stretch)


def _from_a_server(module: str) -> BaseContext:
    """Processes forked from a server that has imported torch and such a module, so that each is there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.utils.data", module])
    return context


def _one_after_another(loader: LookAheadLoader, first: Iterator[Any], stretches: int) -> Iterator[Any]:
    yield from first
    for _ in range(stretches - 1):
        yield from loader
