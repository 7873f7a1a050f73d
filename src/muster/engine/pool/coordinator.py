"""The coordinator of a pool: leases units, examines what comes back, puts it on record, and merges it.

In this order, so that a kill at any moment neither loses nor doubles a result: an update's bytes are on the disk, then the
ledger says that it is accepted, then it is merged and its worker is told. The model itself is no record: it follows from the
first one and the accepted updates, and after a restart it is computed again, from the last snapshot on.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, Protocol

import numpy as np

from muster.engine.pool import course
from muster.engine.pool.blobs import CHUNK, BlobStore, Manifest
from muster.engine.pool.course import Arrived, Fold, Version, contents, loaded_version, shape_of
from muster.engine.pool.ledger import (
    CAUGHT,
    Accepted,
    Claim,
    Lease,
    LeaseEnded,
    Ledger,
    NotActive,
    Retraction,
    Unit,
)
from muster.engine.pool.pace import Pace
from muster.engine.pool.seat import Handing, Offer, Over, Pause
from muster.engine.pool.trust import Result, Trust, Wanted
from muster.engine.pool.updates import (
    Array,
    Arrays,
    RefusedUpdate,
    examined,
    flattened,
    most_bytes,
    pack,
    parted,
    unpack,
)
from muster.errors import DataError, MusterError

_PAUSE_S: Final = 0.05
_SNAPSHOT_EVERY: Final = 64  # merges
_MOST_CLAIMS: Final = 9  # results of a unit without a quorum, after which there will be none
_WORKER: Final = "worker/"  # begins the names of the ledger's facts of workers
_OWN: Final = "own/"  # begins the names of the ledger's facts of what keepers keep


class Rounds(Protocol):
    """What is to be done, round by round."""

    @property
    def count(self) -> int:
        """How many rounds there are."""
        ...

    def units(self, number: int) -> Sequence[tuple[dict[str, Any], int]]:
        """Work and samples of each unit of a round, from 0; always the same for the same number.

        Two keys of the work mean something here. ``keeper`` names who keeps something from one unit to the next, such as a
        party. ``begin`` says that the unit is a part of a whole, so that what a partial result leaves is leased again, from
        there on; without it a partial result is all there is.
        """
        ...


class BelowQuorum(MusterError):
    """Too many units of a round were set aside; names them."""


@dataclass(frozen=True)
class Rules:
    """What a coordinator holds its workers to.

    Arguments:
        silence_s: a lease whose worker gives no sign of life for so long has expired.
        patience: a lease may take so many times as long as its worker's pace says before it has expired all the same.
        copies: further workers that a lagging unit may be given to where nothing else is to do.
        quorum: the share of a round's units that must be done; the others were set aside after too many attempts.
        attempts: leases of a unit that may end without a result.
        most_bytes: of an update; None for what such a model takes.
    """

    silence_s: float = 10.0
    patience: float = 10.0
    copies: int = 1
    quorum: float = 1.0
    attempts: int = 5
    most_bytes: int | None = None


@dataclass
class _Held:
    """A lease as the coordinator keeps it in mind: when it expires, its hard limit, and the chunks it has brought."""

    lease: Lease
    deadline: float
    last: float
    received: int = 0
    brought: set[str] = field(default_factory=set)


class Coordinator:
    """Leases the units of rounds to whoever asks, and folds what they hand in into a model.

    A `muster.engine.pool.seat.Seat` for workers in its own process. Its methods may be called by many threads.

    Arguments:
        folder: of the pool: ledger and blobs; made if it is not there, resumed if it is.
        model: the first model.
        fold: how updates change it.
        about: what a pool is of, as JSON values: it is resumed only by the same.
        rounds: what is to be done. Rules that merge each update as it arrives get all rounds at once.
        rules: for workers.
        pace: what is known of their speed.
        trust: whom to believe; None: everybody.
        now: the run-wide clock, in seconds.
        durable: False for a pool that is thrown away with its process.
        told: is called with (kind, who, detail) of what happens.
        merged: is called with every new version, in order, and with those that a restart computes again; it must be quick.

    Raises:
        DataError: the folder is of another pool, or damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: Arrays,
        fold: Fold,
        rounds: Rounds,
        about: Mapping[str, Any] | None = None,
        rules: Rules | None = None,
        pace: Pace | None = None,
        trust: Trust | None = None,
        now: Callable[[], float] = time.time,
        durable: bool = True,
        told: Callable[[str, str, str], None] = lambda kind, who, detail: None,
        merged: Callable[[Version], None] = lambda version: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._fold, self._rounds, self._rules = fold, rounds, rules or Rules()
        self._trust = trust
        self._pace, self._now, self._told, self._on_version = pace or Pace(), now, told, merged
        self._ledger = Ledger(folder / "ledger.sqlite", attempts=self._rules.attempts, durable=durable)
        self._blobs = BlobStore(folder / "blobs", durable=durable)
        self._shape = shape_of(fold, model)
        self._most_bytes = self._rules.most_bytes or most_bytes(self._shape)
        self._changed = threading.Condition(threading.RLock())
        self._failure: MusterError | None = None
        self._leases: dict[str, _Held] = {}
        self._pins: Counter[int] = Counter()  # versions that leases began from
        self._bases: dict[int, Arrays] = {}  # their models
        self._handed: dict[int, Manifest] = {}  # as chunks
        self._own: dict[str, Manifest] = {}  # what keepers keep
        self._kept: set[str] = set()  # chunks of the first model and of accepted updates
        self._saved: set[str] = set()  # chunks of the last snapshot
        self._waiting: dict[int, Arrived] = {}  # accepted, while a lower number is still on its way here
        self._arrived: list[Arrived] = []  # accepted, while their round is not complete
        self._taken = 0  # number of the last accepted update among them
        self._late: set[str] = set()  # tokens that were brought after their end
        self._claims: dict[int, list[Claim]] = {}  # of units that are being checked
        self._checks: dict[int, Wanted] = {}
        self._caught: dict[str, str] = {}  # workers that have lied, and how
        self._hardware: dict[str, str] = {}  # class of each worker's machine
        self._judging = threading.RLock()  # taken before the other
        self._retractions: list[Retraction] = []
        self._struck = 0  # of them, how many the model knows
        self._version = Version(0, model, fold.begin(model))
        self._ahead = (
            self._version
        )  # what the next merge goes on from; see `muster.engine.pool.course.Retold`
        self._snapshot_of = 0  # number of the version that the last one holds
        self._opened: list[int] = []  # number of the first unit of each round
        self._done = False
        try:
            whom = {} if trust is None else {"trust": dict(trust.about())}
            self._check_about(folder, dict(about or {}) | whom)
            self._restore(folder, model)
        except BaseException:
            self._ledger.close()
            raise

    # ---- the model ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> Version:
        """The newest model."""
        with self._changed:
            return self._version

    @property
    def accepted(self) -> int:
        """How many results have been accepted."""
        with self._changed:
            return self._taken

    @property
    def over(self) -> bool:
        """Whether everything is done, or nothing can be any more."""
        with self._changed:
            return self._done or self._failure is not None

    def wait(self, seconds: float | None = None) -> Version:
        """Waits until all is done, and tends to the leases meanwhile; returns the model.

        Raises:
            TimeoutError: it is not, after so many seconds.
            BelowQuorum: a round has lost too many of its units.
            MusterError: the rule could not merge what came; says why.
        """
        until = math.inf if seconds is None else time.monotonic() + seconds
        while not self.over:
            if time.monotonic() > until:
                raise TimeoutError(f"the pool is not done after {seconds:g} s")
            self._tend()
            with self._changed:
                self._changed.wait_for(lambda: self.over, min(0.2, self._rules.silence_s / 4))
        if self._failure is not None:
            raise self._failure
        return self.version

    def close(self) -> None:
        """Ends; a coordinator that is opened on this folder goes on from here."""
        with self._changed:
            if self._failure is None:
                self._snapshot()
        self._ledger.close()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- a worker's seat ------------------------------------------------------------------------------------------------

    def hello(self, worker: str, about: Mapping[str, Any]) -> None:
        """See `muster.engine.pool.seat.Seat`."""
        with self._disk():
            self._ledger.note(f"{_WORKER}{worker}", dict(about))
        with self._changed:
            self._hardware[worker] = str(about.get("hardware", ""))

    def lease(self, worker: str) -> Offer | Pause | Over:
        """See `muster.engine.pool.seat.Seat`."""
        self._tend()
        trust = self._trust
        while True:
            with self._changed:
                if self.over:
                    return Over("the pool is done" if self._failure is None else str(self._failure))
                if worker in self._caught:
                    return Over(f"{worker} was caught lying: {self._caught[worker]}")
                version, now = self._version, self._now()
                with self._disk():
                    model = self._hand_out(version)
                lagging = self._lagging(now)
                self._pin(version)
            lease = None
            try:
                with self._disk():
                    lease = self._ledger.grant(
                        worker,
                        now=now,
                        deadline=now + self._rules.silence_s,
                        base_version=version.number,
                        model=model.to_json(),
                        copies=self._rules.copies,
                        copied=lagging,
                        check=None if trust is None else lambda unit: trust.wanted(unit, worker),
                        trusted=trust is not None and trust.is_trusted(worker),
                    )
            finally:
                if lease is None:
                    with self._changed:
                        self._unpin(version.number)
            if lease is None:
                return Pause(_PAUSE_S)
            with self._changed:
                if lease.base_version != version.number:  # that of the unit's other results
                    self._unpin(version.number)
                    self._pins[lease.base_version] += 1
                self._leases[lease.token] = self._held(lease)
                handed = self._handed.get(lease.base_version)
                own = self._own.get(str(lease.unit.work.get("keeper")))
                outdated = self._fold.arrival == "round" and version is not self._version
            if (
                outdated or handed is None
            ):  # the round, or the other results, came to their end between the two
                self._end(lease, "returned", "of the next round", counts=False)
                continue
            beat_s = self._rules.silence_s / 4
            return Offer(lease.token, lease.unit, lease.attempt, lease.base_version, handed, own, beat_s)

    def beat(self, token: str, samples: int) -> None:
        """See `muster.engine.pool.seat.Seat`."""
        deadline = self._now() + self._rules.silence_s
        with self._changed:
            held = self._leases.get(token)
            if held is not None:
                held.deadline = deadline = min(deadline, held.last)
        with self._disk():
            self._ledger.extend(token, deadline=deadline)

    def chunk(self, name: str) -> bytes:
        """See `muster.engine.pool.seat.Seat`."""
        return self._blobs.get(name)

    def missing(self, token: str, names: Iterable[str]) -> list[str]:
        """See `muster.engine.pool.seat.Seat`."""
        self._active(token)
        return self._blobs.missing(names)

    def put(self, token: str, name: str, content: bytes) -> None:
        """See `muster.engine.pool.seat.Seat`."""
        lease = self._active(token)
        most = 2 * self._most_bytes + CHUNK
        with self._changed:
            held = self._leases.get(token)
            if held is None:  # has ended since
                raise NotActive(f"the lease of unit {lease.unit.number} to {lease.worker} has ended")
            held.received += len(content)
            received = held.received
            held.brought.add(name)
        if received > most or len(content) > CHUNK:
            self._refuse(
                lease, f"brings {received:,} bytes where {most:,} in chunks of {CHUNK:,} are allowed"
            )
        try:
            with self._disk():
                self._blobs.put_named(name, content)
        except DataError as error:
            self._refuse(lease, str(error))

    def hand_in(self, token: str, result: Handing) -> int:
        """See `muster.engine.pool.seat.Seat`."""
        before = self._ledger.accepted_by(token)
        if before is not None and before.content == result.update.name:
            return before.number
        claimed = self._ledger.claimed(token) if self._trust is not None else None
        if claimed is not None and claimed.content == result.update.name:
            return 0
        lease = self._active(token)
        with self._changed:
            held = self._leases.get(token)
            if held is None:  # has ended since
                raise NotActive(f"the lease of unit {lease.unit.number} to {lease.worker} has ended")
            base = self._bases.get(lease.base_version, {})
            # From here on they are this lease's, too, whoever has brought them: nobody else's end takes them away.
            held.brought.update(result.update.chunks, result.own.chunks if result.own else ())
        try:
            arrays = self._examined(lease, result)
        except RefusedUpdate as error:
            self._refuse(lease, f"{error}; it sent {result.update.name}")
        if lease.checked:
            return self._claim(lease, result)
        now, keeper = self._now(), str(lease.unit.work.get("keeper"))
        with self._disk():
            accepted = self._ledger.accept(
                token,
                content=result.update.name,
                samples=result.samples,
                now=now,
                detail=_detail(lease, result),
                rest=_rest(lease.unit, result.samples),
                notes={} if result.own is None else {f"{_OWN}{keeper}": result.own.to_json()},
            )
        with self._changed:
            self._pace.ended(lease.worker, result.samples, now - lease.granted)
            if self._trust is not None:
                self._trust.believed([lease.worker])
            self._counts(accepted, arrays, base, result.own)
            self._changed.notify_all()
        return accepted.number

    def _counts(
        self, accepted: Accepted, arrays: dict[str, Array], base: Arrays, own: Manifest | None
    ) -> None:
        """A result is on record as accepted: merges it. With the lock held."""
        self._kept.update(_manifest(accepted.detail["update"]).chunks)
        if own is not None:
            keeper = accepted.detail["keeper"].removeprefix(_OWN)
            outdated, self._own[keeper] = self._own.get(keeper), own
            self._discard(outdated.chunks if outdated else ())
        self._take(Arrived(accepted, arrays, base))
        for token in [each for each, held in self._leases.items() if held.lease.unit.number == accepted.unit]:
            self._let_go(token)
        self._progress()

    def give_back(self, token: str, reason: str, *, failed: bool = False) -> None:
        """See `muster.engine.pool.seat.Seat`."""
        lease = self._active(token)
        self._end(lease, "failed" if failed else "returned", reason, counts=failed)

    def worker_gone(self, worker: str, reason: str, *, counts: bool = True) -> None:
        """Ends the leases of a worker that is known to be gone, without waiting for its silence.

        Arguments:
            worker: its name.
            reason: in words.
            counts: whether the work may be to blame; else these leases use up no attempts of their units.
        """
        with self._changed:
            leases = [held.lease for held in self._leases.values() if held.lease.worker == worker]
        for lease in leases:
            self._end(lease, "failed", reason, counts=counts)

    def _tend(self) -> None:
        """Ends the leases that have expired, and does what a full disk has kept from being done."""
        now = self._now()
        with self._changed:
            workers = {token: held.lease.worker for token, held in self._leases.items()}
            late = any(held.deadline < now for held in self._leases.values())
        try:
            expired = self._ledger.expire(now=now) if late else []
        except sqlite3.OperationalError as error:
            self._unable(error)
            return
        with self._changed:
            for token in expired:
                self._let_go(token)
            self._progress()
            self._changed.notify_all()
        for token in expired:
            self._told("expired", workers.get(token, ""), f"lease {token[:8]}: no sign of life, or too slow")

    def _unable(self, error: Exception) -> ConnectionError:
        """The disk does not take it now; whoever came may come again."""
        told = f"the coordinator cannot write: {error}"
        self._told("unable", "", told)
        return ConnectionError(told)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Where something is written: what goes wrong there is nobody's fault, and may go well the next time."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise self._unable(error) from None

    # ---- leases ---------------------------------------------------------------------------------------------------------

    def _held(self, lease: Lease) -> _Held:
        allowed = self._pace.allowed_s(lease.worker, lease.unit.samples)
        last = lease.granted + max(self._rules.silence_s, self._rules.patience * allowed)
        return _Held(lease, lease.deadline, last)

    def _lagging(self, now: float) -> list[int]:
        """Units that have been in somebody's hands for longer than such a one takes, so that a copy may be worth it."""
        return [
            held.lease.unit.number
            for held in self._leases.values()
            if now - held.lease.granted > self._pace.typically_allowed_s(held.lease.unit.samples)
        ]

    def _active(self, token: str) -> Lease:
        """A lease that has not ended; who comes with one that has is on record, once.

        Raises:
            NotActive: it has ended, or never was.
        """
        try:
            return self._ledger.lease(token)
        except LeaseEnded as error:
            with self._changed:
                new = token not in self._late
                self._late.add(token)
            if new:
                self._testify("late", error.worker, str(error))
            raise

    def _refuse(self, lease: Lease, reason: str) -> NoReturn:
        self._testify("refused", lease.worker, f"unit {lease.unit.number}: {reason}")
        self._end(lease, "refused", reason, counts=True)
        raise RefusedUpdate(reason)

    def _testify(self, kind: str, worker: str, detail: str) -> None:
        with self._disk():
            self._ledger.testify(kind, worker, detail[:500], now=self._now())
        self._told(kind, worker, detail[:500])

    def _end(
        self, lease: Lease, outcome: Literal["refused", "failed", "returned"], reason: str, *, counts: bool
    ) -> None:
        try:
            with self._disk():
                self._ledger.end(lease.token, outcome, now=self._now(), reason=reason[:500], counts=counts)
        except NotActive:
            return
        if outcome != "refused":
            self._told(outcome, lease.worker, f"unit {lease.unit.number}: {reason[:500]}")
        with self._changed:
            self._let_go(lease.token)
            self._progress()
            self._changed.notify_all()

    def _let_go(self, token: str) -> None:
        held = self._leases.pop(token, None)
        if held is not None:
            self._unpin(held.lease.base_version)
            self._discard(held.brought)

    def _discard(self, names: Iterable[str]) -> None:
        """Removes those chunks that nothing else consists of: equal contents are stored once."""
        gone = set(names) - self._kept - self._saved
        for manifest in (*self._handed.values(), *self._own.values()):
            gone.difference_update(manifest.chunks)
        for held in self._leases.values():
            gone -= held.brought
        for claims in self._claims.values():
            for claim in claims:
                gone -= _chunks(claim)
        self._blobs.remove(gone)

    def _examined(self, lease: Lease, result: Handing) -> dict[str, Array]:
        if result.update.size > self._most_bytes:
            raise RefusedUpdate(
                f"has {result.update.size:,} bytes; this model's have at most {self._most_bytes:,}"
            )
        if type(result.samples) is not int or result.samples < 1:
            raise RefusedUpdate(f"claims {result.samples!r:.40} samples; expected 1 or more")
        if type(result.steps) is not int or not 1 <= result.steps < 1 << 31:
            raise RefusedUpdate(f"claims {result.steps!r:.40} steps")
        if result.loss is not None and not math.isfinite(result.loss):
            raise RefusedUpdate(f"claims a loss of {result.loss!r:.40}")
        if result.own is not None:
            if "keeper" not in lease.unit.work:
                raise RefusedUpdate("brings something to keep for a unit without a keeper")
            if result.own.size > self._most_bytes or self._blobs.missing(result.own.chunks):
                raise RefusedUpdate("brings something to keep that is too large, or not whole")
        try:
            content = self._blobs.get_whole(result.update)
        except KeyError as error:
            raise RefusedUpdate(f"is not whole: chunk {error.args[0][:12]} is not here") from None
        return examined(content, self._shape, samples=result.samples, most_samples=lease.unit.samples)

    # ---- versions: with the lock held ---------------------------------------------------------------------------------

    def _pin(self, version: Version) -> None:
        self._pins[version.number] += 1
        self._bases[version.number] = version.model

    def _unpin(self, number: int) -> None:
        self._pins[number] -= 1
        if self._pins[number] <= 0:
            del self._pins[number]
            self._drop(number)

    def _drop(self, number: int) -> None:
        """Forgets a version that nobody begins from any more."""
        if number == self._version.number or number in self._pins:
            return
        self._bases.pop(number, None)
        gone = self._handed.pop(number, None)
        if gone is not None:
            self._discard(gone.chunks)

    def _hand_out(self, version: Version) -> Manifest:
        if version.number not in self._handed:
            sent = self._fold.send(version.model, version.state)
            self._handed[version.number] = self._blobs.put_whole(
                pack(flattened(weights={"": version.model}, sent=sent))
            )
        return self._handed[version.number]

    # ---- merging: with the lock held ------------------------------------------------------------------------------------

    def _take(self, arrived: Arrived) -> None:
        """Takes accepted updates in, by their numbers, in whatever order their threads come."""
        self._waiting[arrived.accepted.number] = arrived
        while self._taken + 1 in self._waiting:
            self._taken += 1
            self._arrived.append(self._waiting.pop(self._taken))
            if self._fold.arrival == "each":
                self._merge()
            while (
                self._struck < len(self._retractions) and self._retractions[self._struck].after == self._taken
            ):
                self._strike(self._struck + 1)

    def _merge(self) -> None:
        """Merges what has arrived."""
        if self._failure is not None:
            return
        before = self._version
        try:
            self._version = course.merged(
                self._fold, replace(self._ahead, number=before.number), self._arrived
            )
        except MusterError as error:
            self._fail(error)
            return
        except Exception as error:  # a rule is anybody's code
            self._fail(MusterError(f"the merge rule {self._fold} failed: {type(error).__name__}: {error}"))
            return
        self._arrived.clear()
        self._ahead = self._version
        self._drop(before.number)
        self._on_version(self._version)
        if self._version.number - self._snapshot_of >= _SNAPSHOT_EVERY:
            self._snapshot()

    def _progress(self) -> None:
        """Merges the round if it is complete, and opens the next one."""
        try:
            while self._failure is None and not self._done:
                standing = self._ledger.standing()
                if standing.open or standing.accepted != self._taken:
                    return
                if self._opened and not self._complete():
                    return
                if len(self._opened) == self._batches:
                    self._done = True
                    return
                self._open(standing.following)
        except sqlite3.OperationalError as error:
            self._unable(error)

    def _complete(self) -> bool:
        """Ends the round all of whose units are done or set aside; False if that is the end of all."""
        first = self._opened[-1]
        aside = [unit for unit in self._ledger.set_aside() if unit.number >= first]
        if aside:
            total = self._ledger.standing().following - first
            names = ", ".join(str(unit.work.get("keeper", unit.number)) for unit in aside[:10])
            told = (
                f"round {len(self._opened) - 1}: {len(aside)} of {total} units were set aside after "
                f"{self._rules.attempts} attempts each: {names}{' ...' if len(aside) > 10 else ''}"
            )
            if total - len(aside) < self._rules.quorum * total or len(aside) == total:
                self._fail(BelowQuorum(f"{told}; the quorum is {self._rules.quorum:.0%}"))
                return False
            self._testify("short", "", told)
        if self._arrived:
            self._merge()
        return self._failure is None

    def _fail(self, error: MusterError) -> None:
        self._failure = error
        self._told("failed", "", str(error))

    @property
    def _batches(self) -> int:
        return self._rounds.count if self._fold.arrival == "round" else min(1, self._rounds.count)

    def _open(self, first: int) -> None:
        """Adds the units of the next round."""
        opened = [*self._opened, first]
        self._ledger.note("opened", opened)
        self._opened = opened
        self._fill()

    def _fill(self) -> None:
        """Makes sure that the units of the open round are there; a kill may have come between its note and them."""
        numbers = [len(self._opened) - 1] if self._fold.arrival == "round" else range(self._rounds.count)
        work = [unit for number in numbers for unit in self._rounds.units(number)]
        first = self._opened[-1]
        self._ledger.add([Unit(first + place, told, samples) for place, (told, samples) in enumerate(work)])

    # ---- snapshots and restarts -----------------------------------------------------------------------------------------

    def _snapshot(self) -> None:
        """Puts the newest model on the disk, and those that leases began from; the ledger then points at them."""
        if self._arrived or self._waiting or self._ahead is not self._version:
            return  # in the middle of a round, the one after the last will do
        try:
            manifests = {
                number: self._blobs.put_whole(Version(number, model, {}).packed())
                for number, model in self._bases.items()
            }
            manifests[self._version.number] = self._blobs.put_whole(self._version.packed())
            self._ledger.note(
                "snapshot",
                {
                    "taken": self._taken,
                    "version": self._version.number,
                    "retractions": self._struck,
                    "models": {str(number): each.to_json() for number, each in manifests.items()},
                },
            )
        except (OSError, sqlite3.OperationalError) as error:
            self._unable(error)
            return
        before, self._saved = self._saved, {name for each in manifests.values() for name in each.chunks}
        self._discard(before)
        self._snapshot_of = self._version.number

    def _check_about(self, folder: Path, about: dict[str, Any]) -> None:
        about = json.loads(json.dumps(about))
        known = self._ledger.noted("about")
        if known is None:
            self._ledger.note("about", about)
            self._ledger.note("arrival", self._fold.arrival)
            return
        for key in known.keys() | about.keys():
            if known.get(key) != about.get(key):
                raise DataError(
                    f"{folder} is of a pool with {key} {known.get(key)!r}, and this is one with {about.get(key)!r}; give "
                    "another folder, or go on as it was begun"
                )

    def _restore(self, folder: Path, model: Arrays) -> None:
        """The newest model, from the last snapshot and what was accepted since."""
        ledger = self._ledger
        first = self._blobs.put_whole(pack(flattened(weights={"": model})))
        if ledger.noted("first") is None:
            ledger.note("first", first.to_json())
        elif ledger.noted("first") != first.to_json():
            raise DataError(f"{folder} is of a pool that began with another model; give another folder")
        self._opened = ledger.noted("opened", [])
        snapshot = ledger.noted("snapshot")
        self._retractions = ledger.retractions()
        self._recall()
        # The snapshot of a model that knows nothing of a retraction is none; the course is walked again.
        outdated = len(self._retractions) > (0 if snapshot is None else snapshot.get("retractions", 0))
        if outdated:
            self._walk_again()
        elif snapshot is None:
            self._bases = {0: model}
        else:
            versions = {
                int(number): loaded_version(self._blobs, int(number), told)
                for number, told in snapshot["models"].items()
            }
            self._version, self._taken = versions[snapshot["version"]], snapshot["taken"]
            self._bases = {number: each.model for number, each in versions.items()}
            self._struck = len(self._retractions)
        if not outdated:
            self._ahead = self._version
        self._snapshot_of = self._version.number
        self._on_version(self._version)
        self._kept |= set(first.chunks)
        for each in ledger.accepted():
            self._kept.update(_manifest(each.detail["update"]).chunks)
        for name, told in ledger.noted_below(_OWN).items():
            self._own[name.removeprefix(_OWN)] = _manifest(told)
        active, since = ledger.active(), ledger.accepted(after=self._taken)
        pending = [claim for claims in self._claims.values() for claim in claims]
        needed = {lease.base_version for lease in active} | {each.base_version for each in since}
        needed |= {claim.base_version for claim in pending}
        gone = frozenset().union(*(each.numbers for each in self._retractions))
        self._pins.update(needed)  # until all of them have been merged
        for each in since:
            round_ = bisect_right(self._opened, each.unit)
            if self._arrived and round_ > bisect_right(self._opened, self._arrived[0].accepted.unit):
                self._merge()
            self._taken = each.number
            base = self._bases.get(each.base_version)
            if base is None and self._fold.arrival == "round":
                base = self._version.model
            if base is None:
                raise DataError(
                    f"{folder}: the snapshot lacks version {each.base_version}; the ledger is damaged"
                )
            if each.number not in gone:  # in an open round only: other retractions are behind the snapshot
                self._arrived.append(Arrived(each, contents(self._blobs, each), base))
            if self._fold.arrival == "each":
                self._merge()
                if self._version.number in needed:
                    self._bases[self._version.number] = self._version.model
        if self._arrived and bisect_right(self._opened, self._arrived[0].accepted.unit) < len(self._opened):
            self._merge()
        self._pins.subtract(needed)
        for lease in active:
            base = self._bases.setdefault(lease.base_version, self._version.model)
            self._pin(Version(lease.base_version, base, {}))
            self._handed[lease.base_version] = _manifest(lease.model)
            self._leases[lease.token] = self._held(lease)
        for claim in pending:
            base = self._bases.setdefault(claim.base_version, self._version.model)
            self._pin(Version(claim.base_version, base, {}))
            self._handed[claim.base_version] = _manifest(claim.model)
        self._pins = +self._pins
        for number in list(self._bases):
            self._drop(number)
        deadline = self._now() + self._rules.silence_s  # nobody could hear a sign of life meanwhile
        ledger.extend_all(deadline=deadline)
        for held in self._leases.values():
            held.deadline = max(held.deadline, deadline)
            held.last = max(held.last, deadline)
        if self._opened:
            self._fill()
        for unit in list(self._claims):
            self._judge(unit)
        self._progress()

    # ---- whom to believe: with the lock of judging held -----------------------------------------------------------------

    def _claim(self, lease: Lease, result: Handing) -> int:
        """A result that is compared with others before it counts; its number, or 0 while there is none."""
        if result.samples < lease.unit.samples and "begin" in lease.unit.work:
            self._end(lease, "returned", "a part of a unit that is checked cannot be compared", counts=False)
            return 0
        unit, now = lease.unit.number, self._now()
        with self._judging:
            with self._disk():
                claim = self._ledger.claim(
                    lease.token,
                    content=result.update.name,
                    samples=result.samples,
                    now=now,
                    detail=_detail(lease, result),
                )
            with self._changed:
                self._pace.ended(lease.worker, result.samples, now - lease.granted)
                self._claims.setdefault(unit, []).append(claim)
                self._pins[claim.base_version] += 1
                self._let_go(lease.token)
            self._judge(unit)
        number = self._ledger.accepted_by(lease.token)
        return 0 if number is None else number.number

    def _judge(self, unit: int) -> None:
        """Compares the claims of a unit, once there are enough."""
        assert self._trust is not None
        with self._judging:
            claims = list(self._claims.get(unit, ()))
            wanted = self._ledger.checks().get(unit)
            if not claims or wanted is None or len(claims) < wanted.results:
                return
            with self._changed:
                base = self._bases[claims[0].base_version]
                hardware = [self._hardware.get(claim.worker, "") for claim in claims]
            results = [self._result(claim, kind) for claim, kind in zip(claims, hardware, strict=True)]
            verdict = self._trust.judged(flattened(weights={"": base}), results)
            if verdict.believed is None:
                with self._disk():
                    self._ledger.want(unit, verdict.wanted)
                self._testify("disputed", "", f"unit {unit}: {len(claims)} results do not agree")
                if len(claims) >= _MOST_CLAIMS:
                    with self._changed:
                        self._fail(
                            MusterError(
                                f"unit {unit}: no quorum among {len(claims)} results; its work must be a function of its "
                                "model and its seed, up to rounding, or most workers lie"
                            )
                        )
                return
            believed = claims[verdict.believed]
            lies = {claims[place].token: why for place, why in verdict.lies.items()}
            agreed = [claim.worker for claim in claims if claim.token not in lies]
            own = believed.detail.get("own")
            with self._disk():
                accepted, retraction = self._ledger.settle(
                    believed,
                    now=self._now(),
                    detail={"agreed": agreed},
                    notes={} if own is None else {believed.detail["keeper"]: own},
                    lies=lies,
                    anew_from=self._opened[-1] if self._fold.arrival == "round" else 0,
                )
            with self._changed:
                self._settled(claims, lies)
                self._trust.believed(agreed, verdict.differences)
                if retraction is not None:
                    self._retractions.append(retraction)
                arrays = contents(self._blobs, accepted)
                self._counts(accepted, arrays, base, None if own is None else _manifest(own))
                self._discard(set().union(*(_chunks(claim) for claim in claims if claim.token not in lies)))
                self._progress()
                self._changed.notify_all()
            for claim in claims:
                if claim.token in lies:
                    self._told("lie", claim.worker, f"unit {unit}: {lies[claim.token]}")
            if retraction is not None:
                self._told("retracted", "", f"{len(retraction.numbers)} results")

    def _settled(self, claims: Sequence[Claim], lies: Mapping[str, str]) -> None:
        """A unit's claims are no longer open, and those who lied have no others. With the lock held."""
        assert self._trust is not None
        closed = list(claims)
        del self._claims[claims[0].unit]
        for claim in claims:
            if claim.token in lies:
                self._kept |= _chunks(claim)  # it is evidence
                self._caught[claim.worker] = f"unit {claim.unit}: {lies[claim.token]}"
                self._trust.caught(claim.worker)
        for unit, others in list(self._claims.items()):
            closed += [claim for claim in others if claim.worker in self._caught]
            self._claims[unit] = [claim for claim in others if claim.worker not in self._caught]
            if not self._claims[unit]:
                del self._claims[unit]
        for claim in closed:
            self._unpin(claim.base_version)
        for token in [each for each, held in self._leases.items() if held.lease.worker in self._caught]:
            self._let_go(token)

    def _result(self, claim: Claim, hardware: str) -> Result:
        """A claim with its arrays; what its keeper keeps is compared as well."""
        arrays = contents(self._blobs, claim)
        own = claim.detail.get("own")
        if own is not None:
            try:
                arrays |= flattened(own=parted(unpack(self._blobs.get_whole(_manifest(own))), "own"))
            except (DataError, ValueError):
                arrays |= {"own": np.zeros(0)}  # differs from all that can be read
        facts = {"samples": claim.samples, "steps": claim.detail["steps"]}
        return Result(claim.worker, hardware, arrays, facts, claim.detail["loss"])

    def _strike(self, count: int) -> None:
        """Takes the results of the first retractions out of the model. With the lock held."""
        try:
            self._walk_again(self._retractions[:count], taken=self._taken)
        except MusterError as error:
            self._fail(error)
            return
        gone = self._retractions[count - 1].numbers
        self._arrived = [each for each in self._arrived if each.accepted.number not in gone]
        if self._fold.arrival == "each":
            self._on_version(self._version)
        deadline = self._now() + self._rules.silence_s  # nobody could hear a sign of life meanwhile
        try:
            self._ledger.extend_all(deadline=deadline)
        except sqlite3.OperationalError as error:
            self._unable(error)
        for held in self._leases.values():
            held.deadline, held.last = max(held.deadline, deadline), max(held.last, deadline)
        for name, told in list(self._own.items()):
            known = self._ledger.noted(f"{_OWN}{name}")
            if known is None or _manifest(known) != told:
                del self._own[name]

    def _walk_again(self, retractions: Sequence[Retraction] | None = None, taken: int | None = None) -> None:
        """The model from the first one on, without what was retracted."""
        ledger, rounds = self._ledger, self._fold.arrival == "round"
        retractions = self._retractions if retractions is None else retractions
        accepted = [each for each in ledger.accepted() if taken is None or each.number <= taken]
        if rounds:
            accepted = [each for each in accepted if each.unit < self._opened[-1]]
        opening = taken is None
        keep = set(self._pins)
        if opening:
            keep = {lease.base_version for lease in ledger.active()}
            keep |= {claim.base_version for claims in self._claims.values() for claim in claims}
        first = unpack(self._blobs.get_whole(_manifest(ledger.noted("first"))))
        told = course.retold(
            self._blobs,
            self._fold,
            parted(first, "weights").get("", {}),
            accepted,
            retractions,
            self._opened if rounds else None,
            keep=keep,
        )
        before, self._struck = self._version, len(retractions)
        self._version, self._ahead = told.version, told.ahead
        if rounds and not opening:
            self._version = before  # until the round is complete
        elif not rounds:
            self._ahead = self._version
        if opening:
            self._bases = {**told.bases, self._version.number: self._version.model}
            self._taken = accepted[-1].number if accepted else 0
        else:
            self._drop(before.number)

    def _recall(self) -> None:
        """What is on record about whom to believe."""
        for name, about in self._ledger.noted_below(_WORKER).items():
            self._hardware[name.removeprefix(_WORKER)] = str(about.get("hardware", ""))
        if self._trust is None:
            return
        for each in self._ledger.accepted():
            self._trust.believed(each.detail.get("agreed", [each.worker]))
        for name, told in self._ledger.noted_below(CAUGHT).items():
            self._caught[name.removeprefix(CAUGHT)] = told
            self._trust.caught(name.removeprefix(CAUGHT))
        for claim in self._ledger.claims():
            if claim.verdict is None:
                self._claims.setdefault(claim.unit, []).append(claim)
            elif claim.verdict == "lie":
                self._kept |= _chunks(claim)


def _chunks(claim: Claim) -> set[str]:
    """What a claim consists of."""
    found = set(_manifest(claim.detail["update"]).chunks)
    if "own" in claim.detail:
        found.update(_manifest(claim.detail["own"]).chunks)
    return found


def _detail(lease: Lease, result: Handing) -> dict[str, Any]:
    """What belongs to a result, as the ledger keeps it."""
    own = {}
    if result.own is not None:
        own = {"own": result.own.to_json(), "keeper": f"{_OWN}{lease.unit.work['keeper']}"}
    return {
        "update": result.update.to_json(),
        "steps": result.steps,
        "loss": result.loss,
        "seconds": result.seconds,
        **own,
    }


def _manifest(told: str) -> Manifest:
    """One that was written here."""
    return Manifest.from_json(told, most_bytes=1 << 62)


def _rest(unit: Unit, samples: int) -> tuple[dict[str, Any], int] | None:
    """What a partial result leaves to do, where units are parts of a whole."""
    left = unit.samples - samples
    if left == 0 or "begin" not in unit.work:
        return None
    return {**unit.work, "begin": unit.work["begin"] + samples}, left
