"""A worker of a pool: takes leases, does the work and hands in what comes of it, until all is over or it must go."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from muster.engine.hardware import cpu_name
from muster.engine.pool.blobs import Manifest, pieces
from muster.engine.pool.ledger import NotActive
from muster.engine.pool.seat import Handing, Offer, Over, Pause, Seat
from muster.engine.pool.updates import Arrays, RefusedUpdate, State, flattened, pack, parted, unpack
from muster.errors import DataError

Result = TypeVar("Result")

_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 5.0


class Task:
    """A lease as the work sees it.

    Arguments:
        work, samples: of the unit.
        unit, attempt, base_version: as in the lease.
        model: to begin from.
        sent: what the rule sends with it.
        own: what the unit's keeper kept last time.
        stop: is set where the worker must go.
        slot: the worker's place in the pool.
    """

    def __init__(
        self, offer: Offer, handed: Arrays, own: Arrays, stop: threading.Event, slot: int = 0
    ) -> None:
        self.slot = slot
        self.unit, self.attempt, self.base_version = offer.unit.number, offer.attempt, offer.base_version
        self.work, self.samples = offer.unit.work, offer.unit.samples
        self.model: Arrays = parted(handed, "weights").get("", {})
        self.sent: State = parted(handed, "sent")
        self.own: State = parted(own, "own")
        self.revoked = threading.Event()
        self.done = 0
        self._stop = stop

    @property
    def must_end(self) -> bool:
        """Whether to return now with what there is: the worker must go, or nobody waits for this any more."""
        return self._stop.is_set() or self.revoked.is_set()

    def progress(self, samples: int) -> None:
        """Says how many samples have been done so far; the next sign of life carries it."""
        self.done = samples


@dataclass(frozen=True)
class Outcome:
    """What the work has come to.

    Arguments:
        weights: the trained model.
        samples: done; fewer than the task's if it had to end, none to give the lease back.
        steps, loss, extra: as in `muster.engine.pool.updates.Update`.
        own: what the keeper keeps for its next unit.
        seconds: spent, by pillar.
        coded: what a codec has made of the rest of the weights; see `muster.engine.pool.fold.Codec`.
    """

    weights: Arrays
    samples: int
    steps: int = 1
    loss: float | None = None
    extra: State = field(default_factory=dict)
    own: State = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    coded: Mapping[str, State] = field(default_factory=dict)


@runtime_checkable
class Prepared(Protocol):
    """Work that has something to get ready, such as a model and data, before its worker asks for the first lease."""

    def ready(self) -> None:
        """Gets it ready; does nothing where it is."""
        ...


class CoordinatorGone(ConnectionError):
    """The coordinator could not be reached for longer than a worker waits."""


class Worker:
    """Pulls leases from a seat.

    Arguments:
        seat: the coordinator's.
        name: of this worker, unique in the pool.
        work: does a task. It looks at `Task.must_end` now and then, and may raise: that ends the lease, not the worker.
        stop: set where the worker must go: it hands in what it has, or gives the lease back.
        patience_s: how long a coordinator that cannot be reached is asked again.
        told: is called with one sentence of what happens.
        slot: its place in the pool, which whoever comes after it takes; work may depend on it.
    """

    def __init__(
        self,
        seat: Seat,
        name: str,
        work: Callable[[Task], Outcome],
        *,
        stop: threading.Event | None = None,
        patience_s: float = 120.0,
        told: Callable[[str], None] = lambda sentence: None,
        slot: int = 0,
    ) -> None:
        self._seat, self._name, self._work, self._slot = seat, name, work, slot
        self._stop, self._patience_s, self._told = stop or threading.Event(), patience_s, told
        self._chunks: dict[str, bytes] = {}  # of the last model
        self._beats = _Beats(seat)

    def get_ready(self) -> None:
        """Does what the work wants done before the first lease; `run` does it where nobody has."""
        if isinstance(self._work, Prepared):
            self._work.ready()

    def run(self) -> str:
        """Works until there is nothing more to do; returns why it ended.

        Raises:
            CoordinatorGone: the coordinator stays away.
        """
        self.get_ready()
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "hardware": cpu_name(),
            "since": time.time(),
            "slot": self._slot,
        }
        self._again(self._seat.hello, self._name, about)
        with self._beats:
            while not self._stop.is_set():
                answer = self._again(self._seat.lease, self._name)
                if isinstance(answer, Over):
                    return answer.reason
                if isinstance(answer, Pause):
                    self._stop.wait(answer.seconds)
                    continue
                try:
                    self._serve(answer)
                except (NotActive, RefusedUpdate) as error:
                    self._told(f"unit {answer.unit.number}: {error}")
        return "told to stop"

    # ---- a lease --------------------------------------------------------------------------------------------------------

    def _serve(self, offer: Offer) -> None:
        started = time.monotonic()
        try:
            handed, own = self._model(offer.model), self._fetched(offer.own)
        except (KeyError, DataError) as error:
            self._again(self._seat.give_back, offer.token, f"the model could not be fetched: {error}")
            return
        task = Task(offer, handed, own, self._stop, self._slot)
        fetched = time.monotonic()
        with self._beats.of(offer, task):
            try:
                outcome = self._work(task)
            except Exception:
                told = traceback.format_exc(limit=-3)
                self._told(f"unit {offer.unit.number}: {told.splitlines()[-1]}")
                self._again(partial(self._seat.give_back, failed=True), offer.token, told[-2000:])
                return
            if outcome.samples == 0:
                self._again(self._seat.give_back, offer.token, "the worker must go")
                return
            seconds = {"comm": fetched - started, "compute": time.monotonic() - fetched} | outcome.seconds
            self._hand_in(offer, outcome, seconds)

    def _hand_in(self, offer: Offer, outcome: Outcome, seconds: dict[str, float]) -> None:
        content = pack(flattened(weights={"": outcome.weights}, extra=outcome.extra, **outcome.coded))
        update = self._brought(offer.token, content)
        own = None
        if outcome.own:
            own = self._brought(offer.token, pack(flattened(own=outcome.own)))
        result = Handing(
            update,
            outcome.samples,
            outcome.steps,
            outcome.loss,
            own,
            {k: float(v) for k, v in seconds.items()},
        )
        self._again(self._seat.hand_in, offer.token, result)

    def _brought(self, token: str, content: bytes) -> Manifest:
        manifest = Manifest.of(content)
        contents = dict(zip(manifest.chunks, pieces(content), strict=True))
        for name in self._again(self._seat.missing, token, manifest.chunks):
            self._again(self._seat.put, token, name, bytes(contents[name]))
        return manifest

    def _model(self, manifest: Manifest) -> Arrays:
        """The arrays handed out; what has not changed since the last model is not fetched again."""
        self._chunks = {name: self._chunks[name] for name in manifest.chunks if name in self._chunks}
        for name in manifest.chunks:
            if name not in self._chunks:
                self._chunks[name] = self._again(self._seat.chunk, name)
        return unpack(b"".join(self._chunks[name] for name in manifest.chunks))

    def _fetched(self, manifest: Manifest | None) -> Arrays:
        if manifest is None:
            return {}
        return unpack(b"".join(self._again(self._seat.chunk, name) for name in manifest.chunks))

    def _again(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Makes a call until it is answered, waiting longer and longer in between."""
        until, wait_s = time.monotonic() + self._patience_s, _FIRST_WAIT_S
        while True:
            try:
                return call(*arguments)
            except ConnectionError as error:
                if time.monotonic() > until:
                    raise CoordinatorGone(
                        f"{self._name}: the coordinator was away for {self._patience_s:g} s ({error})"
                    ) from error
                time.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class _Beats:
    """Gives signs of life for the lease in hand, on a thread of its own."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._changed = threading.Condition()
        self._current: tuple[Offer, Task] | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="muster-beats", daemon=True)

    def __enter__(self) -> _Beats:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    @contextmanager
    def of(self, offer: Offer, task: Task) -> Iterator[None]:
        """While a lease is in hand."""
        with self._changed:
            self._current = (offer, task)
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._current = None

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._over:
                    return
                current = self._current
                self._changed.wait(None if current is None else current[0].beat_s)
                if self._over:
                    return
                if current is None or self._current is not current:
                    continue
            offer, task = current
            try:
                self._seat.beat(offer.token, task.done)
            except NotActive:
                task.revoked.set()
            except ConnectionError:
                pass  # the coordinator may come back before the lease has expired
