"""The clock that a rank's training loop runs on.

On a CPU a mark is the time it was made. On CUDA a mark is an event on the current stream, and the partition is that of
the *device's* time: nothing is synchronised that ran asynchronously; events are read steps later, when they have
long happened, and chained from one to the next, so that their float32 milliseconds stay exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from muster.engine.clock._partition import Bucket, Pillars, partition

Mark = Any  # float seconds (CPU) or torch.cuda.Event

CommunicationHook = Callable[[Any, Any], "torch.futures.Future[torch.Tensor]"]

Describe = Callable[[int], tuple[str, int | None]]
"""From the index of a bucket that has landed: how it was exchanged, and the bytes that this rank sent for it
(None: as for an all-reduce)."""


@dataclass(slots=True)
class _Flight:
    index: int
    bytes: int
    enter: Mark
    end: Mark = None
    kind: str = "all_reduce"
    wire_bytes: int | None = None


@dataclass(slots=True)
class StepTimes:
    """Raw marks of one step; `resolve` makes times of them."""

    step: int
    start: float
    sampled: bool
    end: float = 0.0
    io: float = 0.0
    io_spans: list[tuple[float, float]] = field(default_factory=list)
    stalls: list[tuple[str, float, float]] = field(default_factory=list)
    flights: list[_Flight] = field(default_factory=list)
    blocked_from: Mark = None
    blocked_until: Mark = None
    device_start: Mark = None
    device_end: Mark = None
    spans: list[tuple[str, Mark, Mark]] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)

    def timeline(self) -> Iterator[tuple[str, str, float, float]]:
        """Lane, name, start and end of everything that happened in a resolved step."""
        for start, end in self.io_spans:
            yield "loop", "io", start, end
        yield from (("loop", name, start, end) for name, start, end in self.spans)
        if self.blocked_from is not None and self.blocked_until is not None:
            yield "loop", "wait", self.blocked_from, self.blocked_until
        yield from (("loop", name, start, end) for name, start, end in self.stalls)
        for bucket in self.buckets:
            yield "comm", f"{bucket.kind} {bucket.index}", bucket.enter, bucket.end


class PillarClock:
    """Times the steps of one rank.

    A loop calls `begin_step` at the top of each step, waits for its batch inside `waiting`, wraps checkpoints and
    evaluation in `stall`, and lets DistributedDataParallel reduce gradients through `hook`.

    Arguments:
        shift_s: what to add to this host's monotonic clock to get seconds on the run-wide clock.
        device: where the model computes.
    """

    def __init__(self, shift_s: float = 0.0, device: torch.device | None = None) -> None:
        self.shift_s = shift_s
        self._cuda = device is not None and device.type == "cuda"
        self._step: StepTimes | None = None
        self._base: tuple[Any, float] | None = None
        self._in_collective = False

    def now(self) -> float:
        """Seconds on the run-wide clock."""
        return time.perf_counter() + self.shift_s

    @property
    def in_collective(self) -> bool:
        """Whether this rank is blocked in a collective at this moment."""
        return self._in_collective

    @contextmanager
    def in_a_collective(self) -> Iterator[None]:
        """Marks a stretch in which an error is likely another rank's fault."""
        self._in_collective = True
        yield
        self._in_collective = False  # on purpose not in `finally`: after an error it says where it happened

    # ---- the loop -------------------------------------------------------------------------------------------

    def begin_step(self, step: int, *, sampled: bool = False) -> StepTimes | None:
        """Ends the step that is open and begins the next at the same instant; returns the one that ended."""
        ended = self.end_step()
        start = ended.end if ended is not None else self.now()
        if self._cuda and self._base is None:
            torch.cuda.synchronize()
            self._base = self._event(), self.now()
        self._step = StepTimes(step, start, sampled)
        return ended

    def end_step(self) -> StepTimes | None:
        """Ends the open step, if there is one, and returns its marks."""
        ended, self._step = self._step, None
        if ended is not None:
            ended.end = self.now()
            ended.device_end = self._mark()
        return ended

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The loop waits for its batch: I/O."""
        begin = self.now()
        yield
        if self._step is not None:
            end = self.now()
            self._step.io += end - begin
            self._step.io_spans.append((begin, end))
            self._step.device_start = self._mark()

    @contextmanager
    def stall(self, name: str) -> Iterator[None]:
        """The loop stands still for a checkpoint or an evaluation: idle."""
        if self._cuda:
            torch.cuda.synchronize()
        begin = self.now()
        yield
        if self._step is not None:
            if self._cuda:
                torch.cuda.synchronize()
            self._step.stalls.append((name, begin, self.now()))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Names a stretch of compute for the timeline; costs nothing in steps that are not sampled."""
        if self._step is None or not self._step.sampled:
            yield
            return
        begin = self._mark()
        yield
        self._step.spans.append((name, begin, self._mark()))

    def hook(self, inner: CommunicationHook, describe: Describe | None = None) -> CommunicationHook:
        """A DistributedDataParallel communication hook that times ``inner``, another such hook.

        A bucket is entered when it is handed to ``inner`` and ends when its mean is there, however many collectives that
        takes.

        The wait of the backward pass is found through the autograd engine's final callbacks: ours is queued before
        DistributedDataParallel's own, which waits for the buckets, and a second one after it.

        Arguments:
            inner: the hook.
            describe: what it did with a bucket; by default an all-reduce.
        """

        def timed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            step = self._step
            if step is None:
                return inner(state, bucket)
            buffer = bucket.buffer()
            flight = _Flight(bucket.index(), buffer.numel() * buffer.element_size(), self._mark())
            step.flights.append(flight)
            future = inner(state, bucket)
            if bucket.is_last():
                torch.autograd.Variable._execution_engine.queue_callback(self._begin_wait)  # type: ignore[attr-defined]

            def landed(done: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
                value = done.value()
                flight.end = self._mark()
                if describe is not None:
                    flight.kind, flight.wire_bytes = describe(flight.index)
                return value

            return future.then(landed)

        # DistributedDataParallel checks the annotations as objects, and here they are strings.
        timed.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
        return timed

    def _begin_wait(self) -> None:
        if self._step is not None:
            self._step.blocked_from = self._mark()
            self._in_collective = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_wait)  # type: ignore[attr-defined]

    def _end_wait(self) -> None:
        if self._step is not None:
            self._step.blocked_until = self._mark()
        self._in_collective = False

    # ---- afterwards -----------------------------------------------------------------------------------------

    @property
    def current(self) -> StepTimes:
        """The marks of the step that is open.

        Raises:
            RuntimeError: no step is open.
        """
        if self._step is None:
            raise RuntimeError("no step is open: call begin_step first")
        return self._step

    def resolve_enters(self, step: StepTimes) -> list[float]:
        """When this rank entered each bucket of a step, in order.

        On CUDA the step must have ended; this waits for its last event, which is why the caller comes some steps later.
        """
        if self._cuda and step.device_end is not None:
            step.device_end.synchronize()
            self._resolve_device_times(step)
        return [flight.enter for flight in step.flights]

    def pillars(self, step: StepTimes, last_enter: list[float]) -> Pillars:
        """The partition of a step that has ended.

        Arguments:
            step: a step after `resolve_enters`.
            last_enter: for each bucket, when the last of all ranks entered it.
        """
        step.buckets = [
            Bucket(
                index=flight.index,
                bytes=flight.bytes,
                ready=flight.enter,
                enter=flight.enter,
                end=flight.enter if flight.end is None else flight.end,
                last_enter=max(entered, flight.enter),
                kind=flight.kind,
                wire_bytes=flight.wire_bytes,
            )
            for flight, entered in zip(step.flights, last_enter, strict=True)
        ]
        blocked = None
        if step.blocked_from is not None and step.blocked_until is not None:
            blocked = (step.blocked_from, step.blocked_until)
        return partition(
            wall=step.end - step.start,
            io=step.io,
            stall=sum(end - begin for _, begin, end in step.stalls),
            blocked=blocked,
            buckets=step.buckets,
        )

    def _mark(self) -> Mark:
        return self._event() if self._cuda else self.now()

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _resolve_device_times(self, step: StepTimes) -> None:
        """Puts device times in the place of events, and bounds `io` by what the device really waited."""
        assert self._base is not None
        base, base_time = self._base

        def at(event: Any) -> Any:
            return None if event is None else base_time + base.elapsed_time(event) / 1e3

        device_end = at(step.device_end)
        for flight in step.flights:
            flight.enter, flight.end = at(flight.enter), at(flight.end)
        step.blocked_from, step.blocked_until = at(step.blocked_from), at(step.blocked_until)
        step.spans = [(name, at(begin), at(end)) for name, begin, end in step.spans]
        # The device was still busy with earlier steps until `base_time`: only the rest of the host's wait was a wait.
        step.io = sum(max(0.0, end - max(begin, base_time)) for begin, end in step.io_spans)
        step.start, step.end = base_time, device_end
        self._base = step.device_end, device_end
