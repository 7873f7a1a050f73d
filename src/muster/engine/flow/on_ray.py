"""Tasks in processes of Ray: small ones travel in bundles, large values stay in its store.

A worker is an actor, so that sending it a bundle is one message. While it works on one bundle, ready tasks gather, and the
next bundle is as large as it takes to keep the worker busy for `BUNDLE_S`: a message costs as much as many small tasks, and
nothing beside a large one. A bundle is lost as a whole with its worker; its tasks are then run again.
"""

from __future__ import annotations

import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

from muster.engine.flow.executor import Executor
from muster.engine.flow.node import RUNNING, Node
from muster.engine.flow.ray_worker import Answer, Errand, FlowWorker, Shipped, packed
from muster.errors import EngineLost, TaskRefused, TaskTimeout, WorkerLost

if TYPE_CHECKING:
    from muster.engine.flow.session import Flow
    from muster.engine.ray_engine import Session

BUNDLE_S: Final = 0.01
_MOST: Final = 512  # tasks in a bundle
_AHEAD: Final = 2  # bundles that a worker has at once: one to work on, one to go on with
_LOSSES: Final = 3  # of a worker by the same task, after which the task has failed
_WATCH_S: Final = 0.25
GRACE_S: Final = 1.0


@dataclass(frozen=True)
class Remote:
    """A value in Ray's store.

    Arguments:
        ref: of the object.
        path: from the object to the value: keys, one after the other.
    """

    ref: Any
    path: tuple[Any, ...] = ()


