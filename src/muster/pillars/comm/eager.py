"""Eager (partial) all-reduce: ranks that are late do not hold up the others; what they bring late counts in the next step.

Li et al., "Taming unbalanced training workloads in deep learning with partial collective operations" (PPoPP 2020),
the majority collective: in each step one rank, drawn with a seed that all share, starts the reduction when its own
gradient is ready. Whoever is not ready then contributes what it has not sent yet, possibly nothing; its late gradient
is added to its next contribution. In the mean half of the ranks are in time. All ranks still get the same average, so
replicas stay equal; nothing is lost and nothing counts twice.

This changes the training: gradients may be stale. It pays where ranks take turns in being late (sequences of
different length, noisy machines), not where one is always slow.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from muster.errors import MusterError

_SYNCHRONOUS_STEPS = 2  # DistributedDataParallel lays its buckets out anew after the first backward pass


@dataclass
class _Slot:
    """One bucket: what waits to be sent, and the averages that this rank has not fetched yet."""

    unsent: torch.Tensor
    arrived: int = -1  # the newest step whose gradient is in `unsent` or was sent
    averages: dict[int, torch.Tensor] = field(default_factory=dict)
    waiting: dict[int, tuple[torch.futures.Future[torch.Tensor], torch.Tensor]] = field(default_factory=dict)


class EagerExchange:
    """A communication hook for DistributedDataParallel, and its thread::

        exchange = EagerExchange()
        replica.register_comm_hook(None, exchange.hook)
        ...
        exchange.close()

    The first two steps are synchronous, since torch has not settled its buckets before. All ranks must do the same number of
    steps, each with one backward pass that exchanges gradients, on the CPU; every rank makes and closes it at the same point.

    Arguments:
        group: whose ranks exchange; None for all.
        most_behind: a rank this many steps behind is waited for; bounds staleness, and memory.
        seed: of who starts the reduction; the same on all ranks.

    Attributes:
        late: how many contributions of this rank came too late for their own step.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, most_behind: int = 4, seed: int = 0
    ) -> None:
        if most_behind < 1:
            raise ValueError("most_behind must be 1 or more")
        own = dist.new_group(
            dist.get_process_group_ranks(group) if group is not None else None, backend="gloo"
        )
        assert own is not None
        self._group, self._most_behind, self._seed = own, most_behind, seed
        self._ranks, self._rank = dist.get_world_size(own), dist.get_rank(own)
        self._slots: list[_Slot] = []
        self._changed = threading.Condition()
        self._step = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self.failure: MusterError | None = None
        self.late = 0

    def hook(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """The hook to register; its future holds the average of the step's contributions.

        Raises:
            MusterError: the exchange has failed or is closed.
        """
        if self._closing:
            raise MusterError(
                "the eager exchange of gradients is closed; make a new one before the next backward pass"
            )
        step, last = self._step, bucket.is_last()
        if last:
            self._step += 1
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        if step < _SYNCHRONOUS_STEPS:
            self._reduce_now(bucket, step, future)
            return future
        with self._changed:
            if self.failure is not None:
                raise self.failure
            slot, buffer = self._slots[bucket.index()], bucket.buffer()
            slot.unsent.add_(buffer)
            slot.arrived = step
            average = slot.averages.pop(step, None)
            if average is None:
                slot.waiting[step] = future, buffer
            else:
                self.late += 1
            self._changed.notify_all()
        result = future.then(self._checked)
        if average is not None:
            future.set_result(buffer.copy_(average))
        return result

    def _checked(self, done: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        if self.failure is not None:
            raise RuntimeError(str(self.failure))
        return done.value()

    def _reduce_now(
        self, bucket: dist.GradBucket, step: int, future: torch.futures.Future[torch.Tensor]
    ) -> None:
        buffer = bucket.buffer()
        buffer.div_(self._ranks)
        dist.all_reduce(buffer, group=self._group)
        if step == _SYNCHRONOUS_STEPS - 1:
            self._slots.append(_Slot(torch.zeros_like(buffer)))
            if bucket.is_last():
                self._thread = threading.Thread(target=self._serve, name="muster-eager", daemon=True)
                self._thread.start()
        future.set_result(buffer)

    def _serve(self) -> None:
        """The communication thread: reduces step by step and bucket by bucket, as early as may be."""
        step, drawn = _SYNCHRONOUS_STEPS, random.Random(self._seed)
        try:
            while True:
                starter = drawn.randrange(self._ranks)
                for slot in self._slots:
                    if not self._started(starter, step, slot):
                        return
                    self._reduce(step, slot)
                step += 1
        except Exception as error:
            self._fail(error)

    def _started(self, starter: int, step: int, slot: _Slot) -> bool:
        """Waits until the reduction is to start; False if the exchange is closed instead."""
        needed = step if self._rank == starter else step - self._most_behind
        with self._changed:
            self._changed.wait_for(lambda: slot.arrived >= needed or self._closing)
        go = torch.tensor([0 if self._closing and slot.arrived < step else 1])
        dist.broadcast(go, src=dist.get_global_rank(self._group, starter), group=self._group)
        return bool(go)

    def _reduce(self, step: int, slot: _Slot) -> None:
        with self._changed:
            sent, slot.unsent = slot.unsent, torch.zeros_like(slot.unsent)
        sent.div_(self._ranks)
        dist.all_reduce(sent, group=self._group)
        with self._changed:
            waiting = slot.waiting.pop(step, None)
            if waiting is None:
                slot.averages[step] = sent
        if waiting is not None:
            future, buffer = waiting
            future.set_result(buffer.copy_(sent))

    def _fail(self, error: Exception) -> None:
        failure = MusterError(
            f"eager exchange of gradients failed on rank {self._rank}: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        with self._changed:
            self.failure = failure
            waiting = [pair for slot in self._slots for pair in slot.waiting.values()]
        for future, buffer in waiting:
            future.set_result(buffer)

    def unsent(self) -> list[torch.Tensor]:
        """For each bucket, the gradients of this rank that have not been sent yet; between two steps."""
        with self._changed:
            return [slot.unsent.clone() for slot in self._slots]

    def close(self) -> None:
        """Ends the thread, after the last backward pass, on all ranks. What has not been sent is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


# DistributedDataParallel compares annotations as objects, and here they are strings.
EagerExchange.hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
