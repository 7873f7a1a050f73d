"""One call of a task in the graph, and the queue of those that could run now."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from muster.engine.flow.arguments import Call
from muster.engine.flow.future import Failure, Future

if TYPE_CHECKING:
    from muster.engine.flow.groups import Group
    from muster.engine.flow.journal import Key
    from muster.engine.flow.task import Task

WAITING: Final = 0  # for what it needs
READY: Final = 1
RUNNING: Final = 2
DONE: Final = 3
FAILED: Final = 4
CANCELLED: Final = 5


class Node:
    """One call of a task; small, since there may be a hundred thousand.

    Arguments:
        number: in the order of the program, from 1.
        task: that was called.
        call: its arguments.
        groups: that it belongs to.
        parent: the call within which it was made, None in the main program.
    """

    __slots__ = (
        "attempt",
        "call",
        "cores",
        "groups",
        "holds",
        "key",
        "missing",
        "number",
        "outcome",
        "parent",
        "rank",
        "returned",
        "state",
        "stop",
        "successors",
        "task",
        "times",
    )

    def __init__(
        self, number: int, task: Task[..., Any], call: Call, groups: tuple[Group, ...], parent: Node | None
    ) -> None:
        self.number, self.task, self.call, self.groups, self.parent = number, task, call, groups, parent
        self.returned: tuple[Future, ...] = ()
        self.key: Key | None = None  # in the record of the flow
        self.successors: list[Node] = []
        self.missing = 0  # tasks that make what it needs and are not done
        self.state = WAITING
        self.attempt = 1
        self.cores = 1
        self.rank = 0.0  # seconds from its start to the end of the longest chain after it, as estimated
        self.holds = False  # it has its turn with what it changes in any order
        self.stop = False  # it was asked to end
        self.times: tuple[float, ...] = ()  # ready, started, ended; of each attempt
        self.outcome: Failure | None = None

    @property
    def name(self) -> str:
        """As people read it: ``task 12 advance``."""
        return f"task {self.number} {self.task.__name__}"

    def written(self) -> Iterator[Any]:
        """Futures and turns of what it changes."""
        return iter(self.call.outputs.values())


class ReadyQueue:
    """Tasks whose inputs are there: by priority, then by the longest chain that hangs on them, then in program order."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, float, int, Node]] = []

    def __len__(self) -> int:
        return len(self._heap)  # with those that have been cancelled and not come up since

    def __bool__(self) -> bool:
        return any(entry[3].state == READY for entry in self._heap)

    def push(self, node: Node) -> None:
        """Adds one."""
        heapq.heappush(self._heap, (-node.task.priority, -node.rank, node.number, node))

    def pop(self, fits: Callable[[Node], bool]) -> Node | None:
        """The first that fits and has not been cancelled meanwhile; None if there is none."""
        passed = []
        found = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            if entry[3].state != READY:
                continue
            if fits(entry[3]):
                found = entry[3]
                break
            passed.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found

    def reorder(self) -> None:
        """Puts all in order again, after their ranks have changed."""
        self._heap = [
            (-node.task.priority, -node.rank, node.number, node)
            for *_, node in self._heap
            if node.state == READY
        ]
        heapq.heapify(self._heap)


def rank_all(pending: Iterable[Node], cost_s: Callable[[Node], float]) -> None:
    """Estimates the longest chain that hangs on each task (upward rank; Topcuoglu et al., IEEE TPDS 13, 2002).

    Arguments:
        pending: tasks that are not done; a successor has a higher number than what it needs.
        cost_s: how long a task is expected to take, in seconds.
    """
    for node in sorted(pending, key=lambda each: -each.number):
        longest = max((after.rank for after in node.successors), default=0.0)
        node.rank = cost_s(node) + longest
