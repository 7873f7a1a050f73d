"""A pool on Ray: the coordinator is one actor, every worker another; the same calls as in one process, carried by Ray."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import cloudpickle

from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import Version
from muster.engine.pool.seat import Handing, Offer, Over, Pause
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.engine.ray_engine import Session
from muster.errors import EngineLost, MusterError

Told = Callable[[str, str, str], None]
Build = Callable[[Told, Callable[[Version], None]], Coordinator]
"""Opens the coordinator, given what hears of events and of new versions."""

_CALLS_AT_ONCE: Final = 32
_LOSSES: Final = 10  # of workers, with no result accepted in between, after which no more are started
_RESTART_S: Final = 60.0  # a process that is started again should be back by then


class RaySeat:
    """A worker's end of the coordinator's actor; see `muster.engine.pool.seat.Seat`.

    Arguments:
        actor: the handle.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except ray.exceptions.RayActorError as error:
            raise ConnectionError(f"the coordinator's process is away: {error}") from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def hello(self, worker: str, about: Mapping[str, Any]) -> None:
        self._call("hello", worker, dict(about))

    def lease(self, worker: str) -> Offer | Pause | Over:
        answer: Offer | Pause | Over = self._call("lease", worker)
        return answer

    def beat(self, token: str, samples: int) -> None:
        self._call("beat", token, samples)

    def chunk(self, name: str) -> bytes:
        content: bytes = self._call("chunk", name)
        return content

    def missing(self, token: str, names: Iterable[str]) -> list[str]:
        missing: list[str] = self._call("missing", token, list(names))
        return missing

    def put(self, token: str, name: str, content: bytes) -> None:
        self._call("put", token, name, content)

    def hand_in(self, token: str, result: Handing) -> int:
        number: int = self._call("hand_in", token, result)
        return number

    def give_back(self, token: str, reason: str, *, failed: bool = False) -> None:
        self._call("give_back", token, reason, failed)


@dataclass(frozen=True)
class News:
    """What has happened in a coordinator since it was asked last.

    Arguments:
        events: (kind, who, detail) of each.
        versions: of the model, in order.
        accepted: results so far.
        over: whether all is done.
        failure: why nothing will be done any more.
    """

    events: list[tuple[str, str, str]]
    versions: list[Version]
    accepted: int
    over: bool
    failure: MusterError | None


def _loaded(packed: bytes, path: list[str]) -> Any:
    """What was packed where modules are found along another path, too."""
    sys.path.extend(entry for entry in path if entry not in sys.path)
    return cloudpickle.loads(packed)