class _Bundle:
    """Tasks that are sent together, and what they need."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.errands: list[Errand] = []
        self.objects: list[Any] = []
        self.alone = False  # nothing else is sent to its worker until it is done
        self.answers: list[Any] = []  # references to what comes back
        self._places: dict[Any, int] = {}

    def add(self, node: Node, function: int, values: list[Any], folder: Callable[[], str]) -> None:
        """Packs one more task.

        Arguments:
            node: the task.
            function: its number.
            values: of its inputs.
            folder: where versions of files are; asked if it has some.

        Raises:
            Exception: its arguments cannot be pickled.
        """
        inputs = [self._shipped(each) if type(each) is Remote else each for each in values]
        call = node.call
        task = node.task
        self.errands.append(
            Errand(
                node.number,
                node.name,
                function,
                task.returns,
                load=packed((call.args, call.kwargs, inputs, list(call.outputs))),
                files=None if call.files is None else (folder(), call.files),
                cores=node.cores,
                timeout_s=task.timeout_s,
            )
        )
        self.nodes.append(node)

    def _shipped(self, value: Remote) -> Shipped:
        place = self._places.get(value.ref)
        if place is None:
            place = self._places[value.ref] = len(self.objects)
            self.objects.append(value.ref)
        return Shipped(place, value.path)


@dataclass
class _Seat:
    """A worker and what it has been sent."""

    actor: Any
    pid: int = 0
    node: str = ""
    bundles: list[_Bundle] = field(default_factory=list)
    functions: set[int] = field(default_factory=set)
    cores: int = 0  # that it holds while it has bundles
    gone: bool = False


class OnRay(Executor):
    """Runs tasks on workers of a started engine.

    Arguments:
        session: the engine.
        workers: how many, of one core each; a task of more cores takes those of several.
        bundle_s: how long a bundle of small tasks should take; 0 sends each task alone.

    Raises:
        TaskRefused: fewer than one worker.
    """

    def __init__(self, session: Session, workers: int, *, bundle_s: float = BUNDLE_S) -> None:
        if workers < 1:
            raise TaskRefused(f"workers: {workers}; at least 1 is needed")
        self._session, self._ray = session, session.ray
        self._cores = self._free = workers
        self._bundle_s = bundle_s
        self._seats: list[_Seat] = []
        self._functions: dict[Any, tuple[int, bytes]] = {}
        self._large: set[Any] = set()
        self._losses: dict[int, int] = {}
        self._deadlines: dict[Node, float] = {}
        self._fatal: dict[int, BaseException] = {}  # what tasks fail with whose worker was killed for it
        self._answers: queue.SimpleQueue[tuple[_Seat, _Bundle, Any] | None] = queue.SimpleQueue()
        self._ending = False
        self.messages = 0  # bundles sent

    @property
    def cores(self) -> int:
        return self._cores

    def open(self, flow: Flow) -> None:
        super().open(flow)
        for _ in range(self._cores):
            self._seats.append(self._hire())
        self._hearing = threading.Thread(target=self._hear, name=f"muster-{flow.name}-answers", daemon=True)
        self._hearing.start()

    def _hire(self) -> _Seat:
        actor_class = self._ray.remote(concurrency_groups={"control": 1})(FlowWorker)
        actor = actor_class.options(
            num_cpus=0 if self._session.embedded else 1,
            max_restarts=0,
            max_concurrency=1,
        ).remote(sys.path, self._session.home)
        return _Seat(actor)

    # What is sent.

    def look(self) -> None:
        problems: list[tuple[Node, BaseException]] = []
        with self.flow.lock:
            while not self._ending and len(self.flow.graph.ready) and (seat := self._next_seat()) is not None:
                bundle = self._gather(seat, problems)
                if bundle is None:
                    break
                self._send(seat, bundle)
        for node, problem in problems:
            self.flow.fail(node, problem)

    def _next_seat(self) -> _Seat | None:
        """An idle worker, where there is a core for it; else one that has little left to do."""
        if self._free > 0:
            for seat in self._seats:
                if not seat.bundles:
                    return seat
        for seat in self._seats:
            if 0 < len(seat.bundles) < _AHEAD and not any(bundle.alone for bundle in seat.bundles):
                return seat
        return None

    def _is_alone(self, node: Node) -> bool:
        """Whether a task is sent by itself: it is wide, may be killed, or takes or makes much."""
        return (
            node.cores > 1
            or node.task.timeout_s is not None
            or node.task in self._large
            or self.flow.graph.cost_s(node) >= self._bundle_s
        )

    def _gather(self, seat: _Seat, problems: list[tuple[Node, BaseException]]) -> _Bundle | None:
        """Takes ready tasks for a worker, as many as it should have at once; None if there is none for it."""
        graph = self.flow.graph
        busy = bool(seat.bundles)
        bundle = _Bundle()
        most = min(_MOST, -(-len(graph.ready) // self._cores))

        def fits(node: Node) -> bool:
            return node.cores <= self._free + seat.cores and not (
                (busy or bundle.nodes) and self._is_alone(node)
            )

        seconds = 0.0
        while len(bundle.nodes) < most and (node := graph.ready.pop(fits)) is not None:
            if (values := graph.begin(node)) is None:
                continue
            try:
                bundle.add(node, self._function(node), values, lambda: str(self.flow.files.folder))
            except Exception as error:
                problems.append((node, _unpicklable(node, error)))
                continue
            seconds += graph.cost_s(node)
            if bundle.alone or self._is_alone(node) or seconds >= self._bundle_s:
                bundle.alone = bundle.alone or self._is_alone(node)
                break
        return bundle if bundle.nodes else None

    def _function(self, node: Node) -> int:
        found = self._functions.get(node.task)
        if found is None:
            found = self._functions[node.task] = (len(self._functions), cloudpickle.dumps(node.task.function))
        return found[0]

    def _send(self, seat: _Seat, bundle: _Bundle) -> None:
        wanted = max(node.cores for node in bundle.nodes)
        if wanted > seat.cores:
            self._free -= wanted - seat.cores
            seat.cores = wanted
        new = {
            key: content
            for key, content in (self._functions[node.task] for node in bundle.nodes)
            if key not in seat.functions
        }
        seat.functions.update(new)
        seat.bundles.append(bundle)
        for node in bundle.nodes:
            if node.task.timeout_s is not None:
                self._deadlines[node] = time.monotonic() + node.task.timeout_s
        if bundle.alone and bundle.nodes[0].task in self._large:
            method = seat.actor.run_alone.options(num_returns=3)
            answers = method.remote(new, bundle.errands, *bundle.objects)
        else:
            answers = [seat.actor.run.remote(new, bundle.errands, *bundle.objects)]
        bundle.answers = answers
        self.messages += 1
        answers[0].future().add_done_callback(lambda done: self._answers.put((seat, bundle, done)))

    # What comes back.

    def _hear(self) -> None:
        watched = time.monotonic()
        while True:
            if time.monotonic() - watched >= _WATCH_S:
                self._watch()
                watched = time.monotonic()
            try:
                heard = self._answers.get(timeout=_WATCH_S)
            except queue.Empty:
                continue
            if heard is None:
                return
            seat, bundle, done = heard
            try:
                answers = done.result()
            except Exception as error:
                self._lost(seat, error)
            else:
                self._answered(seat, bundle, answers if isinstance(answers, list) else [answers])

    def _answered(self, seat: _Seat, bundle: _Bundle, answers: list[Answer]) -> None:
        with self.flow.lock:
            if bundle not in seat.bundles:
                return  # the worker was given up meanwhile, and its tasks are elsewhere
            seat.bundles.remove(bundle)
            self._give_cores_back(seat)
        for node, answer in zip(bundle.nodes, answers, strict=True):
            self._deadlines.pop(node, None)
            self._losses.pop(node.number, None)
            if answer.error is not None:
                self.flow.fail(node, _raised(*answer.error))
                continue
            if len(bundle.answers) > 1:
                returned, changed = Remote(bundle.answers[1]), bundle.answers[2]
                written = list(node.call.outputs)
                values = [Remote(changed, (place,)) for place in written]
            elif answer.large is not None:
                try:
                    # Kept under this process's own name: the worker's would end with the worker.
                    outcome = self._ray.put(self._ray.get(answer.large))
                except self._ray.exceptions.RayError as error:
                    self._again(node, error)
                    continue
                self._large.add(node.task)
                returned = Remote(outcome, (0,))
                written = list(node.call.outputs)
                values = [Remote(outcome, (1, place)) for place in written]
            else:
                assert answer.result is not None
                returned, changed = pickle.loads(answer.result)
                written, values = list(changed), list(changed.values())
            self._finish(node, returned, dict(zip(written, values, strict=True)), sum(answer.seconds))

    def _finish(self, node: Node, returned: Any, changed: dict[int, Any], took_s: float) -> None:
        if isinstance(returned, Remote) and node.task.returns != 1:
            returned = (
                [Remote(returned.ref, (*returned.path, place)) for place in range(node.task.returns)]
                if node.task.returns
                else ()
            )
        values = [changed.get(place) for place in range(len(node.call.inputs))]
        self.flow.finish(node, returned, values, took_s)

    # What goes wrong.

    def _watch(self) -> None:
        """Looks whether the engine is there, and for tasks that have had their time."""
        if not self._ending and (problem := self._session.lost()) is not None:
            self._ending = True
            self.flow.abandon(EngineLost(problem))
            return
        with self.flow.lock:
            now = time.monotonic()
            late = [node for node, deadline in self._deadlines.items() if deadline <= now]
            for node in late:
                del self._deadlines[node]
        for node in late:
            limit_s = node.task.timeout_s
            self._kill_later(
                node, GRACE_S, TaskTimeout(f"{node.name} is not done after its timeout_s of {limit_s:g} s")
            )

    def interrupt(self, node: Node, grace_s: float) -> None:
        self._kill_later(node, grace_s, None)

    def _kill_later(self, node: Node, grace_s: float, error: BaseException | None) -> None:
        """Asks a task to end, and kills its worker if it has not after that time."""
        seat = self._seat_of(node)
        if seat is None:
            return
        seat.actor.stop.options(concurrency_group="control").remote([node.number])

        def kill() -> None:
            with self.flow.lock:
                now = self._seat_of(node)
                if now is not seat or node.state != RUNNING or self._ending:
                    return
                if error is not None:
                    self._fatal[node.number] = error
            self._lost(
                seat, WorkerLost(f"{node.name} did not end {grace_s:g} s after it was asked to"), killed=True
            )

        timer = threading.Timer(grace_s, kill)
        timer.daemon = True
        timer.start()

    def _seat_of(self, node: Node) -> _Seat | None:
        for seat in self._seats:
            if any(node in bundle.nodes for bundle in seat.bundles):
                return seat
        return None

    def _lost(self, seat: _Seat, error: BaseException, *, killed: bool = False) -> None:
        """A worker is gone, with all it was sent: another one takes its place, and its tasks are run again.

        Arguments:
            seat: its own.
            error: what is known of it.
            killed: by us, for one of its tasks; the others have nothing to do with it.
        """
        with self.flow.lock:
            if seat.gone:
                return
            seat.gone = True
            bundles, seat.bundles = seat.bundles, []
            self._give_cores_back(seat)
            self._seats.remove(seat)
            self._ray.kill(seat.actor)  # it may have failed without dying
            if not self._ending:
                self._seats.append(self._hire())
        for place, bundle in enumerate(bundles):
            for node in bundle.nodes:
                self._again(node, error, blamed=not killed and place == 0)
        self.flow.look()

    def _again(self, node: Node, error: BaseException, *, blamed: bool = True) -> None:
        """A task is run once more; or has failed, if it has lost too many workers that may have died of it."""
        self._deadlines.pop(node, None)
        fatal = self._fatal.pop(node.number, None)
        losses = self._losses[node.number] = self._losses.get(node.number, 0) + blamed
        if fatal is not None or node.stop:
            self.flow.fail(node, fatal or error)
        elif losses >= _LOSSES:
            del self._losses[node.number]
            self.flow.fail(node, WorkerLost(f"{node.name} lost its worker {losses} times: {error}"))
        else:
            self.flow.give_back(node)

    def _give_cores_back(self, seat: _Seat) -> None:
        if not seat.bundles:
            self._free += seat.cores
            seat.cores = 0

    def fetch(self, value: Any) -> Any:
        if type(value) is not Remote:
            return value
        try:
            found = self._ray.get(value.ref)
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"a result is lost with the machine that held it: {error}") from error
        for key in value.path:
            found = found[key]
        return found

    def close(self) -> None:
        with self.flow.lock:
            self._ending = True
        self._answers.put(None)
        if self._hearing is not threading.current_thread():
            self._hearing.join()
        for seat in self._seats:
            self._ray.kill(seat.actor)


def _unpicklable(node: Node, error: Exception) -> TaskRefused:
    return TaskRefused(
        f"an argument of {node.name} cannot be sent to another process: {error}; pass what it is made from, "
        "or use the executor 'threads'"
    )


def _raised(content: bytes, text: str) -> BaseException:
    """An exception from a worker; where it was raised is its cause, as `concurrent.futures` has it."""
    error: BaseException = pickle.loads(content)
    error.__cause__ = _RemoteTraceback(text)
    return error


class _RemoteTraceback(Exception):
    def __str__(self) -> str:
        return f"\n{self.args[0]}"
