"""Batches of an application's training data by the position of their samples, the same on every worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from muster.errors import JobError
from muster.training.application import Application
from muster.training.generators import untouched_generators
from muster.training.order import GlobalOrder, SampleKey, SeededSamples


class Samples:
    """The training data of an application.

    What a sample draws at random is a function of (seed, epoch, index), and what the model draws is not disturbed by it.

    Arguments:
        data: a map-style data set.
        seed: of the order and of what samples draw.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self._data, self._seeded = data, SeededSamples(data, seed)
        self._order = GlobalOrder(len(data), 1, seed)

    def __len__(self) -> int:
        return len(self._data)

    def ordered(self, positions: Sequence[int]) -> Any:
        """The batch at these positions of the global order, the endless concatenation of shuffled epochs."""
        return self.batch([self._order.share(position, 0, 1)[0] for position in positions])

    def batch(self, keys: Sequence[SampleKey]) -> Any:
        """These samples, collated."""
        with untouched_generators():
            return default_collate([self._seeded[key] for key in keys])


class PartySamples:
    """A party's part of the data in one round; a `muster.training.federated.local_training.PartyData`.

    Arguments:
        samples: all data.
        indices: of the party's samples.
        epoch: number of the round.

    Attributes:
        fetching_s: how long getting batches has taken, s.
    """

    def __init__(self, samples: Samples, indices: Sequence[int], epoch: int) -> None:
        self._samples, self._indices, self._epoch = samples, indices, epoch
        self.fetching_s = 0.0

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, positions: Tensor) -> Any:
        """Samples at these positions of the party's data."""
        began = time.monotonic()
        batch = self._samples.batch(
            [SampleKey(self._epoch, int(self._indices[position])) for position in positions.tolist()]
        )
        self.fetching_s += time.monotonic() - began
        return batch


def labels_of(application: Application, data: Any, *, key: str) -> np.ndarray[Any, Any]:
    """The class of every sample.

    Raises:
        JobError: the data have none, or not one for each sample.
    """
    found = application.labels(data)
    if found is None:
        raise JobError(
            f"the training data of {type(application).__name__} name no classes to deal by",
            mend="set partition: even, or give the application a method labels",
            key=key,
        )
    labels = np.asarray(torch.as_tensor(found) if isinstance(found, Tensor) else found)
    if labels.shape != (len(data),):
        raise JobError(
            f"the training data have {len(data)} samples and labels of shape {list(labels.shape)}",
            mend="expected one label for each sample",
            key=key,
        )
    return labels
