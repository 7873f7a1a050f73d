"""Which samples each rank uses, in which order, in which batches: a function of the seed alone.

The global shuffle is that of `torch.utils.data.DistributedSampler`: epoch *e* is ``randperm(samples)`` with seed
``seed + e``. How it is dealt to the ranks is the order's matter: `AccessOrder` does it as the sampler does, epoch by
epoch; `StepOrder` as the synchronous gang does, step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

Tail = Literal["pad", "drop", "keep"]


class Order(ABC):
    """What the ranks use, cut into stretches: each is dealt to the ranks as a whole, and they follow each other.

    Attributes:
        samples: length of the data set.
        world_size: ranks.
        seed: of the permutations.
    """

    samples: int
    world_size: int
    seed: int

    @abstractmethod
    def shares(self, epoch: int, position: int = 0) -> list[Ids]:
        """What each rank uses of a stretch once its first ``position`` samples have been used, in order."""

    @abstractmethod
    def longest_share(self, position: int = 0) -> int:
        """Length of the longest share of a stretch that another one follows."""

    @abstractmethod
    def batch_ends(self, epoch: int, rank: int, position: int = 0) -> Ids:
        """Where the batches of ``rank`` end in its share, rising up to the share's length, of shape ``(batches,)``."""

    @abstractmethod
    def epochs_of(self, epoch: int, rank: int, position: int = 0) -> Ids:
        """The epoch of the data set that each sample of the share belongs to, which seeds what its decoding draws."""

    @abstractmethod
    def position_after(self, batches: int, position: int = 0) -> int:
        """How far the stretch is once every rank has used ``batches`` more batches, from ``position`` on."""

    def share(self, epoch: int, rank: int, position: int = 0) -> Ids:
        """What ``rank`` uses of a stretch; see `shares`."""
        return self.shares(epoch, position)[rank]

    def batches(self, epoch: int, rank: int, position: int = 0) -> int:
        """How many batches ``rank`` has in what is left of a stretch after ``position``."""
        return len(self.batch_ends(epoch, rank, position))


