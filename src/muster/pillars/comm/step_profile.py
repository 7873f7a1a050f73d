"""When things happen within a training step: what a bucket layout is planned from and a step's time predicted from.

Measured on the user's own steps, by hooks that stay for those steps only: nothing is computed twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from muster.pillars.comm.reducer import reduced_parameters


@dataclass(frozen=True)
class StepProfile:
    """Median times of a step in seconds since its forward pass began; of the slowest rank each, and equal on all ranks.

    Arguments:
        names: parameters, in the order in which their gradients become ready.
        bytes: of each gradient.
        ready_s: when each gradient is ready.
        forward_s: when the forward pass is over.
        backward_s: when the backward pass has computed its last gradient.
        exchanged_s: when the backward pass returns: all gradients have been exchanged.
        step_s: when the next forward pass begins.
        world_size: how many ranks.
        steps: how many steps the medians are of.
    """

    names: tuple[str, ...]
    bytes: tuple[int, ...]
    ready_s: tuple[float, ...]
    forward_s: float
    backward_s: float
    exchanged_s: float
    step_s: float
    world_size: int
    steps: int

    @property
    def exposed_s(self) -> float:
        """How long the backward pass waits for the exchange after its last gradient."""
        return self.exchanged_s - self.backward_s


@dataclass
class _Marks:
    begin: Any
    forward: Any = None
    ready: dict[int, Any] = field(default_factory=dict)
    computed: Any = None
    exchanged: Any = None
    next_begin: Any = None

    @property
    def complete(self) -> bool:
        marks = (self.forward, self.computed, self.exchanged, self.next_begin)
        return all(mark is not None for mark in marks)


class StepRecorder:
    """Records steps of a DistributedDataParallel; call `begin` just before each forward pass.

    On CUDA marks are events on the current stream, so the times are the device's; nothing is synchronised before `profile`.

    Arguments:
        model: whose steps.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._parameters, self._names = reduced_parameters(model)
        self._cuda = self._parameters[0].device.type == "cuda"
        self._steps: list[_Marks] = []
        self._open: _Marks | None = None
        self._handles: list[Any] = [model.register_forward_hook(self._forward_done)]
        for index, parameter in enumerate(self._parameters):
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._on_ready(index)))

    def begin(self) -> None:
        """A forward pass begins whose backward pass will exchange gradients."""
        mark = self._mark()
        if self._open is not None:
            self._open.next_begin = mark
        self._open = _Marks(mark)
        self._steps.append(self._open)

    def stop(self) -> None:
        """Ends the recording just before a forward pass; the model has no more hooks of it."""
        if self._open is not None:
            self._open.next_begin = self._mark()
        self._open = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def profile(self, group: dist.ProcessGroup | None) -> StepProfile | None:
        """The medians over what has been recorded; all ranks of ``group`` must call it together, after `stop`.

        None if some rank has recorded no whole step.
        """
        device = self._parameters[0].device if self._cuda else torch.device("cpu")
        if self._cuda:
            torch.cuda.synchronize(device)
        rows = [self._times(marks) for marks in self._steps if marks.complete]
        width = len(self._parameters) + 4
        # One more column says whether this rank has steps at all; a maximum over ranks of its negative finds one that
        # has none.
        columns = [statistics.median(column) for column in zip(*rows, strict=True)] if rows else [0.0] * width
        vector = torch.tensor([*columns, -float(len(rows))], dtype=torch.float64, device=device)
        dist.all_reduce(vector, op=dist.ReduceOp.MAX, group=group)
        *ready, forward, computed, exchanged, step, steps = vector.tolist()
        if steps >= 0:
            return None
        order = sorted(range(len(ready)), key=lambda index: (ready[index], -index))
        return StepProfile(
            names=tuple(self._names[index] for index in order),
            bytes=tuple(
                self._parameters[index].numel() * self._parameters[index].element_size() for index in order
            ),
            ready_s=tuple(ready[index] for index in order),
            forward_s=forward,
            backward_s=computed,
            exchanged_s=exchanged,
            step_s=step,
            world_size=dist.get_world_size(group),
            steps=-int(steps),
        )

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def _forward_done(self, *_: Any) -> None:
        if self._open is not None and self._open.forward is None:
            self._open.forward = self._mark()

    def _on_ready(self, index: int) -> Callable[[torch.Tensor], None]:
        def ready(_: torch.Tensor) -> None:
            marks = self._open
            if marks is None or not self._model.require_backward_grad_sync:
                return
            if not marks.ready:
                # Before DistributedDataParallel queues its own callback, which waits for the buckets.
                torch.autograd.Variable._execution_engine.queue_callback(self._computed)  # type: ignore[attr-defined]
            marks.ready.setdefault(index, self._mark())

        return ready

    def _computed(self) -> None:
        if self._open is not None:
            self._open.computed = self._mark()
            torch.autograd.Variable._execution_engine.queue_callback(self._exchanged)  # type: ignore[attr-defined]

    def _exchanged(self) -> None:
        if self._open is not None:
            self._open.exchanged = self._mark()

    def _times(self, marks: _Marks) -> list[float]:
        computed = self._since(marks.begin, marks.computed)
        return [
            # A parameter that the loss did not depend on is given up when the backward pass ends.
            *(
                self._since(marks.begin, marks.ready[index]) if index in marks.ready else computed
                for index in range(len(self._parameters))
            ),
            self._since(marks.begin, marks.forward),
            computed,
            self._since(marks.begin, marks.exchanged),
            self._since(marks.begin, marks.next_begin),
        ]

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3 if self._cuda else float(end - begin)