def _cause(error: Exception) -> str:
    """The last line of what Ray says, where the cause is; the first ones are where it was noticed."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return [line for line in lines if line.strip("^~ ")][-1][:300]


class _Coordinating:
    """The actor of the coordinator. Ray starts it again when its process dies; it goes on from its folder."""

    def __init__(self, build: bytes, path: list[str]) -> None:
        self._events: list[tuple[str, str, str]] = []
        self._versions: list[Version] = []
        opened: Build = _loaded(build, path)
        self._pool = opened(lambda *event: self._events.append(event), self._versions.append)

    def hello(self, worker: str, about: dict[str, Any]) -> None:
        self._pool.hello(worker, about)

    def lease(self, worker: str) -> Offer | Pause | Over:
        return self._pool.lease(worker)

    def beat(self, token: str, samples: int) -> None:
        self._pool.beat(token, samples)

    def chunk(self, name: str) -> bytes:
        return self._pool.chunk(name)

    def missing(self, token: str, names: list[str]) -> list[str]:
        return self._pool.missing(token, names)

    def put(self, token: str, name: str, content: bytes) -> None:
        self._pool.put(token, name, content)

    def hand_in(self, token: str, result: Handing) -> int:
        return self._pool.hand_in(token, result)

    def give_back(self, token: str, reason: str, failed: bool) -> None:
        self._pool.give_back(token, reason, failed=failed)

    def worker_gone(self, worker: str, reason: str) -> None:
        self._pool.worker_gone(worker, reason)

    def news(self) -> News:
        """What has happened since; tends to the leases as well."""
        failure = None
        try:
            over = self._pool.wait(0) is not None
        except TimeoutError:
            over = False
        except MusterError as error:
            over, failure = True, error
        events, versions = self._events[:], self._versions[:]
        del self._events[: len(events)], self._versions[: len(versions)]
        return News(events, versions, self._pool.accepted, over, failure)

    def version(self) -> Version:
        return self._pool.version

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self._pool.close()


class _Working:
    """The actor of a worker."""

    def __init__(
        self, coordinator: Any, work: bytes, path: list[str], name: str, threads: int, home: str
    ) -> None:
        import torch

        os.environ["HOME"] = home  # the embedded engine has a private one
        torch.set_num_threads(threads)
        self._worker = Worker(RaySeat(coordinator), name, _loaded(work, path))

    def run(self) -> str:
        return self._worker.run()

    def pid(self) -> int:
        return os.getpid()


class RayPool:
    """A coordinator and its workers on an engine.

    Arguments:
        session: a started engine.
        build: opens the coordinator, in its own process.
        work: does a task, in a worker's.
        workers: how many.
        threads: kernel threads of each.
        told: is called with (kind, who, detail) of what happens.
    """

    def __init__(
        self,
        session: Session,
        build: Build,
        work: Callable[[Task], Outcome],
        *,
        workers: int,
        threads: int,
        told: Told,
    ) -> None:
        self._session, self._ray, self._told, self._threads = session, session.ray, told, threads
        self.coordinator = (
            self._ray.remote(_Coordinating)
            .options(num_cpus=0, max_concurrency=_CALLS_AT_ONCE, max_restarts=-1)
            .remote(cloudpickle.dumps(build), sys.path)
        )
        self._work = self._ray.put(cloudpickle.dumps(work))
        self._started, self._seen = 0, -1
        self._accepted, self._losses = 0, 0
        self.workers: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        for _ in range(workers):
            self._start()

    def versions(self) -> Iterator[Version]:
        """The model's versions as they come, until all is done.

        Raises:
            MusterError: the pool could not go on, or no worker lives long enough; says why.
            EngineLost: the coordinator's process could not be kept alive.
        """
        while True:
            news: News = self._asked("news")
            if news.accepted > self._accepted:
                self._accepted, self._losses = news.accepted, 0
            for event in news.events:
                self._told(*event)
            for version in news.versions:
                if version.number > self._seen:  # one that was started again tells what it has computed again
                    self._seen = version.number
                    yield version
            if news.failure is not None:
                raise news.failure
            if news.over:
                return
            for run in self._ray.wait(list(self._runs), timeout=0.1)[0]:
                self._ended(run)

    def newest(self) -> Version:
        """The model as it is."""
        version: Version = self._asked("version")
        return version

    def close(self) -> None:
        """Ends the coordinator in order, and the workers."""
        try:
            self._ray.get(self.coordinator.close.remote(), timeout=30)
        except self._ray.exceptions.RayError:
            pass  # it has just died: its folder says all that there is
        finally:
            for actor in (*self.workers.values(), self.coordinator):
                self._ray.kill(actor, no_restart=True)

    def _asked(self, method: str, *arguments: Any) -> Any:
        """Calls the coordinator, again where its process is just being started again."""
        errors = self._ray.exceptions
        until = time.monotonic() + _RESTART_S
        while True:
            try:
                return self._ray.get(getattr(self.coordinator, method).remote(*arguments))
            except errors.ActorUnavailableError as error:
                if time.monotonic() > until:
                    raise EngineLost("the coordinator's process did not come back") from error
                time.sleep(0.1)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayActorError as error:
                raise EngineLost(f"the coordinator's process could not be kept alive: {error}") from error

    def _start(self) -> None:
        name = f"worker {self._started}"
        self._started += 1
        actor = (
            self._ray.remote(_Working)
            .options(num_cpus=0, max_concurrency=2, max_restarts=0)
            .remote(self.coordinator, self._work, sys.path, name, self._threads, self._session.home)
        )
        self.workers[name] = actor
        self._runs[actor.run.remote()] = name

    def _ended(self, run: Any) -> None:
        """A worker has ended: in order, or its process has died and another takes its place."""
        name = self._runs.pop(run)
        del self.workers[name]
        try:
            self._ray.get(run)
        except self._ray.exceptions.RayError as error:
            reason = _cause(error)
            self._told("worker_lost", name, reason)
            self._losses += 1
            if self._losses >= _LOSSES:
                raise MusterError(
                    f"{self._losses} workers have died one after the other without a result; the last one, {name}: {reason}"
                ) from error
            self._asked("worker_gone", name, "its process has died")
            self._start()


@contextmanager
def ray_pool(
    session: Session,
    build: Build,
    work: Callable[[Task], Outcome],
    *,
    workers: int,
    threads: int = 1,
    told: Told = lambda kind, who, detail: None,
) -> Iterator[RayPool]:
    """A `RayPool` for as long as the context lasts."""
    pool = RayPool(session, build, work, workers=workers, threads=threads, told=told)
    try:
        yield pool
    finally:
        pool.close()
