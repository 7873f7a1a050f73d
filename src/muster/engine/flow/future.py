"""The result of a task that may not have run yet.

A `concurrent.futures.Future` to whoever wants one (``wait``, ``as_completed``, ``add_done_callback``,
``asyncio.wrap_future``), but with one lock for the whole flow instead of one each, since there may be a hundred thousand.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures._base import (
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muster.errors import TaskRefused

if TYPE_CHECKING:
    from muster.engine.flow.data import Datum
    from muster.engine.flow.graph import Source
    from muster.engine.flow.session import Flow


@dataclass(frozen=True)
class Failure:
    """Why there is no result, and by which tasks that came about.

    Arguments:
        error: what was raised where it began.
        task: whose failure this is: its number and its function's name.
        cause: the failure of the task that this one needed, None where it began.
    """

    error: BaseException
    task: str
    cause: Failure | None = None

    def lineage(self) -> list[str]:
        """The tasks that led here, from the one that raised on."""
        names, at = [], self
        while True:
            names.append(at.task)
            if at.cause is None:
                return names[::-1]
            at = at.cause

    def raised(self) -> BaseException:
        """The original exception, which tells the way it came once."""
        names = self.lineage()
        shown = names if len(names) <= 9 else [*names[:4], f"({len(names) - 8} more)", *names[-4:]]
        note = f"raised in {shown[0]}" + (f"; needed by {' → '.join(shown[1:])}" if shown[1:] else "")
        if note not in getattr(self.error, "__notes__", ()):
            self.error.add_note(note)
        return self.error


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """What a call of a task returns; its value is there once the task is done.

    ``result()`` is what its own task returned, whatever happened to it later; `wait_on` gives its latest version, after
    all tasks that took it as INOUT. Made by the engine only.
    """

    __slots__ = (
        "_called_back",
        "_exception",
        "_result",
        "_state",
        "_told",
        "datum",
        "failed",
        "flow",
        "key",
        "readers",
        "source",
    )

    def __init__(self, flow: Flow, source: Source | None) -> None:
        self.flow = flow
        self.source = source  # the task that will make it, until it has
        self._state: str = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self.failed: Failure | None = None
        self.datum: Datum | None = None
        self._told: list[Any] | None = None
        self._called_back: list[Callable[[Any], object]] | None = None
        self.readers = 0  # tasks that will read it
        self.key: str | None = (
            None  # in the record: what it is, whatever its value; None if that cannot be told
        )

    # What the methods of the base class and `concurrent.futures.wait` look for; they only read it, so it is made on demand.

    @property
    def _condition(self) -> Any:  # type: ignore[override]
        return self.flow.changed

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._told is None:
            self._told = []
        return self._told

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:  # type: ignore[override]
        if self._called_back is None:
            self._called_back = []
        return self._called_back

    def __repr__(self) -> str:
        source = f" of {self.source.name}" if self.source is not None else ""
        return f"<Future{source} {self._state.lower().replace('_and_notified', '')}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Future of a flow cannot be sent to another process inside an object; pass it as an argument, or in a list, "
            "tuple or dict of one"
        )

    def done(self) -> bool:
        return self._state is FINISHED or self._state is CANCELLED_AND_NOTIFIED

    def cancel(self) -> bool:
        """Cancels its task, and what needs it, if it has not begun; returns whether it is cancelled."""
        return self.flow.cancel_future(self)

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned.

        Arguments:
            timeout: in seconds.

        Raises:
            TimeoutError: not there in time.
            CancelledError: cancelled.
            BaseException: what the task raised, or one that it needed.
        """
        self._wait(timeout)
        if self._state is CANCELLED_AND_NOTIFIED:
            raise concurrent.futures.CancelledError
        if self.failed is not None:
            raise self.flow.delivered(self.failed)
        return self.flow.executor.fetch(self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, None if nothing; raises as `result` else."""
        self._wait(timeout)
        if self._state is CANCELLED_AND_NOTIFIED:
            raise concurrent.futures.CancelledError
        return None if self.failed is None else self.flow.delivered(self.failed)

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            until = None if timeout is None else time.monotonic() + timeout
            if not self.flow.wait_until(self.done, until):
                raise TimeoutError(f"{self!r}: not done after {timeout} s")

    # The engine's side; all under the flow's lock.

    def made_by(self, source: Source) -> None:
        self.source = source

    def stands_for(self, before: Any) -> None:
        """The version that takes this one's place if it is cancelled: the one before it."""
        self._result = before if type(before) is Future else None

    def begin(self) -> None:
        self._state = RUNNING

    def wait_again(self) -> None:
        self._state = PENDING

    def settle(self, value: Any) -> None:
        self._result, self._state, self.source = value, FINISHED, None
        self._tell("add_result")

    def fail(self, failure: Failure) -> None:
        self.failed, self._exception = failure, failure.error
        self._state, self.source = FINISHED, None
        self._tell("add_exception")

    def give_up(self) -> None:
        self._state, self.source = CANCELLED_AND_NOTIFIED, None
        self._tell("add_cancelled")

    def drop_if_deleted(self) -> None:
        """Forgets the value if it was given to a task as IN_DELETE, and all that read it are done."""
        if self.readers or self.datum is None or not self.datum.deleted:
            return
        gone = TaskRefused("the value was given to a task as IN_DELETE: it is no more")
        self._result, self.failed = None, Failure(gone, "IN_DELETE")

    def _tell(self, word: str) -> None:
        if self._told:
            for waiter in self._told:
                getattr(waiter, word)(self)  # who takes itself off the list
        if self._called_back:
            self.flow.call_back(self, self._called_back)
            self._called_back = None
