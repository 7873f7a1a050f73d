"""What runs the tasks of a flow: the contract, and its simplest form.

All executors have the same semantics; the inline one is the oracle of the tests.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from muster.engine.flow.arguments import private
from muster.errors import TaskTimeout

if TYPE_CHECKING:
    from muster.engine.flow.node import Node
    from muster.engine.flow.session import Flow


class Executor(ABC):
    """Takes ready tasks from its flow, runs them, and tells `Flow.finish` or `Flow.fail`."""

    concurrent = True  # whether tasks run while the program goes on

    def open(self, flow: Flow) -> None:
        """The flow begins."""
        self.flow = flow

    @property
    @abstractmethod
    def cores(self) -> int:
        """Cores that one task may have at most."""

    @abstractmethod
    def look(self) -> None:
        """There may be a task to run, or room for one; called without the flow's lock."""

    def block(self, node: Node) -> None:  # noqa: B027 -- only who has cores to hand out does something
        """A running task begins to wait for others: its cores are free meanwhile."""

    def unblock(self, node: Node) -> None:  # noqa: B027
        """It goes on."""

    def interrupt(self, node: Node, grace_s: float) -> None:  # noqa: B027 -- only who can kill it does
        """A running task was asked to end; whoever can kills it after that time."""

    def fetch(self, value: Any) -> Any:
        """A result as a program wants it; an executor may keep it elsewhere until then.

        Raises:
            WorkerLost: it is no more.
        """
        return value

    @abstractmethod
    def close(self) -> None:
        """Ends what runs and gives back what was taken."""


def run_task(flow: Flow, node: Node, values: list[Any]) -> None:
    """Runs a task in this thread, and tells its flow."""
    try:
        if node.call.files is None:
            returned = _called(flow, node, values)
        else:
            with flow.files.opened(node.call.files, values):
                returned = _called(flow, node, values)
    except BaseException as error:
        flow.fail(node, error)
        if not isinstance(error, Exception):
            raise
    else:
        limit_s = node.task.timeout_s
        if limit_s is not None and (took_s := time.monotonic() - node.times[-1]) > limit_s:
            flow.fail(node, TaskTimeout(f"{node.name} took {took_s:.3g} s; timeout_s is {limit_s:g}"))
        else:
            flow.finish(node, returned, values)


def _called(flow: Flow, node: Node, values: list[Any]) -> Any:
    from muster.engine.flow.session import inside

    call = node.call
    for index in call.outputs:
        values[index] = private(values[index])
    args, kwargs = call.filled(values)
    with inside(flow, node):
        return node.task.function(*args, **kwargs)


class Inline(Executor):
    """Runs each task where it is called, in the caller's thread."""

    concurrent = False

    @property
    def cores(self) -> int:
        return 1 << 30  # there is one task at a time, so it may have all there are

    def look(self) -> None:
        flow = self.flow
        while True:
            with flow.lock:
                node = flow.graph.ready.pop(lambda _: True)
            if node is None:
                return
            if (values := flow.begin(node)) is not None:
                run_task(flow, node, values)

    def close(self) -> None:
        pass
