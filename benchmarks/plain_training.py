"""The super-resolution job's training without Muster: its model, data, loss and optimizer in the plainest loop.

What the peers of `gang_overhead.py` run. Model, data set and loss are those of the job, so that only what is around them
differs; nothing is recorded, checkpointed or evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from muster.spec import load_application, load_job

#: How Muster wraps its model too.
DDP_OPTIONS = {"gradient_as_bucket_view": True, "broadcast_buffers": False}


class PlainTraining:
    """One rank of a data-parallel training in a process group that exists.

    Arguments:
        job: path of the job file.
        rank, world_size: this rank, and how many share the job's batch.
        distribute: wraps the model, such as in DistributedDataParallel.
    """

    def __init__(
        self,
        job: str,
        rank: int,
        world_size: int,
        distribute: Callable[[torch.nn.Module], torch.nn.Module],
    ) -> None:
        loaded = load_job(job, environ={})
        self.application: Any = load_application(loaded.what.app)(loaded.what)
        torch.manual_seed(loaded.what.seed)
        self.replica = distribute(self.application.build_model())
        self.optimizer = torch.optim.Adam(self.replica.parameters(), lr=loaded.how.optimizer.lr)
        self.batches = _endless(self.application.training_data(), loaded.how.batch, rank, world_size)
        self.batch = loaded.how.batch

    def step(self) -> None:
        """One update of the weights."""
        loss = self.application.loss(self.replica, next(self.batches))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


def _endless(data: Dataset[Any], batch: int, rank: int, world_size: int) -> Iterator[Any]:
    sampler = DistributedSampler(data, world_size, rank, drop_last=True)
    loader = DataLoader(data, batch_size=batch // world_size, sampler=sampler, drop_last=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1
