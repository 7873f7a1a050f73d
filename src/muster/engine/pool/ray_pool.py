"""A pool on Ray: the coordinator is one actor, every worker another; the same calls as in one process, carried by Ray."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import cloudpickle

from muster.engine.pool.chaos import Disturbance, Reaper
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

    def __init__(self, build: bytes, path: list[str], every: int) -> None:
        self._events: list[tuple[str, str, str]] = []
        self._versions: list[Version] = []
        self._every = every
        opened: Build = _loaded(build, path)
        self._pool = opened(lambda *event: self._events.append(event), self._new)

    def _new(self, version: Version) -> None:
        if version.number % self._every == 0:
            self._versions.append(version)

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

    def worker_gone(self, worker: str, reason: str, counts: bool) -> None:
        self._pool.worker_gone(worker, reason, counts=counts)

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

    def caught(self) -> tuple[set[str], int]:
        """Workers that have lied, and how many the others must be."""
        return set(self._pool.caught), self._pool.workers_needed

    def version(self) -> Version:
        return self._pool.version

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self._pool.close()


class _Working:
    """The actor of a worker. Its calls run in its main thread, one after the other: only there a signal is heard."""

    def __init__(
        self, coordinator: Any, work: bytes, path: list[str], name: str, slot: int, threads: int, home: str
    ) -> None:
        import torch

        os.environ["HOME"] = home  # the embedded engine has a private one
        torch.set_num_threads(threads)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())  # notice: hand in what there is, or give it back
        self._worker = Worker(RaySeat(coordinator), name, _loaded(work, path), stop=stop, slot=slot)
        self._worker.get_ready()  # and so its process id is told, and its life begins, once it can work

    def run(self) -> str:
        return self._worker.run()

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _Member:
    """A worker as its pool keeps it in mind."""

    slot: int
    generation: int
    actor: Any
    pid: int | None = None


class RayPool:
    """A coordinator and its workers on an engine.

    Arguments:
        session: a started engine.
        build: opens the coordinator, in its own process.
        work: does a task, in a worker's.
        workers: how many.
        threads: kernel threads of each.
        told: is called with (kind, who, detail) of what happens.
        every: of the model's versions only each so many-th is wanted here, and the last.
        disturbance: what is done to the workers.
        known: names that workers had before, so that no two are called the same.
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
        every: int = 1,
        disturbance: Disturbance | None = None,
        known: Collection[str] = (),
    ) -> None:
        self._session, self._ray, self._told, self._threads = session, session.ray, told, threads
        self._disturbance = disturbance or Disturbance()
        began = time.monotonic()
        self._reaper = Reaper(self._disturbance, told, began)
        self.coordinator = (
            self._ray.remote(_Coordinating)
            .options(num_cpus=0, max_concurrency=_CALLS_AT_ONCE, max_restarts=-1)
            .remote(cloudpickle.dumps(build), sys.path, every)
        )
        self._work = self._ray.put(cloudpickle.dumps(work))
        self._names, self._seen = set(known), -1
        self.accepted, self._losses = 0, 0
        self._members: dict[str, _Member] = {}
        self._starting: dict[Any, str] = {}  # answers with the process ids of workers that are on their way
        self._runs: dict[Any, str] = {}
        self._due: list[tuple[float, int]] = []  # when a worker is to be started, and its slot
        self._stopping = False
        for slot in range(workers):
            if self._reaper.admits(slot, began):
                self._start(slot)
            else:
                self._due.append((began, slot))
        for late in range(self._disturbance.extra):
            self._due.append((began + (late + 1) * self._disturbance.extra_every_s, workers + late))

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the workers that have started."""
        return {name: each.pid for name, each in self._members.items() if each.pid is not None}

    def versions(self) -> Iterator[Version]:
        """The model's versions as they come, until all is done.

        Raises:
            MusterError: the pool could not go on, or no worker lives long enough; says why.
            EngineLost: the coordinator's process could not be kept alive.
        """
        while True:
            news = self.news()
            yield from news.versions
            if news.over:
                return

    def news(self) -> News:
        """Tends to the workers, waits a moment, and says what has happened since; versions that were seen are left out.

        Raises:
            MusterError, EngineLost: as `versions`.
        """
        news: News = self._asked("news")
        if news.accepted > self.accepted:
            self.accepted, self._losses = news.accepted, 0
        for event in news.events:
            self._told(*event)
        fresh = []
        for version in news.versions:
            if version.number > self._seen:  # one that was started again tells what it has computed again
                self._seen = version.number
                fresh.append(version)
        if news.failure is not None:
            raise news.failure
        if not news.over:
            self._tend()
        return News(news.events, fresh, news.accepted, news.over, None)

    def final_news(self) -> News:
        """What has happened since, once nothing is tended to any more."""
        news: News = self._asked("news")
        return news

    def newest(self) -> Version:
        """The model as it is."""
        version: Version = self._asked("version")
        return version

    def stop(self, grace_s: float) -> None:
        """Has all workers hand in what they have, and waits for them so long; starts no new ones."""
        self._stopping = True
        for pid in self.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + grace_s
        while self._runs and time.monotonic() < until:
            for run in self._ray.wait(list(self._runs), timeout=0.2)[0]:
                self._ended(run)

    def close(self) -> None:
        """Ends the coordinator in order, and the workers."""
        try:
            self._ray.get(self.coordinator.close.remote(), timeout=30)
        except self._ray.exceptions.RayError:
            pass  # it has just died: its folder says all that there is
        finally:
            for actor in (*(each.actor for each in self._members.values()), self.coordinator):
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

    def _start(self, slot: int) -> None:
        generation = 0
        while (name := f"worker {slot}" + (f".{generation}" if generation else "")) in self._names:
            generation += 1
        self._names.add(name)
        actor = (
            self._ray.remote(_Working)
            .options(num_cpus=0, max_restarts=0)
            .remote(self.coordinator, self._work, sys.path, name, slot, self._threads, self._session.home)
        )
        self._members[name] = _Member(slot, generation, actor)
        self._starting[actor.pid.remote()] = name
        self._runs[actor.run.remote()] = name

    def _tend(self) -> None:
        """Notices who has come and who has gone, starts those that are due, and disturbs them."""
        ended = self._ray.wait(list(self._runs), timeout=0.1)[0] if self._runs else []
        if not self._runs:
            time.sleep(0.1)
        now = time.monotonic()
        if self._starting:
            for started in self._ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)[
                0
            ]:
                self._joined(self._starting.pop(started), started, now)
        for run in ended:
            self._ended(run)
        self._reaper.tend(now)
        for due in [due for due in self._due if due[0] <= now and self._reaper.admits(due[1], now)]:
            self._due.remove(due)
            self._start(due[1])

    def _joined(self, name: str, answer: Any, now: float) -> None:
        try:
            pid = int(self._ray.get(answer))
        except self._ray.exceptions.RayError:
            return  # it has died at once; the end of its run says so
        if (member := self._members.get(name)) is not None:
            member.pid = pid
            self._told("joined", name, f"process {pid}")
            self._reaper.joined(name, pid, member.slot, member.generation, now)

    def _ended(self, run: Any) -> None:
        """A worker has ended: in order, or its process has died and another takes its place."""
        name = self._runs.pop(run)
        member = self._members.pop(name)
        try:
            reason = str(self._ray.get(run))
            self._told("left", name, reason)
            self._ray.kill(member.actor, no_restart=True)
        except self._ray.exceptions.RayError as error:
            self._lost(name, member, error)
        self._reaper.gone(name)
        if self._stopping:
            return
        caught, needed = self._asked("caught")
        if name not in caught:
            self._due.append((time.monotonic() + self._disturbance.join_s, member.slot))
        elif (left := len(self._members) + len(self._due)) < needed:
            raise MusterError(
                f"{len(caught)} workers were caught lying, and nobody takes their places: {left} are left where {needed} "
                "are needed"
            )

    def _lost(self, name: str, member: _Member, error: Exception) -> None:
        on_purpose = name in self._reaper.killed
        reason = _cause(error)
        self._told("worker_lost", name, "it was killed" if on_purpose else reason)
        if not on_purpose and not self._stopping:
            self._losses += 1
        if self._losses >= _LOSSES:
            raise MusterError(
                f"{self._losses} workers have died one after the other without a result; the last one, {name}: {reason}"
            ) from error
        self._asked("worker_gone", name, "its process has died", not on_purpose)


@contextmanager
def ray_pool(
    session: Session,
    build: Build,
    work: Callable[[Task], Outcome],
    *,
    workers: int,
    threads: int = 1,
    told: Told = lambda kind, who, detail: None,
    every: int = 1,
    disturbance: Disturbance | None = None,
    known: Collection[str] = (),
) -> Iterator[RayPool]:
    """A `RayPool` for as long as the context lasts."""
    pool = RayPool(
        session,
        build,
        work,
        workers=workers,
        threads=threads,
        told=told,
        every=every,
        disturbance=disturbance,
        known=known,
    )
    try:
        yield pool
    finally:
        pool.close()