@dataclass(frozen=True)
class AccessOrder(Order):
    """The samples that each rank uses if every epoch is dealt by itself, as by `DistributedSampler`; a stretch is an epoch.

    Rank *r* of *W* takes every *W*-th entry of an epoch, from the *r*-th on. What is left of it after its first
    ``position`` entries is dealt in the same way, to any number of ranks.

    Arguments:
        samples: length of the data set.
        world_size: ranks among whom an epoch is dealt.
        batch_size: samples per rank and batch.
        seed: of the permutations.
        shuffle: False: every epoch is 0, 1, 2, ...
        tail: what happens to an epoch that the ranks do not divide: ``pad`` repeats its first samples and ``drop`` leaves
            its last ones out, both as `DistributedSampler` does; ``keep`` uses every sample once, so that the last ranks may
            have one sample less.
        drop_last: leave a rank's last batch out if it is not full.
    """

    samples: int
    world_size: int
    batch_size: int
    seed: int
    shuffle: bool = True
    tail: Tail = "pad"
    drop_last: bool = False

    def permutation(self, epoch: int) -> Ids:
        """All samples in the order of ``epoch``, of shape ``(samples,)``."""
        if not self.shuffle:
            return np.arange(self.samples, dtype=np.int64)
        return permutation(self.samples, self.seed + epoch)

    def shares(self, epoch: int, position: int = 0) -> list[Ids]:
        """What each rank uses of ``epoch`` once its first ``position`` samples have been used, in order."""
        permutation = self.permutation(epoch)
        rest = permutation[position:]
        surplus = len(rest) % self.world_size
        if surplus and self.tail == "drop":
            rest = rest[:-surplus]
        elif surplus and self.tail == "pad":
            rest = np.concatenate([rest, np.resize(permutation, self.world_size - surplus)])
        shares = [rest[rank :: self.world_size] for rank in range(self.world_size)]
        if self.drop_last:
            shares = [share[: len(share) - len(share) % self.batch_size] for share in shares]
        return shares

    def share_length(self, rank: int, position: int = 0) -> int:
        """How many samples `share` has."""
        rest = self.samples - position
        length = {
            "pad": -(-rest // self.world_size),
            "drop": rest // self.world_size,
            "keep": (rest - rank + self.world_size - 1) // self.world_size,
        }[self.tail]
        return length - length % self.batch_size if self.drop_last else length

    def longest_share(self, position: int = 0) -> int:
        """Length of the first rank's share; no other is longer."""
        return self.share_length(0, position)

    def batch_ends(self, epoch: int, rank: int, position: int = 0) -> Ids:
        length = self.share_length(rank, position)
        batches = -(-length // self.batch_size)
        return np.minimum(np.arange(1, batches + 1, dtype=np.int64) * self.batch_size, length)

    def epochs_of(self, epoch: int, rank: int, position: int = 0) -> Ids:
        return np.full(self.share_length(rank, position), epoch, dtype=np.int64)

    def position_after(self, batches: int, position: int = 0) -> int:
        return min(self.samples, position + batches * self.batch_size * self.world_size)


@dataclass(frozen=True)
class StepOrder(Order):
    """The samples that each rank uses if all epochs together are dealt step by step, as the synchronous gang does it.

    Step *k* takes entries *kB … (k+1)B - 1* of the endless concatenation of epochs, and rank *r* of *W* every *W*-th of
    those. A stretch is as many steps as an epoch fills, so that what one stretch needs can be held in memory.

    Arguments:
        samples: length of the data set.
        world_size: ranks.
        seed: of the permutations.
        batch: samples per step over all ranks.
        micro_batch: most samples of a rank at once.
        steps: of the whole training.
    """

    samples: int
    world_size: int
    seed: int
    batch: int
    micro_batch: int
    steps: int

    @property
    def steps_per_stretch(self) -> int:
        """Steps of every stretch but the last."""
        return min(self.steps, -(-self.samples // self.batch))

    @property
    def stretches(self) -> int:
        """How many there are."""
        return -(-self.steps // self.steps_per_stretch)

    def place_of(self, step: int) -> tuple[int, int]:
        """The stretch in which a step is, and the position at which the step begins there."""
        stretch, within = divmod(step, self.steps_per_stretch)
        return stretch, within * self.batch

    def shares(self, epoch: int, position: int = 0) -> list[Ids]:
        return [self.share(epoch, rank, position) for rank in range(self.world_size)]

    def share(self, epoch: int, rank: int, position: int = 0) -> Ids:
        entries = self._entries(epoch, rank, position)
        epochs, offsets = np.divmod(entries, self.samples)
        found = np.empty_like(entries)
        for one in np.unique(epochs).tolist():
            here = epochs == one
            found[here] = permutation(self.samples, self.seed + one)[offsets[here]]
        return found

    def longest_share(self, position: int = 0) -> int:
        return (self.steps_per_stretch - position // self.batch) * self._share_of_a_step(0)

    def batch_ends(self, epoch: int, rank: int, position: int = 0) -> Ids:
        share = self._share_of_a_step(rank)
        of_a_step = np.minimum(np.arange(self.micro_batch, share + self.micro_batch, self.micro_batch), share)
        steps = np.arange(self._steps_left(epoch, position), dtype=np.int64)
        return (steps[:, None] * share + of_a_step).reshape(-1)

    def epochs_of(self, epoch: int, rank: int, position: int = 0) -> Ids:
        return self._entries(epoch, rank, position) // self.samples

    def position_after(self, batches: int, position: int = 0) -> int:
        of_a_step = -(-self._share_of_a_step(0) // self.micro_batch)
        return position + batches // of_a_step * self.batch

    def _share_of_a_step(self, rank: int) -> int:
        return len(range(rank, self.batch, self.world_size))

    def _steps_left(self, epoch: int, position: int) -> int:
        first = epoch * self.steps_per_stretch
        return min(self.steps - first, self.steps_per_stretch) - position // self.batch

    def _entries(self, epoch: int, rank: int, position: int) -> Ids:
        """Positions in the concatenation of epochs that a rank takes, in order."""
        first = epoch * self.steps_per_stretch + position // self.batch
        steps = np.arange(first, first + self._steps_left(epoch, position), dtype=np.int64)
        own = np.arange(rank, self.batch, self.world_size, dtype=np.int64)
        return (steps[:, None] * self.batch + own).reshape(-1)


@dataclass(frozen=True)
class Dealt:
    """An order that is known already, and the rank whose batches are wanted: in place of a sampler."""

    order: Order
    rank: int


@lru_cache(maxsize=2)
def permutation(samples: int, seed: int) -> Ids:
    """What `DistributedSampler` makes of a seed and an epoch, whose sum is given, of shape ``(samples,)``; read-only."""
    import torch

    found = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).numpy()
    found.flags.writeable = False
    return found
