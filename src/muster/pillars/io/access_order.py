"""Which samples each rank uses, in which order, in every epoch: a function of the seed alone.

It is the global shuffle of `torch.utils.data.DistributedSampler`: epoch *e* is ``randperm(samples)`` with seed
``seed + e``, and rank *r* of *W* takes every *W*-th entry of it, from the *r*-th on. What is left of an epoch after its
first ``position`` entries is dealt in the same way, to any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

Tail = Literal["pad", "drop", "keep"]


@dataclass(frozen=True)
class AccessOrder:
    """The samples that each rank uses.

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
        import torch

        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.samples, generator=generator).numpy()

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

    def share(self, epoch: int, rank: int, position: int = 0) -> Ids:
        """What ``rank`` uses of ``epoch``; see `shares`."""
        return self.shares(epoch, position)[rank]

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

    def batches(self, rank: int, position: int = 0) -> int:
        """How many batches ``rank`` has in what is left of an epoch after ``position``."""
        return -(-self.share_length(rank, position) // self.batch_size)

    def position_after(self, batches: int, position: int = 0) -> int:
        """How far the epoch is once every rank has used ``batches`` more batches, from ``position`` on."""
        return min(self.samples, position + batches * self.batch_size * self.world_size)
