"""Groups of tasks: waited for, cancelled and drawn together."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from muster.engine.flow.future import Future

if TYPE_CHECKING:
    from muster.engine.flow.node import Node
    from muster.engine.flow.session import Flow

_open = threading.local()


def open_groups() -> tuple[Group, ...]:
    """The groups of this thread's ``with`` blocks, outermost first."""
    return getattr(_open, "groups", ())


class Group:
    """Tasks that were called within a ``with`` block.

    ::

        with group("ensemble") as members:
            runs = [simulate(seed) for seed in range(100)]
        members.barrier()

    Arguments:
        flow: whose tasks they are.
        name: shown in the report; groups may lie within each other.
        wait: whether leaving the block waits for them.
    """

    def __init__(self, flow: Flow, name: str, *, wait: bool = False) -> None:
        self.flow, self.name, self._wait = flow, name, wait
        self.path = "/".join([*(each.name for each in open_groups()), name])
        self.pending: set[Node] = set()
        self.cancelled = False

    def __enter__(self) -> Any:
        _open.groups = (*open_groups(), self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open.groups = open_groups()[:-1]
        if self._wait and error is None:
            self.barrier()

    def barrier(self, timeout_s: float | None = None) -> None:
        """Waits until all tasks of the group are done.

        Raises:
            TimeoutError: they are not in time.
            BaseException: what one of them raised that lets the flow fail.
        """
        self.flow.barrier(self, timeout_s)

    def cancel(self, grace_s: float = 1.0) -> None:
        """Cancels its tasks, and what needs them.

        Those that run are asked to end (`cancel_wanted` tells them). On Ray, one that still runs after ``grace_s`` is killed;
        inline and on threads it goes on to its end, and its result is thrown away.
        """
        self.cancelled = True
        self.flow.cancel(list(self.pending), grace_s)


class Speculation(Group):
    """Tasks of which those are cancelled that a result makes superfluous.

    ::

        with stop_when(lambda error: error < 1e-6) as until:
            for _ in range(1000):
                error = improve(state)
                if until.watch(error):
                    break
        print(until.result)

    The loop runs ahead of the tasks. As soon as a watched result is enough, all tasks of the block that were called after it
    was watched are cancelled, and `watch` says so.

    Arguments:
        flow: whose tasks they are.
        predicate: of a watched result, whether it is enough; called as soon as it is there.
        grace_s: as for `Group.cancel`.
    """

    def __init__(self, flow: Flow, predicate: Any, name: str, grace_s: float) -> None:
        super().__init__(flow, name)
        self._predicate, self._grace_s = predicate, grace_s
        self._watched: list[tuple[Future, int]] = []
        self._first: int | None = None
        self._error: BaseException | None = None

    def watch(self, result: Future) -> bool:
        """Watches one more result.

        Returns:
            whether one of those watched so far is enough, so that nothing else need be called.

        Raises:
            BaseException: what the predicate raised.
        """
        place = len(self._watched)
        self._watched.append((result, self.flow.graph.number))
        result.add_done_callback(lambda done: self._look(place, done))
        if self._error is not None:
            raise self._error
        return self._first is not None

    def _look(self, place: int, done: Any) -> None:
        if done.cancelled() or done.failed is not None or (self._first is not None and self._first < place):
            return
        try:
            enough = self._predicate(done.result())
        except BaseException as error:
            self._error = error
            return
        if enough:
            with self.flow.lock:
                if self._first is None or place < self._first:
                    self._first = place
                after = self._watched[self._first][1]
                late = [node for node in self.pending if node.number > after]
                self.flow.cancel(late, self._grace_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            for place, (result, _) in enumerate(self._watched):
                if self._first is not None and self._first <= place:
                    break
                self.flow.wait_until(result.done, None)
        if self._error is not None:
            raise self._error

    @property
    def stopped(self) -> bool:
        """Whether a watched result was enough."""
        return self._first is not None

    @property
    def index(self) -> int | None:
        """Which of the watched results was enough, from 0; the earliest of them."""
        return self._first

    @property
    def result(self) -> Any:
        """The result that was enough, None if none was."""
        return None if self._first is None else self._watched[self._first][0].result()
