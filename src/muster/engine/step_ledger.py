"""Keeps the books of a gang's steps: one small exchange between the ranks per step, and the rows that come of it.

At the end of each step the ranks post a vector (loss, samples, stop wanted, checkpoint due, when each bucket was entered);
it travels while the next step computes and is read at that step's end. So all ranks agree on what to do after which step,
and each learns when the last rank entered a collective, at no wait.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

from muster.engine.clock import Bucket, StepTimes
from muster.engine.gang import RankContext
from muster.engine.records import TableWriter

STOP_REASONS: Final = ("", "grow", "stopped", "preempted")  # in rising order of urgency
_HEADER: Final = 4  # loss sum, samples, stop, checkpoint due
_CUDA_LAG: Final = 2  # steps until a CUDA event is read


@dataclass(frozen=True)
class Agreement:
    """What all ranks have agreed to do now.

    Arguments:
        stop: why to save and yield, or None.
        checkpoint: whether to take a checkpoint.
    """

    stop: str | None = None
    checkpoint: bool = False

    def joined(self, other: Agreement) -> Agreement:
        """What both have agreed on; the more urgent reason to stop."""
        stop = max(self.stop or "", other.stop or "", key=STOP_REASONS.index)
        return Agreement(stop or None, self.checkpoint or other.checkpoint)


@dataclass
class _Entry:
    times: StepTimes
    samples: int
    flops: float
    learning_rate: float
    loss: torch.Tensor  # sum over this rank's samples
    enters: list[float]


class StepLedger:
    """One rank's books.

    Arguments:
        context: the rank; its run folder gets the rows, if there is one.
        buckets: how many collectives a step has.
        trace_every: one step in so many is sampled for the timeline.
    """

    def __init__(self, context: RankContext, *, buckets: int, trace_every: int) -> None:
        self._context, self._clock = context, context.clock
        self._buckets, self._trace_every = buckets, trace_every
        self._lag = _CUDA_LAG if context.device.type == "cuda" else 0
        self._waiting: deque[_Entry] = deque()  # ended, not yet posted
        self._posted: deque[tuple[_Entry | None, torch.Tensor, Any]] = deque()
        who = f"rank-{context.rank:05d}"
        self._tables = {
            table: TableWriter(context.run.tables, table, who)
            for table in ("steps", "collectives", "spans")
            if context.run is not None
        }
        self._begun = -1
        self._settled = Agreement()
        self.last_loss = math.nan

    def begin(self, step: int) -> None:
        """Begins a step, unless it has been begun; the one before ends at the same instant."""
        if self._begun == step:
            return
        self._begun = step
        self._clock.begin_step(step, sampled=step <= 3 or step % self._trace_every in (0, 1))

    def end(
        self, *, loss: torch.Tensor, samples: int, flops: float, learning_rate: float, checkpoint_due: bool
    ) -> Agreement:
        """Posts this step's vector and reads the one before.

        Arguments:
            loss: sum of the loss over this rank's samples, a detached scalar.
            samples: how many samples this rank processed.
            flops: how many floating-point operations that took.
            learning_rate: used in this step.
            checkpoint_due: whether this rank thinks it is time for a checkpoint.
        """
        times = self._clock.current
        self._waiting.append(_Entry(times, samples, flops, learning_rate, loss, []))
        stop = self._context.stop_asked or ""
        entry = self._waiting.popleft() if len(self._waiting) > self._lag else None
        self._post(entry, stop, checkpoint_due)
        settled, self._settled = self._settled, Agreement()
        return settled.joined(self._read()) if len(self._posted) > 1 else settled

    def settle(self) -> None:
        """Writes the rows of all steps that have ended to their files: no checkpoint without its steps on record.

        All ranks must call it together. What the exchanges it reads agree on is told by the next `end`.
        """
        while self._waiting:
            self._post(self._waiting.popleft(), "", False)
        while self._posted:
            self._settled = self._settled.joined(self._read())
        for writer in self._tables.values():
            writer.flush()

    def drain(self) -> None:
        """Ends the open step and settles."""
        self._clock.end_step()
        self._begun = -1
        self.settle()

    # ---- the exchange -----------------------------------------------------------------------------------------------

    def _post(self, entry: _Entry | None, stop: str, checkpoint_due: bool) -> None:
        loss, samples = 0.0, 0
        enters: list[float] = []
        if entry is not None:
            entry.enters = enters = self._clock.resolve_enters(entry.times)
            loss, samples = float(entry.loss), entry.samples
        padding = [-math.inf] * (self._buckets - len(enters))
        values = [loss, samples, STOP_REASONS.index(stop), float(checkpoint_due), *enters, *padding]
        vector = torch.tensor(values, dtype=torch.float64)
        gathered = torch.empty(self._context.world_size, vector.numel(), dtype=torch.float64)
        work = dist.all_gather(list(gathered), vector, group=self._context.control, async_op=True)
        self._posted.append((entry, gathered, work))

    def _read(self) -> Agreement:
        entry, gathered, work = self._posted.popleft()
        with self._clock.in_a_collective():
            work.wait()
        losses, samples, stops, due, *enters = zip(*gathered.tolist(), strict=True)
        if entry is not None:
            self.last_loss = math.fsum(losses) / sum(samples)
            self._write(entry, [max(times) for times in enters[: len(entry.enters)]])
        stop = STOP_REASONS[int(max(stops))]
        return Agreement(stop or None, any(due))

    def _write(self, entry: _Entry, last_enter: list[float]) -> None:
        if not self._tables:
            return
        context, times = self._context, entry.times
        pillars = self._clock.pillars(times, last_enter)
        who = {"attempt": context.attempt, "rank": context.rank, "step": times.step}
        self._tables["steps"].append(
            **who,
            world_size=context.world_size,
            start=times.start,
            wall=pillars.wall,
            io=pillars.io,
            compute=pillars.compute,
            comm=pillars.comm,
            idle=pillars.idle,
            comm_hidden=pillars.comm_hidden,
            stall=pillars.stall,
            samples=entry.samples,
            flops=entry.flops,
            loss=self.last_loss,
            learning_rate=entry.learning_rate,
        )
        for bucket in times.buckets:
            self._tables["collectives"].append(
                **who,
                kind=bucket.kind,
                group="world",
                bucket=bucket.index,
                bytes=bucket.bytes,
                wire_bytes=_sent(bucket, context.world_size),
                ready=bucket.ready,
                enter=bucket.enter,
                last_enter=bucket.last_enter,
                end=bucket.end,
            )
        if times.sampled:
            for lane, name, start, end in times.timeline():
                self._tables["spans"].append(**who, lane=lane, name=name, start=start, end=end)


def _sent(bucket: Bucket, ranks: int) -> int:
    """The payload that a rank sends for a bucket, of an all-reduce that of a bandwidth-optimal one (Patarasuk, Yuan 2009)."""
    return 2 * bucket.bytes * (ranks - 1) // ranks if bucket.wire_bytes is None else bucket.wire_bytes
