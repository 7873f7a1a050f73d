"""Times what a rank computes in a step of a pipeline, and tells the pillar clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch

from muster.engine.gang import RankContext
from muster.training.pipeline._timeline import Action, Span


class Recorder:
    """One rank's record of one step at a time.

    Between two actions a rank waits for a neighbour, which is what the clock calls being in a collective: an error there is
    likely the neighbour's fault, one inside an action is this rank's own.

    Arguments:
        context: the rank. On CUDA the device is synchronised around every action, else only its launch would be timed.
    """

    def __init__(self, context: RankContext) -> None:
        self._context, self._clock = context, context.clock
        self._device = context.device if context.device.type == "cuda" else None
        self._blocked = ExitStack()
        self.spans: list[Span] = []
        self.begun = self.ended = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The whole of a step on this rank; the last one's spans are forgotten."""
        self.spans = []
        self.begun = self._now()
        self._block()
        yield
        self._blocked.close()
        self.ended = self._now()
        self._account()

    @contextmanager
    def computing(self, action: Action) -> Iterator[None]:
        """An action that this rank computes."""
        self._blocked.close()
        self._context.heartbeat()
        begin = self._now()
        with self._clock.span(_LANES[action.kind]):
            yield
            end = self._now()
        self.spans.append(Span(self._context.rank, action, begin, end))
        self._block()

    @contextmanager
    def prolonging(self) -> Iterator[None]:
        """More computing for the action that has just ended, such as the loss after the last forward."""
        self._blocked.close()
        with self._clock.span("loss"):
            yield
            self.spans[-1] = self.spans[-1]._replace(end=self._now())
        self._block()

    def _block(self) -> None:
        self._blocked.enter_context(self._clock.in_a_collective())

    def _now(self) -> float:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        return self._clock.now()

    def _account(self) -> None:
        """Tells the open step of the clock, if there is one, that this rank stood still between its actions."""
        if self._device is not None:
            return  # the clock partitions the device's time, and knows events only
        with suppress(RuntimeError):  # no step is open: nobody keeps books
            stalls = self._clock.current.stalls
            reached = self.begun
            for span in self.spans:
                stalls.append(("wait", reached, span.start))
                reached = span.end
            stalls.append(("wait", reached, self.ended))


_LANES = {"F": "forward", "B": "backward", "I": "backward", "W": "backward"}
