"""The worker's side of a flow on Ray: an actor that runs bundles of tasks, one after the other."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cloudpickle

from muster.engine.flow.arguments import Call, private
from muster.engine.flow.files import Files, FileUse
from muster.engine.flow.session import inside
from muster.engine.flow.task import split

LARGE: Final = 64 << 10
"""Pickled results of more bytes become objects of Ray's store; others travel with the reply."""


class Shipped:
    """Stands in a task's inputs for object number ``place`` of the bundle, or what the keys of ``path`` lead to in it."""

    __slots__ = ("path", "place")

    def __init__(self, place: int, path: tuple[Any, ...]) -> None:
        self.place, self.path = place, path

    def __reduce__(self) -> Any:
        return Shipped, (self.place, self.path)

    def among(self, objects: Sequence[Any]) -> Any:
        """What it stands for."""
        value = objects[self.place]
        for key in self.path:
            value = value[key]
        return value


@dataclass(frozen=True)
class Errand:
    """One task of a bundle.

    Arguments:
        number: of the task.
        name: for errors.
        function: number of its function, which the worker has been sent before.
        returns: how many values its function should return.
        load: pickled arguments, keyword arguments, values of the inputs, and the places of those that it changes.
        files: where versions of files are, and by slot the use of those that are files; None where there are none.
        cores: that it may use.
        timeout_s: after which `cancel_wanted` is true.
    """

    number: int
    name: str
    function: int
    returns: int
    load: bytes
    files: tuple[str, dict[int, FileUse]] | None
    cores: int
    timeout_s: float | None


@dataclass(frozen=True)
class Answer:
    """What came of one task of a bundle.

    Arguments:
        number: of the task.
        error: pickled exception and its traceback's text; None where it returned.
        result: pickled pair of what it returned and the inputs that it changed, by place; None where it is in `large`.
        large: that pair as objects of Ray's store.
        seconds: unpickling, running, and storing the results.
    """

    number: int
    error: tuple[bytes, str] | None
    result: bytes | None
    large: Any
    seconds: tuple[float, float, float]


@dataclass
class _Running:
    """What `running_node` and `cancel_wanted` see of a task in a worker."""

    number: int
    name: str
    task: Any
    times: tuple[float, ...]
    stop: bool = False
    parent: Any = None
    returned: tuple[Any, ...] = field(default=())


@dataclass(frozen=True)
class _Limits:
    timeout_s: float | None


class FlowWorker:
    """The actor. `run` is called with one bundle at a time, `stop` also while one runs.

    Arguments:
        path: where modules are found.
        home: the user's HOME.
    """

    def __init__(self, path: list[str], home: str) -> None:
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.environ["HOME"] = home
        self._opened: Files | None = None
        self._functions: dict[int, Any] = {}
        self._stopped: set[int] = set()
        self._now: _Running | None = None
        self._lock = threading.Lock()
        self._threads = 0

    def hello(self) -> tuple[int, str]:
        """Process id and node."""
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def stop(self, numbers: Sequence[int]) -> None:
        """Asks tasks to end; those that have not begun will not."""
        with self._lock:
            self._stopped.update(numbers)  # also of tasks that are still on their way
            if self._now is not None and self._now.number in self._stopped:
                self._now.stop = True

    def run(self, functions: dict[int, bytes], errands: list[Errand], *objects: Any) -> list[Answer]:
        """Runs a bundle.

        Arguments:
            functions: that are new to this worker.
            errands: the tasks, in order.
            objects: values of `Shipped`.
        """
        self._functions.update(functions)
        return [self._run(errand, objects) for errand in errands]

    def run_alone(self, functions: dict[int, bytes], errands: list[Errand], *objects: Any) -> list[Any]:
        """Runs one task whose results are large: they are returned one by one, and belong to the caller.

        Returns:
            the answer without them, what was returned, and the changed inputs by place.
        """
        self._functions.update(functions)
        answer = self._run(errands[0], objects, keep=True)
        if answer.error is not None:
            return [answer, None, None]
        return [Answer(answer.number, None, None, None, answer.seconds), *answer.large]

    def _paths(
        self, files: tuple[str, dict[int, FileUse]] | None, values: list[Any]
    ) -> AbstractContextManager[None]:
        """The task's own paths of the files among its values."""
        if files is None:
            return contextlib.nullcontext()
        if self._opened is None:
            self._opened = Files(Path(files[0]))
        return self._opened.opened(files[1], values)

    def _function(self, key: int) -> Any:
        function = self._functions[key]
        if isinstance(function, bytes):
            function = self._functions[key] = cloudpickle.loads(function)
        return function

    def _run(self, errand: Errand, objects: Sequence[Any], *, keep: bool = False) -> Answer:
        times = [time.monotonic()]
        running = _Running(errand.number, errand.name, _Limits(errand.timeout_s), (times[0],))
        with self._lock:
            running.stop = errand.number in self._stopped
            self._now = running
        try:
            if running.stop:
                raise InterruptedError("cancelled before it began")
            self._use_cores(errand.cores)
            args, kwargs, values, written = pickle.loads(errand.load)
            for place, value in enumerate(values):
                if type(value) is Shipped:
                    values[place] = value.among(objects)
            for (
                place
            ) in written:  # what came with the message may be read-only as well: arrays of versions are
                values[place] = private(values[place])
            call = Call(args, kwargs)
            call.inputs = values
            function = self._function(errand.function)
            with self._paths(errand.files, values):
                args, kwargs = call.filled(values)
                times.append(time.monotonic())
                running.times = (times[1],)
                with inside(None, running):
                    returned = function(*args, **kwargs)
            times.append(time.monotonic())
            split(errand.name, errand.returns, returned)
            outcome = (returned, {place: values[place] for place in written})
            result, large = (None, outcome) if keep else _stored(outcome)
        except BaseException as error:
            times += [time.monotonic()] * (3 - len(times))
            text = traceback.format_exc()
            return Answer(errand.number, (_packed(error), text), None, None, _spans(times))
        finally:
            with self._lock:
                self._now = None
                self._stopped.discard(errand.number)
        return Answer(errand.number, None, result, large, _spans(times))

    def _use_cores(self, cores: int) -> None:
        """Lets the libraries of this process use as many threads as the task has cores."""
        if cores == self._threads:
            return
        self._threads = cores
        os.environ["OMP_NUM_THREADS"] = str(cores)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(cores)
        if (numba := sys.modules.get("numba")) is not None:
            numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))


def _spans(times: Sequence[float]) -> tuple[float, float, float]:
    return times[1] - times[0], times[2] - times[1], time.monotonic() - times[2]


def packed(value: Any) -> bytes:
    """A value pickled; by value where its class or function cannot be imported elsewhere.

    Raises:
        Exception: it cannot be pickled.
    """
    try:
        content = pickle.dumps(value, protocol=5)
        if b"__main__" not in content:
            return content
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    return cloudpickle.dumps(value)


def _stored(outcome: Any) -> tuple[bytes | None, Any]:
    content = packed(outcome)
    if len(content) <= LARGE:
        return content, None
    import ray

    return None, ray.put(outcome)


def _packed(error: BaseException) -> bytes:
    try:
        content = cloudpickle.dumps(error)
        pickle.loads(content)
    except Exception:
        return cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content
