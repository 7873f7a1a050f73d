"""The graph of one flow: what was called, what each call waits for, and what follows when one is done.

It runs nothing and waits for nothing, and all of it is under its flow's lock. What can run lies in `ready`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from muster.engine.flow.arguments import NO_CALL, Call, private, sealed
from muster.engine.flow.data import Turns, future_of
from muster.engine.flow.future import Failure, Future
from muster.engine.flow.node import (
    CANCELLED,
    DONE,
    FAILED,
    READY,
    RUNNING,
    WAITING,
    Node,
    ReadyQueue,
    rank_all,
)
from muster.errors import TaskRefused

if TYPE_CHECKING:
    from muster.engine.flow.durable import Found
    from muster.engine.flow.groups import Group
    from muster.engine.flow.journal import Key
    from muster.engine.flow.session import Flow
    from muster.engine.flow.task import Task

Source = Node | Turns

_RANK_EVERY: Final = 256


class Graph:
    """Calls of tasks, joined by their data.

    Arguments:
        flow: whose they are.
        cores: that one task may have at most.
    """

    def __init__(self, flow: Flow, cores: int) -> None:
        self._flow, self._cores = flow, cores
        self.ready = ReadyQueue()
        self.pending: set[Node] = set()
        self.failure: Failure | None = None
        self.counts = {"done": 0, "failed": 0, "cancelled": 0}
        self.number = 0
        self.running = 0
        self._last_ranked = 0
        self._durations: dict[Any, tuple[int, float]] = {}

    def add(
        self,
        task: Task[..., Any],
        call: Call,
        groups: tuple[Group, ...],
        parent: Node | None,
        key: Key | None = None,
    ) -> tuple[Future, ...]:
        """Adds a call; it is ready, or waits, or has already failed with what it needs.

        Arguments:
            task, call: what was called, with what.
            groups: that it belongs to.
            parent: the call within which it was made.
            key: in the record.

        Returns:
            the futures of what it returns.

        Raises:
            TaskRefused: it wants more cores than there are.
        """
        cores = 1 if callable(task.cores) else self._room_for(task, task.cores)
        self.number += 1
        node = Node(self.number, task, call, groups, parent)
        node.cores = cores
        node.key = key
        node.returned = returned = tuple([Future(self._flow, node) for _ in range(task.returns)])
        name_outputs(key, returned, call)
        self.pending.add(node)
        for group in groups:
            group.pending.add(node)
        state, failure = self._join(node) if call.inputs else (WAITING, None)
        if self.failure is not None:
            state, failure = FAILED, self.failure
        elif any(group.cancelled for group in groups):
            state = CANCELLED
        if state != WAITING:
            self.end(node, state, failure)
        elif not node.missing:
            self.make_ready(node)
        if self.number - self._last_ranked >= max(_RANK_EVERY, len(self.pending) // 2):
            self._last_ranked = self.number
            rank_all(self.pending, self.cost_s)
            self.ready.reorder()
        return returned

    def add_done(self, task: Task[..., Any], call: Call, found: Found, key: Key) -> tuple[Future, ...]:
        """Adds a call that is on record, as done."""
        self.number += 1
        self.counts["done"] += 1
        returned = tuple([Future(self._flow, None) for _ in range(task.returns)])
        name_outputs(key, returned, call)
        for future, value in zip(returned, found.results, strict=True):
            future.settle(value)
        for index, output in call.outputs.items():
            if isinstance(output, Turns):
                output.left -= 1
                if not output.after.done():
                    output.after.made_by(output)
            else:
                output.settle(found.changed[index])
        for source in call.inputs:
            if (read := future_of(source)) is not None:
                read.drop_if_deleted()
        return returned

    def add_running(
        self, task: Task[..., Any], call: Call, parent: Node | None, key: Key | None = None
    ) -> Node:
        """Adds a call that is run at once, where it is made; all it needs is there (`Call.is_settled`)."""
        self.number += 1
        node = Node(self.number, task, call, (), parent)
        node.key = key
        node.returned = tuple([Future(self._flow, node) for _ in range(task.returns)])
        name_outputs(key, node.returned, call)
        for source in call.inputs:
            source.readers += 1
        node.state = RUNNING
        node.times = (time.monotonic(),) * 2
        self.running += 1
        return node

    def begin(self, node: Node) -> list[Any] | None:
        """Takes a ready task into work.

        Returns:
            the values of its inputs by slot; None if it has to wait for its turn with one of them.
        """
        turns = [each for each in node.written() if type(each) is Turns]
        for each in turns:
            if each.busy:
                each.parked.append(node)
                node.state = WAITING
                return None
        for each in turns:
            each.busy = True
        node.holds = bool(turns)
        node.state = RUNNING
        node.times = (*node.times, time.monotonic())
        self.running += 1
        for future in node.returned:
            future.begin()
        return [_value(source) for source in node.call.inputs]

    def finish(
        self, node: Node, results: Sequence[Any], values: Sequence[Any], took_s: float | None = None
    ) -> None:
        """A running task has returned.

        Arguments:
            node: the task.
            results: one for each of its futures.
            values: of its inputs, as it has left them.
            took_s: its function took, in seconds; by default since the task was taken into work.
        """
        self._stop(node)
        if node.stop:
            self.end(node, CANCELLED, None)
            return
        node.state = DONE
        count, total = self._durations.get(node.task, (0, 0.0))
        took_s = node.times[-1] - node.times[-2] if took_s is None else took_s
        self._durations[node.task] = (count + 1, total + took_s)
        if node.key is None:
            name_outputs(None, node.returned, node.call)  # it had one, and lost it with what it was given
        for future, value in zip(node.returned, results, strict=True):
            future.settle(sealed(value))
        for index, output in node.call.outputs.items():
            if isinstance(output, Turns):
                output.value, output.started = values[index], True
                self._end_turn(output, node)
            else:
                output.settle(sealed(values[index]))
        self._release(node)

    def fail(self, node: Node, error: BaseException) -> float | None:
        """A running task has raised, run out of time or lost its worker.

        Returns:
            how long to wait before it is to be tried again (`make_ready`), in seconds; None if it is not.
        """
        policy = node.task.on_failure
        self._stop(node)
        if node.stop:
            self.end(node, CANCELLED, None)
        elif (wait_s := policy.wait_s(node.attempt, error)) is not None:
            node.attempt += 1
            self._take_back(node)
            return wait_s
        elif policy.end == "IGNORE":
            self._ignore(node)
        else:
            self._fail_for_good(node, error)
        return None

    def give_back(self, node: Node) -> None:
        """A running task was not done, through no fault of its own."""
        self._stop(node)
        self._take_back(node)
        self.make_ready(node)

    def _take_back(self, node: Node) -> None:
        node.state = WAITING
        for future in node.returned:
            future.wait_again()
        node.holds = False
        for output in node.written():
            if type(output) is Turns:
                self._free(output)

    def end_turns(self, turns: Turns) -> None:
        """Nobody joins these turns any more, and all have had theirs: the version after them is there."""
        before, after = turns.before, turns.after
        if after.done():
            return
        if turns.failure is not None:
            after.fail(turns.failure)
        elif turns.started:
            after.settle(turns.value)
        elif type(before) is Future and before.failed is not None:
            after.fail(before.failed)
        elif type(before) is Future and before.cancelled():
            after.stands_for(before)
            after.give_up()
        else:
            after.settle(_value(before))
        turns.value = None  # it is the version's now
        successors, turns.successors = turns.successors, []
        for node in successors:
            node.missing -= 1
            if node.state != WAITING:
                continue
            if after.failed is not None:
                self.end(node, FAILED, Failure(after.failed.error, node.name, after.failed))
            elif after.cancelled():
                self.end(node, CANCELLED, None)
            elif not node.missing:
                self.make_ready(node)
        self._flow.tell()

    def make_ready(self, node: Node) -> None:
        """All that a task needs is there."""
        if callable(node.task.cores):
            try:
                fetch = self._flow.executor.fetch
                args, kwargs = node.call.filled([fetch(_value(source)) for source in node.call.inputs])
                node.cores = self._room_for(node.task, node.task.cores(*args, **kwargs))
            except Exception as error:
                self._fail_for_good(node, error)
                return
        node.state = READY
        node.times = (time.monotonic(),)
        self.ready.push(node)

    def end(self, node: Node, state: int, failure: Failure | None) -> None:
        """A task will not be done: it failed, or is cancelled; and so is all that needs it."""
        stack = [(node, failure)]
        ended: list[tuple[Node, Failure | None]] = []
        while stack:
            each, why = stack.pop()
            if each.state in (DONE, FAILED, CANCELLED):
                continue
            each.state = state
            ended.append((each, why))
            for after in each.successors:
                if after.state in (WAITING, READY):
                    cause = None if why is None else Failure(why.error, after.name, why)
                    stack.append((after, cause))
            each.successors = []
        for each, why in ended:  # all of them before any turns, which look at what they began from
            self.counts["failed" if state == FAILED else "cancelled"] += 1
            for future in each.returned:
                _close(future, state, why)
            for index, output in each.call.outputs.items():
                if type(output) is Future:
                    output.stands_for(each.call.inputs[index])
                    _close(output, state, why)
        for each, why in ended:
            for output in each.written():
                if type(output) is Turns:
                    output.failure = output.failure or why
                    self._end_turn(output, each)
            self._forget(each)
        self._flow.tell()

    def cost_s(self, node: Node) -> float:
        """How long a task is expected to take: the mean of its function's calls so far; 1 s where there is none."""
        count, total = self._durations.get(node.task, (0, 0.0))
        return total / count if count else 1.0

    def _room_for(self, task: Task[..., Any], cores: int) -> int:
        if not 1 <= cores <= self._cores:
            raise TaskRefused(
                f"{task.__name__}() wants {cores} cores, and there are {self._cores}; "
                "lower its cores, or give the flow as many workers"
            )
        return cores

    def _join(self, node: Node) -> tuple[int, Failure | None]:
        """Counts what a new task waits for; its state, and why, if something that it needs will never be."""
        for output in node.written():
            if type(output) is Future:
                output.made_by(node)
            elif not output.after.done():
                output.after.made_by(output)
        state, failure = WAITING, None
        for source in node.call.inputs:
            if (future := future_of(source)) is None:
                continue
            future.readers += 1
            if (maker := future.source) is not None:
                maker.successors.append(node)
                node.missing += 1
            elif future.failed is not None:
                state, failure = FAILED, Failure(future.failed.error, node.name, future.failed)
            elif future.cancelled() and state == WAITING:
                state = CANCELLED
        return state, failure

    def _release(self, node: Node) -> None:
        """What is done makes others ready, and is itself forgotten."""
        self.counts["done"] += 1
        self._forget(node)
        for after in node.successors:
            after.missing -= 1
            if not after.missing and after.state == WAITING:
                self.make_ready(after)
        node.successors = []
        self._flow.tell()

    def _end_turn(self, turns: Turns, node: Node) -> None:
        """One task of several that change a datum in any order has had its turn, or will have none."""
        turns.left -= 1
        if node.holds:
            self._free(turns)
        if turns.closed and not turns.left:
            self.end_turns(turns)

    def _free(self, turns: Turns) -> None:
        turns.busy = False
        parked, turns.parked = turns.parked, []
        for each in parked:
            if each.state == WAITING:
                self.make_ready(each)

    def _ignore(self, node: Node) -> None:
        """Gives a failed task's outputs their defaults, and leaves what it would have changed as it was."""
        # What is made of them must not be taken for what is made of the real ones, by another start of the flow.
        name_outputs(None, node.returned, node.call)
        for future, value in zip(node.returned, node.task.defaults, strict=True):
            future.settle(sealed(private(value)))
        for index, output in node.call.outputs.items():
            source = node.call.inputs[index]
            if isinstance(output, Turns):
                self._end_turn(output, node)
            else:
                output.settle(_value(source))
        self._release(node)

    def _fail_for_good(self, node: Node, error: BaseException) -> None:
        failure = Failure(error, node.name)
        self.end(node, FAILED, failure)
        if node.task.on_failure.end != "FAIL":
            return
        self.failure = failure
        for each in list(self.pending):
            if each.state in (WAITING, READY):
                self.end(each, FAILED, failure)

    def fail_all(self, failure: Failure) -> None:
        """Nothing will be done any more."""
        self.failure = failure
        for each in list(self.pending):
            if each.state == RUNNING:
                self._stop(each)
            self.end(each, FAILED, failure)

    def _stop(self, node: Node) -> None:
        node.times = (*node.times, time.monotonic())
        self.running -= 1

    def _forget(self, node: Node) -> None:
        self.pending.discard(node)
        for group in node.groups:
            group.pending.discard(node)
        for source in node.call.inputs:
            if (future := future_of(source)) is not None:
                future.readers -= 1
                future.drop_if_deleted()
        node.call = NO_CALL
        node.returned = ()


def name_outputs(key: Key | None, returned: Sequence[Future], call: Call) -> None:
    """Gives what a call makes the names by which the record knows it; none where the call has no key."""
    name = None if key is None else key.name.hex()
    for place, future in enumerate(returned):
        future.key = None if name is None else f"{name} {place}"
    for index, output in call.outputs.items():
        if isinstance(output, Future):
            output.key = None if name is None else f"{name} changed {index}"


def _value(source: Any) -> Any:
    if type(source) is Turns:
        return source.value if source.started else _value(source.before)
    return source._result if type(source) is Future else source


def _close(future: Future, state: int, failure: Failure | None) -> None:
    if not future.done():
        if failure is not None and state == FAILED:
            future.fail(failure)
        else:
            future.give_up()
