"""The global order of samples: a function of (seed, epoch) alone, whatever the number of ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from muster.pillars.io.access_order import Ids, permutation


class SampleKey(NamedTuple):
    """One use of one sample."""

    epoch: int
    index: int  # type: ignore[assignment] # the word of the field; tuple.index is of no use here


class GlobalOrder:
    """The endless concatenation of epochs, each a permutation of the data set.

    An epoch's permutation is that of `torch.utils.data.DistributedSampler` with the same seed. Step *k* (from 0) of global
    batch *B* takes positions *kB … (k+1)B - 1*, and rank *r* of *W* every *W*-th of those, so the state of the order is the
    step alone.

    Arguments:
        samples: length of the data set.
        batch: global batch.
        seed: of the permutations.
    """

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self._samples, self._batch, self._seed = samples, batch, seed
        self._epoch = -1
        self._permutation: Ids = np.empty(0, dtype=np.int64)

    def share(self, step: int, rank: int, world_size: int) -> list[SampleKey]:
        """What ``rank`` processes in step ``step`` (from 0), in order."""
        first = step * self._batch
        return [self._at(position) for position in range(first + rank, first + self._batch, world_size)]

    def _at(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self._samples)
        if epoch != self._epoch:
            self._permutation = permutation(self._samples, self._seed + epoch)
            self._epoch = epoch
        return SampleKey(epoch, int(self._permutation[offset]))


class RankBatches:
    """Batch sampler of one rank: the keys of its micro-batches from a step on, without end.

    Arguments:
        order: the global order.
        rank, world_size: whose share.
        micro_batch: most samples at once; None: the whole share.
        first_step: where to begin (from 0).
        steps: where to end.
    """

    def __init__(
        self,
        order: GlobalOrder,
        rank: int,
        world_size: int,
        *,
        micro_batch: int | None,
        first_step: int,
        steps: int,
    ) -> None:
        self._order, self._rank, self._world_size = order, rank, world_size
        self._micro_batch, self._first_step, self._steps = micro_batch, first_step, steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self._first_step, self._steps):
            yield from self.of(step)

    def of(self, step: int) -> list[list[SampleKey]]:
        """The micro-batches of one step."""
        share = self._order.share(step, self._rank, self._world_size)
        size = self._micro_batch or len(share)
        return [share[start : start + size] for start in range(0, len(share), size)]


class SeededSamples(Dataset[Any]):
    """Makes whatever randomness a data set draws a function of (seed, epoch, index).

    torch's, NumPy's and Python's global generators are seeded before each sample, so a plain `Dataset` with random
    augmentation gives the same samples on any number of ranks and after any restart.
    """

    def __init__(self, samples: Dataset[Any], seed: int) -> None:
        self._samples, self._seed = samples, seed

    def __getitem__(self, key: SampleKey) -> Any:
        words = np.random.SeedSequence([self._seed, *key]).generate_state(2, np.uint32)
        seed = int(words[0]) << 32 | int(words[1])
        torch.default_generator.manual_seed(seed)
        np.random.seed(words)
        random.seed(seed)
        return self._samples[key.index]
