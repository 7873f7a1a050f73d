"""A flow as programs and executors see it: calls go in, values come out, and one lock is around its graph."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from muster.engine.flow.arguments import Binding, Call
from muster.engine.flow.data import Data, Turns
from muster.engine.flow.durable import Record, key_of_turns
from muster.engine.flow.executor import Executor, run_task
from muster.engine.flow.files import Files
from muster.engine.flow.future import Failure, Future
from muster.engine.flow.graph import Graph
from muster.engine.flow.groups import Group, open_groups
from muster.engine.flow.node import CANCELLED, READY, RUNNING, WAITING, Node
from muster.engine.flow.task import Task, split
from muster.errors import MusterError, TaskRefused

_inside = threading.local()


def running_node() -> Node | None:
    """The task that this thread runs, if it runs one."""
    return getattr(_inside, "node", None)


def running_flow() -> Flow | None:
    """The flow whose task this thread runs, if it runs one."""
    return getattr(_inside, "flow", None)


class inside:
    """A context: this thread runs a task of that flow.

    Arguments:
        flow: whose task it is; None in another process than the flow's.
        node: the task; there something that is asked the same.
    """

    __slots__ = ("_before", "_now")

    def __init__(self, flow: Flow | None, node: Any) -> None:
        self._now = (flow, node)

    def __enter__(self) -> None:
        self._before = running_flow(), running_node()
        _inside.flow, _inside.node = self._now

    def __exit__(self, *_: object) -> None:
        _inside.flow, _inside.node = self._before


class Flow:
    """Tasks joined by their data, and what runs them.

    Arguments:
        executor: that runs them.
        name: for the report.
        record: where what is done is kept; None to keep nothing.
    """

    def __init__(self, executor: Executor, name: str = "flow", record: Record | None = None) -> None:
        self.executor, self.name, self.record = executor, name, record
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.data = Data(self)
        self._files: Files | None = None
        self.graph = Graph(self, executor.cores)
        self.closed = False
        self._lost: MusterError | None = None  # why nothing can run any more
        self._callbacks: list[tuple[Future, list[Callable[[Any], object]]]] = []
        self._timers: set[threading.Timer] = set()
        self._waiters = 0
        self._blocked: dict[object, Callable[[], bool]] = {}  # what tasks wait for that wait for other tasks
        executor.open(self)

    @property
    def files(self) -> Files:
        """Versions of the files that its tasks read and write."""
        if self._files is None:
            with self.lock:
                if self._files is None:
                    self._files = Files(None if self.record is None else self.record.folder / "files")
        return self._files

    # Called by programs.

    def submit(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Adds a call to the graph.

        Returns:
            its future; a tuple of futures where the task returns several; None where it returns nothing.

        Raises:
            TaskRefused: the call is wrong; nothing has been started.
        """
        with self.lock:
            if self._lost is not None:
                raise self._lost
            if self.closed:
                raise TaskRefused(
                    f"{task.__name__}() was called after its flow had ended; call it within the block"
                )
            if task.accesses or not task.plain(args, kwargs):
                call = Binding(self, task.__name__, task.accesses).bind(args, kwargs, task.parameters)
            else:
                call = Call(args, kwargs)
            groups, parent = open_groups(), running_node()
            node, key, found = None, None, None
            if self.record is not None:
                key = self.record.key(task, call, parent)
                found = self.record.find(task, call, key)
            if found is not None and key is not None:
                returned = self.graph.add_done(task, call, found, key)
                if call.files is not None:
                    self._publish(call, found.changed, self.graph.number)
            elif not (self.executor.concurrent or groups or self.graph.failure) and call.is_settled():
                node = self.graph.add_running(task, call, parent, key)
                returned = node.returned
            else:
                returned = self.graph.add(task, call, groups, parent, key)
        if node is not None:
            run_task(self, node, [each._result for each in call.inputs])
        else:
            self.look()
        return returned[0] if len(returned) == 1 else returned if returned else None

    def wait_until(self, done: Callable[[], bool], until: float | None, what: str = "a task") -> bool:
        """Waits until something holds that only changes with the state of a task.

        Arguments:
            done: what has to hold.
            until: the time, of ``time.monotonic()``, to wait at most.
            what: is waited for, for errors.

        Returns:
            whether it holds.

        Raises:
            TaskRefused: it will never hold, since all tasks that run wait for others.
        """
        node = running_node()
        with self.changed:
            if done():
                return True
            with self._waiting(node, done):
                while not done():
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    if self._stuck():
                        who = "the program" if node is None else node.name
                        raise TaskRefused(
                            f"{who} waits for {what} that cannot run before it has ended; "
                            "pass what is needed as an argument, or return what is to be waited for"
                        )
                    self.changed.wait(0.2 if left is None else min(left, 0.2))
            return True

    def barrier(self, group: Group | None = None, timeout_s: float | None = None) -> None:
        """Waits for all tasks, or for those of a group; not for the one that asks, nor for those it was called by.

        Raises:
            TimeoutError: they are not done in time.
            BaseException: the failure that ended the flow.
        """
        graph = self.graph
        pending = graph.pending if group is None else group.pending
        family = set(_ancestors(running_node()))
        with self.lock:
            self.data.close_turns()
            if not self.wait_until(
                lambda: graph.failure is not None or pending <= family,
                None if timeout_s is None else time.monotonic() + timeout_s,
                "a task of its group",
            ):
                raise TimeoutError(f"{len(pending - family)} tasks are not done after {timeout_s} s")
            failure = graph.failure
        if failure is not None:
            raise self.delivered(failure)

    def cancel(self, nodes: Sequence[Node], grace_s: float = 1.0) -> None:
        """Cancels tasks and what needs them; those that run are asked to end, and killed later where that can be done."""
        with self.lock:
            for node in sorted(nodes, key=lambda each: -each.number):
                if node.state in (WAITING, READY):
                    self.graph.end(node, CANCELLED, None)
                elif node.state == RUNNING:
                    node.stop = True
                    self.executor.interrupt(node, grace_s)
        self.look()

    def cancel_future(self, future: Future) -> bool:
        """`Future.cancel`."""
        with self.lock:
            node = future.source
            if isinstance(node, Node) and node.state in (WAITING, READY):
                self.graph.end(node, CANCELLED, None)
        self.look()
        return future.cancelled()

    def delivered(self, failure: Failure) -> BaseException:
        """The exception to raise in the program; the flow takes new tasks from then on."""
        with self.lock:
            if running_node() is None:
                self.graph.failure = None
        return failure.raised()

    def close(self, *, wait: bool) -> None:
        """Ends the flow.

        Arguments:
            wait: for what has been called; else it is cancelled.

        Raises:
            BaseException: a failure that nobody has seen.
        """
        try:
            if wait:
                self.barrier()
        finally:
            with self.lock:
                self.closed = True
                for timer in self._timers:
                    timer.cancel()
                self._timers.clear()
                self.cancel(list(self.graph.pending), 0.0)
            self.executor.close()
            if self._files is not None:
                self._files.close()
            if self.record is not None:
                self.record.close()

    # Called by executors.

    def begin(self, node: Node) -> list[Any] | None:
        """`Graph.begin`."""
        with self.lock:
            return self.graph.begin(node)

    def finish(self, node: Node, returned: Any, values: Sequence[Any], took_s: float | None = None) -> None:
        """A task has returned.

        Arguments:
            node: the task; one that has ended already is passed over.
            returned: what its function did.
            values: of its inputs, as it has left them.
            took_s: as for `Graph.finish`.
        """
        try:
            results = split(node.name, node.task.returns, returned)
        except TypeError as error:
            self.fail(node, error)
            return
        if node.state == RUNNING and not node.stop:
            try:
                if self.record is not None and node.key is not None:
                    self.record.keep(node, self.executor, results, values, took_s)
                if node.call.files is not None:
                    self._publish(node.call, values, node.number)
            except MusterError as error:
                self.fail(node, error)
                return
        with self.lock:
            if node.state == RUNNING:
                self.graph.finish(node, results, values, took_s)
        if self.executor.concurrent or self.graph.ready or self._callbacks:
            self.look()

    def give_back(self, node: Node) -> None:
        """A task that was taken into work was not done, through no fault of its own: it is ready again."""
        with self.lock:
            if node.state == RUNNING:
                self.graph.give_back(node)
        self.look()

    def fail(self, node: Node, error: BaseException) -> None:
        """A task has raised, run out of time or lost its worker; one that has ended already is passed over."""
        wait_s = None
        with self.lock:
            if node.state == RUNNING:
                wait_s = self.graph.fail(node, error)
        if wait_s is not None:
            self._try_again(node, wait_s)
        self.look()

    def abandon(self, error: MusterError) -> None:
        """What runs the tasks is gone: all that are not done have failed, and no other can be called."""
        with self.lock:
            self._lost = error
            self.graph.fail_all(Failure(error, self.name))
        self.look()

    def look(self) -> None:
        """Starts what can be started, and calls back who asked for it."""
        self.executor.look()
        while self._callbacks:
            with self.lock:
                callbacks, self._callbacks = self._callbacks, []
            for future, functions in callbacks:
                for function in functions:
                    function(future)

    # Called by the graph and its futures, under the lock.

    def end_turns(self, turns: Turns) -> None:
        """Nobody joins these turns any more."""
        turns.after.key = key_of_turns(turns)
        if not turns.left:
            self.graph.end_turns(turns)

    def tell(self) -> None:
        """A task has ended."""
        if self._waiters:
            self.changed.notify_all()

    def call_back(self, future: Future, callbacks: list[Callable[[Any], object]]) -> None:
        """Calls these once the lock is free."""
        self._callbacks.append((future, callbacks))

    def _publish(self, call: Call, values: Any, number: int) -> None:
        """Shows the user what a call has made of files."""
        for index, use in (call.files or {}).items():
            if use.writes:
                output = call.outputs[index]
                if isinstance(output, Turns):
                    output.number = number = output.number or number
                self.files.publish(self.executor.fetch(values[index]), use.path, number)

    def _try_again(self, node: Node, wait_s: float) -> None:
        def wake() -> None:
            with self.lock:
                self._timers.discard(timer)
                if node.state == WAITING:
                    self.graph.make_ready(node)
            self.look()

        timer = threading.Timer(wait_s, wake)
        timer.daemon = True
        if wait_s and self.executor.concurrent:
            with self.lock:
                self._timers.add(timer)
            timer.start()
        else:
            time.sleep(wait_s)
            wake()

    def _stuck(self) -> bool:
        """Whether every task that runs waits for others, so that all cores are free, and none is ready for them."""
        graph = self.graph
        return (
            not self._timers
            and graph.running == len(self._blocked)
            and not graph.ready
            and not any(done() for done in self._blocked.values())  # woken, but not awake yet
        )

    @contextlib.contextmanager
    def _waiting(self, node: Node | None, done: Callable[[], bool]) -> Iterator[None]:
        self._waiters += 1
        wait = object()
        if node is not None:
            self._blocked[wait] = done
            self.executor.block(node)
        try:
            yield
        finally:
            self._waiters -= 1
            if node is not None:
                del self._blocked[wait]
                self.executor.unblock(node)


def _ancestors(node: Node | None) -> Iterator[Node]:
    while node is not None:
        yield node
        node = node.parent
