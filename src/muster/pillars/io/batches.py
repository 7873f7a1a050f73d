"""From bytes to a batch: what a worker process does, or the training process itself where there are no workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

from muster.errors import DataError
from muster.pillars.io.raw_samples import Buffer, RawSample, from_raw


class Form(IntEnum):
    """What the bytes of a sample are."""

    STORED = 0  # as they lie in the store: decode them
    RAW = 1  # a `RawSample`
    ABSENT = 2  # there are none: ask the data set


class Origin(IntEnum):
    """Where a sample came from."""

    MEMORY = 0
    DISK = 1
    PEER = 2
    STORE = 3


class Place(NamedTuple):
    """Where the bytes of a sample lie.

    Arguments:
        form: what they are.
        origin: for the statistics.
        area: number of the shelf or staging area; -1: in ``inline``.
        start, length: in that area.
        checksum: to be compared; None: need not be.
        inline: the bytes themselves.
    """

    form: Form
    origin: Origin
    area: int = -1
    start: int = 0
    length: int = 0
    checksum: int | None = None
    inline: Buffer = b""


class Entry(NamedTuple):
    """One sample of a batch.

    Arguments:
        index: of the sample.
        place: where its bytes lie.
        epoch: in which it is used.
        keep: it is wanted back as raw bytes, for a cache.
    """

    index: int  # type: ignore[assignment] # the word of the field; tuple.index is of no use here
    place: Place
    epoch: int
    keep: bool = False


class Area(Protocol):
    """Shared memory, or a file, in which samples lie."""

    def read(self, place: Place) -> memoryview | None:
        """The bytes at a place; None if they are not what they were."""


@dataclass
class Made:
    """A batch and what came with it.

    Arguments:
        batch: collated; None if no sample was left.
        kept: raw bytes of the samples that were to be kept.
        corrupt: names of samples that were left out.
        damaged: positions in the batch of samples whose cached bytes were not intact; then there is no batch.
    """

    batch: Any = None
    kept: list[tuple[int, Buffer]] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


class BatchMaker:
    """Makes batches of the samples of a data set.

    Arguments:
        samples: the data set.
        collate: makes a batch of a list of samples.
        skip_corrupt: leave corrupt samples out instead of raising.
        seed: of the generators; see ``seed_each_sample``.
        seed_each_sample: seed all generators before each sample, by (seed, epoch, index); otherwise before each batch.
    """

    def __init__(
        self,
        samples: Any,
        collate: Callable[[list[Any]], Any],
        *,
        skip_corrupt: bool,
        seed: int,
        seed_each_sample: bool,
    ) -> None:
        self._samples, self._collate, self._skip_corrupt = samples, collate, skip_corrupt
        self._seed, self._seed_each = seed, seed_each_sample
        self.areas: list[Area] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "areas": []}  # every process maps them itself

    def make(self, entries: Sequence[Entry], words: Sequence[int] | None = None) -> Made:
        """A batch of these samples.

        Arguments:
            entries: its samples, in order.
            words: seed the generators with these and the seed, once for the batch; None: leave them as they are.

        Raises:
            DataError: a sample is corrupt and is not to be skipped.
        """
        made = Made()
        views: list[Any] = []
        for position, entry in enumerate(entries):
            place = entry.place
            if place.form is Form.ABSENT:
                view = None
            else:
                view = place.inline if place.area < 0 else self.areas[place.area].read(place)
                if view is None:
                    made.damaged.append(position)
            views.append(view)
        if made.damaged:
            return made
        if words is not None and not self._seed_each:
            seed_generators([self._seed, *words])
        samples = []
        for entry, view in zip(entries, views, strict=True):
            if self._seed_each:
                seed_generators([self._seed, entry.epoch, entry.index])
            try:
                sample = self._sample(entry, view)
            except DataError as error:
                if not self._skip_corrupt:
                    raise
                made.corrupt.append(str(error))
                continue
            if entry.keep:
                made.kept.append((entry.index, RawSample(sample).to_bytes()))
            samples.append(sample)
        if samples:
            made.batch = self._collate(samples)
        return made

    def _sample(self, entry: Entry, view: Any) -> Any:
        form = entry.place.form
        if form is Form.RAW:
            return from_raw(view)
        if form is Form.STORED:
            return self._samples.decode(entry.index, view)
        try:
            return self._samples[entry.index]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"sample {entry.index}: {error}") from error


def seed_generators(words: Sequence[int]) -> None:
    """Seeds the generators of torch, NumPy and Python from some numbers."""
    import torch

    state = np.random.SeedSequence(words).generate_state(2, np.uint32)
    seed = int(state[0]) << 32 | int(state[1])
    torch.default_generator.manual_seed(seed)
    np.random.seed(state)
    random.seed(seed)
