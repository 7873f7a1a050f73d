"""The coordinator of a pool: leases units, examines what comes back, puts it on record, and merges it.

In this order, so that a kill at any moment neither loses nor doubles a result: an update's bytes are on the disk, then the
ledger says that it is accepted, then it is merged and its worker is told. The model itself is no record: it follows from the
first one and the accepted updates, and after a restart it is computed again, from the last snapshot on.

The coordinator has one lock, `Coordinator._changed`. Its `Book` and its `Progress` have none of their own and are called with
that one held. Its `Judge` has another one, so that one unit is judged at a time: that one is taken first.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from muster.engine.pool.blobs import CHUNK, BlobStore
from muster.engine.pool.book import Book
from muster.engine.pool.course import Version
from muster.engine.pool.delivery import OWN, detail_of, examined_result, rest_of
from muster.engine.pool.desk import Desk
from muster.engine.pool.fold import Coded, Fold, decoded, plain_shape, shape_of
from muster.engine.pool.judging import WORKER, Judge
from muster.engine.pool.ledger import Lease, LeaseEnded, Ledger, NotActive
from muster.engine.pool.pace import Pace
from muster.engine.pool.progress import Progress
from muster.engine.pool.restart import check_about, restore
from muster.engine.pool.rules import Rounds, Rules
from muster.engine.pool.seat import Handing, Offer, Over, Pause
from muster.engine.pool.trust import Trust
from muster.engine.pool.updates import Arrays, RefusedUpdate, most_bytes
from muster.errors import DataError

_PAUSE_S: Final = 0.05


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
        self._fold, self._rules, self._now, self._trust = fold, rules or Rules(), now, trust
        self._ledger = Ledger(folder / "ledger.sqlite", attempts=self._rules.attempts, durable=durable)
        self._blobs = BlobStore(folder / "blobs", durable=durable)
        self._desk = Desk(self._ledger, self._blobs, now, told)
        self._shape = shape_of(fold, model)
        self._most_bytes = self._rules.most_bytes or most_bytes(self._shape)
        # What a keeper keeps is as large as its updates were before they were encoded; one more for what encoding left out.
        kept = plain_shape(fold, model)
        self._most_kept_bytes = self._rules.most_bytes or most_bytes(kept) * (
            2 if isinstance(fold, Coded) else 1
        )
        self._changed = threading.Condition(threading.RLock())  # the book and the progress are behind it
        self._late: set[str] = set()  # tokens that were brought after their end
        first = Version(0, model, fold.begin(model))
        self._book = Book(self._blobs, fold, first, self._rules, pace or Pace())
        self._progress = Progress(self._desk, self._book, fold, rounds, self._rules, merged)
        self._judge: Judge | None = None
        if trust is not None:
            self._judge = Judge(
                trust, self._desk, self._book, self._progress, fold=fold, changed=self._changed
            )
        try:
            whom = {} if trust is None else {"trust": dict(trust.about())}
            check_about(self._ledger, folder, dict(about or {}) | whom, fold.arrival)
            restore(
                folder,
                model,
                fold=fold,
                desk=self._desk,
                book=self._book,
                progress=self._progress,
                judge=self._judge,
                silence_s=self._rules.silence_s,
            )
        except BaseException:
            self._ledger.close()
            raise

    # ---- the model ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> Version:
        """The newest model."""
        with self._changed:
            return self._book.version

    @property
    def accepted(self) -> int:
        """How many results have been accepted."""
        with self._changed:
            return self._progress.taken

    @property
    def over(self) -> bool:
        """Whether everything is done, or nothing can be any more."""
        with self._changed:
            return self._progress.over

    @property
    def caught(self) -> dict[str, str]:
        """Workers that have lied, and how."""
        with self._changed:
            return {} if self._judge is None else dict(self._judge.caught)

    @property
    def workers_needed(self) -> int:
        """With fewer that were not caught nothing goes on."""
        return 1 if self._trust is None else self._trust.workers_needed

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
        if self._progress.failure is not None:
            raise self._progress.failure
        return self.version

    def close(self) -> None:
        """Ends; a coordinator that is opened on this folder goes on from here."""
        with self._changed:
            if self._progress.failure is None:
                self._progress.snapshot()
        self._ledger.close()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- a worker's seat ------------------------------------------------------------------------------------------------

    def hello(self, worker: str, about: Mapping[str, Any]) -> None:
        """See `muster.engine.pool.seat.Seat`."""
        with self._desk.writing():
            self._ledger.note(f"{WORKER}{worker}", dict(about))
        with self._changed:
            if self._judge is not None:
                self._judge.hardware[worker] = str(about.get("hardware", ""))

    def lease(self, worker: str) -> Offer | Pause | Over:
        """See `muster.engine.pool.seat.Seat`."""
        self._tend()
        trust = self._trust
        while True:
            with self._changed:
                if self.over:
                    return Over(
                        "the pool is done" if self._progress.failure is None else str(self._progress.failure)
                    )
                if self._judge is not None and worker in self._judge.caught:
                    return Over(f"{worker} was caught lying: {self._judge.caught[worker]}")
                version, now = self._book.version, self._now()
                with self._desk.writing():
                    model = self._book.hand_out(version)
                lagging = self._book.lagging(now)
                self._book.pin(version)
            lease = None
            try:
                with self._desk.writing():
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
                        self._book.unpin(version.number)
            if lease is None:
                return Pause(_PAUSE_S)
            with self._changed:
                if lease.base_version != version.number:  # that of the unit's other results
                    self._book.unpin(version.number)
                    self._book.pins[lease.base_version] += 1
                self._book.hold(lease)
                if self._judge is not None and worker in self._judge.caught:  # since it was granted
                    self._book.let_go(lease.token)
                    continue
                handed = self._book.handed.get(lease.base_version)
                own = self._book.own.get(str(lease.unit.work.get("keeper")))
                outdated = self._fold.arrival == "round" and version is not self._book.version
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
            held = self._book.leases.get(token)
            if held is not None:
                held.deadline = deadline = min(deadline, held.last)
        with self._desk.writing():
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
        most = self._most_bytes + self._most_kept_bytes + CHUNK
        with self._changed:
            held = self._book.leases.get(token)
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
            with self._desk.writing():
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
            held = self._book.leases.get(token)
            if held is None:  # has ended since
                raise NotActive(f"the lease of unit {lease.unit.number} to {lease.worker} has ended")
            base = self._book.bases.get(lease.base_version, {})
            # From here on they are this lease's, too, whoever has brought them: nobody else's end takes them away.
            held.brought.update(result.update.chunks, result.own.chunks if result.own else ())
        try:
            arrays = examined_result(
                self._blobs,
                lease,
                result,
                shape=self._shape,
                most_bytes=self._most_bytes,
                most_kept_bytes=self._most_kept_bytes,
            )
            arrays = decoded(self._fold, arrays, base)
        except RefusedUpdate as error:
            self._refuse(lease, f"{error}; it sent {result.update.name}")
        if lease.checked and self._judge is not None:
            if result.samples < lease.unit.samples and "begin" in lease.unit.work:
                self._end(
                    lease, "returned", "a part of a unit that is checked cannot be compared", counts=False
                )
                return 0
            return self._judge.claim(lease, result)
        now, keeper = self._now(), str(lease.unit.work.get("keeper"))
        with self._desk.writing():
            accepted = self._ledger.accept(
                token,
                content=result.update.name,
                samples=result.samples,
                now=now,
                detail=detail_of(lease, result),
                rest=rest_of(lease.unit, result.samples),
                notes={} if result.own is None else {f"{OWN}{keeper}": result.own.to_json()},
            )
        with self._changed:
            self._book.pace.ended(lease.worker, result.samples, now - lease.granted)
            if self._trust is not None:
                self._trust.believed([lease.worker])
            self._progress.count(accepted, arrays, base, result.own)
            self._changed.notify_all()
        return accepted.number

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
            leases = [held.lease for held in self._book.leases.values() if held.lease.worker == worker]
        for lease in leases:
            self._end(lease, "failed", reason, counts=counts)

    def _tend(self) -> None:
        """Ends the leases that have expired, and does what a full disk has kept from being done."""
        now = self._now()
        with self._changed:
            workers = {token: held.lease.worker for token, held in self._book.leases.items()}
            late = any(held.deadline < now for held in self._book.leases.values())
        try:
            expired = self._ledger.expire(now=now) if late else []
        except sqlite3.OperationalError as error:
            self._desk.unable(error)
            return
        with self._changed:
            for token in expired:
                self._book.let_go(token)
            self._progress.go_on()
            self._changed.notify_all()
        for token in expired:
            self._desk.told(
                "expired", workers.get(token, ""), f"lease {token[:8]}: no sign of life, or too slow"
            )

    # ---- leases ---------------------------------------------------------------------------------------------------------

    def _active(self, token: str) -> Lease:
        """A lease that has not ended; who comes with one that has is on record, once.

        Raises:
            NotActive: it has ended, or never was.
        """
        try:
            return self._ledger.lease(token)
        except LeaseEnded as error:
            with self._changed:
                self._book.let_go(token)
                new = token not in self._late
                self._late.add(token)
            if new:
                self._desk.testify("late", error.worker, str(error))
            raise

    def _refuse(self, lease: Lease, reason: str) -> NoReturn:
        self._desk.testify("refused", lease.worker, f"unit {lease.unit.number}: {reason}")
        self._end(lease, "refused", reason, counts=True)
        raise RefusedUpdate(reason)

    def _end(
        self, lease: Lease, outcome: Literal["refused", "failed", "returned"], reason: str, *, counts: bool
    ) -> None:
        try:
            with self._desk.writing():
                self._ledger.end(lease.token, outcome, now=self._now(), reason=reason[:500], counts=counts)
        except NotActive:
            return
        if outcome != "refused":
            self._desk.told(outcome, lease.worker, f"unit {lease.unit.number}: {reason[:500]}")
        with self._changed:
            self._book.let_go(lease.token)
            self._progress.go_on()
            self._changed.notify_all()
