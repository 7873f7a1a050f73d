"""The coordinator's memory: work units, leases and accepted results, on the disk before anybody is told of them.

A *unit* is a piece of work. A *lease* gives it to a worker for a time, by a token; a result is accepted while its token is
active, and that revokes every other lease of the unit. So each unit's result is accepted at most once, and after a
kill of the coordinator the ledger says which were. Times are seconds on the run-wide clock and are given by the caller:
the ledger has no clock of its own.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from muster.engine.pool.group_commit import GroupCommit
from muster.engine.pool.trust import Wanted
from muster.errors import DataError

FORMAT: Final = 1

Outcome = Literal[
    "accepted", "expired", "returned", "revoked", "refused", "failed", "claimed", "confirmed", "lied"
]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (
    unit INTEGER PRIMARY KEY,
    work TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 0,
    samples INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS units_by_state ON units (state, active, unit);
CREATE TABLE IF NOT EXISTS leases (
    token TEXT PRIMARY KEY,
    unit INTEGER NOT NULL REFERENCES units,
    worker TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    base_version INTEGER NOT NULL,
    model TEXT NOT NULL,
    granted REAL NOT NULL,
    deadline REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS active_leases ON leases (deadline) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS leases_by_unit ON leases (unit) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS accepted (
    number INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE REFERENCES leases,
    unit INTEGER NOT NULL UNIQUE REFERENCES units,
    worker TEXT NOT NULL,
    content TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    time REAL NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS evidence (
    number INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    worker TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS checks (
    unit INTEGER PRIMARY KEY REFERENCES units,
    wanted INTEGER NOT NULL,
    trusted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (
    token TEXT PRIMARY KEY REFERENCES leases,
    unit INTEGER NOT NULL REFERENCES units,
    worker TEXT NOT NULL,
    content TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    time REAL NOT NULL,
    detail TEXT NOT NULL,
    verdict TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_by_unit ON claims (unit);
CREATE TABLE IF NOT EXISTS retracted (
    number INTEGER PRIMARY KEY REFERENCES accepted,
    after INTEGER NOT NULL,
    event INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS again (unit INTEGER PRIMARY KEY REFERENCES units, place INTEGER NOT NULL);
"""


#: Units that want more results than they have and are under way, for a worker that has none of them.
_WANTING: Final = """
SELECT u.unit, u.work, u.samples, u.attempts FROM checks AS c JOIN units AS u USING (unit)
WHERE u.state = 'waiting' AND (c.trusted = 0 OR ?2)
  AND u.active + (SELECT COUNT(*) FROM claims WHERE unit = u.unit AND verdict IS NULL) < c.wanted
  AND NOT EXISTS (
    SELECT 1 FROM leases WHERE unit = u.unit AND worker = ?1 AND (outcome IS NULL OR outcome = 'claimed')
  )
ORDER BY u.unit LIMIT 1
"""

CAUGHT: Final = "caught/"  # begins the names of the facts of workers that have lied
_LAST_EVIDENCE: Final = "evidence"


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Arguments:
        number: its name, from 0.
        work: what a worker needs to know, as JSON values.
        samples: how much it is.
    """

    number: int
    work: Mapping[str, Any]
    samples: int = 1


@dataclass(frozen=True)
class Lease:
    """A unit in a worker's hands.

    Arguments:
        token: proves it; nobody can guess it.
        unit: the work.
        worker: its name.
        attempt: of the unit, from 1.
        base_version: of the model that the worker begins from.
        granted, deadline: seconds on the run-wide clock.
        model: names that model, as whoever granted the lease wants to know it again.
        checked: whether its result is compared with others before it counts.
    """

    token: str
    unit: Unit
    worker: str
    attempt: int
    base_version: int
    granted: float
    deadline: float
    model: str = ""
    checked: bool = False


@dataclass(frozen=True)
class Accepted:
    """A result that counts.

    Arguments:
        number: in the order of acceptance, from 1.
        token, unit, worker: of the lease.
        content: name of the update in the blob store.
        base_version: of the model it began from.
        samples: that it was made of.
        time: of acceptance, seconds on the run-wide clock.
        detail: what else belongs to it, as JSON values.
    """

    number: int
    token: str
    unit: int
    worker: str
    content: str
    base_version: int
    samples: int
    time: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A result that is compared with others before one of them counts.

    Arguments:
        token, unit, worker, base_version: of the lease.
        content, samples, time, detail: as in `Accepted`.
        verdict: ``believed``, ``confirmed``, ``lie``, ``dropped``; None while there is none.
        model: of the lease.
    """

    token: str
    unit: int
    worker: str
    content: str
    base_version: int
    samples: int
    time: float
    detail: Mapping[str, Any]
    verdict: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Retraction:
    """Accepted results that count no longer, because their worker was caught lying.

    Arguments:
        after: number of the last result that had been accepted by then.
        numbers: of the results.
    """

    after: int
    numbers: frozenset[int]


@dataclass(frozen=True)
class Evidence:
    """One entry of the log of what was not as it should be.

    Arguments:
        number: from 1.
        time: seconds on the run-wide clock.
        kind: such as ``refused``.
        worker: who did it.
        detail: what, in words.
        hash: BLAKE2b of the entry before and of this one: no entry can be altered or taken out unnoticed.
    """

    number: int
    time: float
    kind: str
    worker: str
    detail: str
    hash: str


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker has done.

    Arguments:
        worker: its name.
        active: leases in its hands.
        accepted, expired, refused, failed, returned, revoked: how its other leases ended.
        samples: of accepted results.
        seconds: that an accepted lease took on average; None if there is none.
        staleness: accepted results of others between a lease's model and its result, on average.
    """

    worker: str
    active: int
    accepted: int
    expired: int
    refused: int
    failed: int
    returned: int
    revoked: int
    samples: int
    seconds: float | None
    staleness: float | None


@dataclass(frozen=True)
class Standing:
    """How far the work is.

    Arguments:
        open: whether any unit waits or is leased.
        accepted: number of the last accepted result; 0 if there is none.
        following: the number that no unit has yet.
    """

    open: bool
    accepted: int
    following: int


class NotActive(DataError):
    """A lease's token is unknown, or was revoked; says by what."""


class LeaseEnded(NotActive):
    """A lease's token was revoked; says by what.

    Arguments:
        message: for a person.
        worker: who had the lease.
    """

    def __init__(self, message: str, worker: str) -> None:
        self.worker = worker
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseEnded, (str(self), self.worker)


class Ledger:
    """Units, leases and accepted results in one SQLite database.

    Methods that change something return once it is on the disk; those whose names end in ``_soon`` return a future
    of that, so that one thread can have many under way.

    Arguments:
        path: of the database; made if it is not there.
        attempts: leases of a unit that may end without a result before it is set aside.
        most_together: changes that may share a sync; 1 for one each.
        durable: whether changes are on the disk when they are answered; a ledger that is thrown away need not be.

    Raises:
        DataError: the file is no ledger of this format.
    """

    def __init__(
        self, path: Path, *, attempts: int = 5, most_together: int = 512, durable: bool = True
    ) -> None:
        self._attempts = attempts
        try:
            self._commits = GroupCommit(path, _SCHEMA, most=most_together, durable=durable)
            known = self._commits.call(_check_format)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no ledger ({error}); name another file, or remove it") from None
        if known != FORMAT:
            self._commits.close()
            raise DataError(f"{path} has format {known}; this version reads {FORMAT}")

    def close(self) -> None:
        """Ends; what was submitted is on the disk."""
        self._commits.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- work ---------------------------------------------------------------------------------------------------------

    def add(self, units: Sequence[Unit]) -> int:
        """Adds units that are not there yet; returns how many were new. One that is there stays as it is."""

        def add(connection: sqlite3.Connection) -> int:
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO units (unit, work, samples) VALUES (?, ?, ?)",
                [(unit.number, json.dumps(unit.work), unit.samples) for unit in units],
            )
            return connection.total_changes - before

        return self._commits.call(add)

    def grant(
        self,
        worker: str,
        *,
        now: float,
        deadline: float,
        base_version: int,
        model: str = "",
        copies: int = 0,
        copied: Sequence[int] | None = None,
        check: Callable[[int], Wanted] | None = None,
        trusted: bool = False,
    ) -> Lease | None:
        """Gives the first waiting unit to a worker.

        Arguments:
            worker: its name.
            now, deadline: seconds on the run-wide clock.
            base_version, model: of the model it is given.
            copies: where nothing waits, a unit that is leased already may be given to so many workers more; never twice to
                the same.
            copied: only these units may be; None for any.
            check: what it takes to believe a unit that is leased for the first time. Units that want more results than they
                have come first, with the model that the unit's other results are made from; never twice to the same worker.
            trusted: whether the worker's word decides.

        Returns:
            None where there is nothing to do.
        """
        return self.grant_soon(
            worker,
            now=now,
            deadline=deadline,
            base_version=base_version,
            model=model,
            copies=copies,
            copied=copied,
            check=check,
            trusted=trusted,
        ).result()

    def grant_soon(
        self,
        worker: str,
        *,
        now: float,
        deadline: float,
        base_version: int,
        model: str = "",
        copies: int = 0,
        copied: Sequence[int] | None = None,
        check: Callable[[int], Wanted] | None = None,
        trusted: bool = False,
    ) -> Future[Lease | None]:
        """As `grant`."""
        token = secrets.token_hex(16)

        def grant(connection: sqlite3.Connection) -> Lease | None:
            row, checked = None, False
            if check is not None:
                row = connection.execute(_WANTING, (worker, trusted)).fetchone()
                checked = row is not None
            if row is None:
                row = connection.execute(
                    "SELECT unit, work, samples, attempts FROM units WHERE state = 'waiting' AND active = 0 "
                    "AND unit NOT IN (SELECT unit FROM checks) ORDER BY unit LIMIT 1"
                ).fetchone()
                if row is not None and check is not None:
                    checked = _checked(connection, row[0], check(row[0]))
            if row is None and copies > 0:
                row = connection.execute(
                    "SELECT unit, work, samples, attempts FROM units AS u WHERE state = 'waiting' "
                    "AND active BETWEEN 1 AND ? AND NOT EXISTS (SELECT 1 FROM leases WHERE unit = u.unit AND worker = ? "
                    "AND (outcome IS NULL OR outcome = 'claimed')) "
                    "AND (?3 IS NULL OR unit IN (SELECT value FROM json_each(?3))) ORDER BY active, unit LIMIT 1",
                    (copies, worker, None if copied is None else json.dumps(list(copied))),
                ).fetchone()
                checked = row is not None and _is_checked(connection, row[0])
            if row is None:
                return None
            number, work, samples, attempts = row
            unit = Unit(number, json.loads(work), samples)
            version, handed = base_version, model
            if checked:
                version, handed = _base(connection, number) or (base_version, model)
                # Leases beside this one are no failed attempts, and nobody is told whether it is the first.
                (attempts,) = connection.execute(
                    "SELECT attempts - active FROM units WHERE unit = ?", (number,)
                ).fetchone()
            connection.execute(
                "UPDATE units SET attempts = attempts + 1, active = active + 1 WHERE unit = ?", (number,)
            )
            connection.execute(
                "INSERT INTO leases (token, unit, worker, attempt, base_version, granted, deadline, model) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (token, number, worker, attempts + 1, version, now, deadline, handed),
            )
            return Lease(token, unit, worker, attempts + 1, version, now, deadline, handed, checked)

        return self._commits.submit(grant)

    def lease(self, token: str) -> Lease:
        """A lease that has not ended.

        Raises:
            NotActive: it has.
        """

        def read(connection: sqlite3.Connection) -> Lease:
            _active(connection, token)
            return _leases(connection, "l.token = ?", token)[0]

        return self._commits.read(read)

    def extend(self, token: str, *, deadline: float) -> None:
        """A sign of life: moves a lease's deadline.

        Raises:
            NotActive: the lease has ended.
        """

        def extend(connection: sqlite3.Connection) -> None:
            _active(connection, token)
            connection.execute("UPDATE leases SET deadline = ? WHERE token = ?", (deadline, token))

        self._commits.call(extend)

    def extend_all(self, *, deadline: float) -> None:
        """Gives every lease at least so long, as after a time in which nobody could hear its worker."""
        self._commits.call(
            lambda connection: connection.execute(
                "UPDATE leases SET deadline = MAX(deadline, ?) WHERE outcome IS NULL", (deadline,)
            )
        )

    # ---- results ------------------------------------------------------------------------------------------------------

    def accept(
        self,
        token: str,
        *,
        content: str,
        samples: int,
        now: float,
        detail: Mapping[str, Any] | None = None,
        rest: tuple[Mapping[str, Any], int] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Accepted:
        """Takes a result; every other lease of its unit is revoked.

        Arguments:
            token: of the lease.
            content: name of the update in the blob store, where it must be already.
            samples: that it was made of.
            now: seconds on the run-wide clock.
            detail: what else belongs to it, as JSON values.
            rest: of a result that is only a part: the work that is left and its samples, which becomes a unit of its own.
            notes: facts that go on record with it.

        Raises:
            NotActive: the lease has ended: too late, or another result was first.
        """
        return self.accept_soon(
            token, content=content, samples=samples, now=now, detail=detail, rest=rest, notes=notes
        ).result()

    def accept_soon(
        self,
        token: str,
        *,
        content: str,
        samples: int,
        now: float,
        detail: Mapping[str, Any] | None = None,
        rest: tuple[Mapping[str, Any], int] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Future[Accepted]:
        """As `accept`."""

        def accept(connection: sqlite3.Connection) -> Accepted:
            unit, worker, base_version = _active(connection, token)
            claim = Claim(token, unit, worker, content, base_version, samples, now, dict(detail or {}))
            return _accept(connection, claim, now, rest=rest, notes=notes)

        return self._commits.submit(accept)

    def claim(
        self, token: str, *, content: str, samples: int, now: float, detail: Mapping[str, Any] | None = None
    ) -> Claim:
        """Takes a result that does not count before it was compared with others; its lease ends.

        Arguments:
            token, content, samples, now, detail: as in `accept`.

        Raises:
            NotActive: the lease has ended.
        """

        def claim(connection: sqlite3.Connection) -> Claim:
            unit, worker, base_version = _active(connection, token)
            made = Claim(token, unit, worker, content, base_version, samples, now, dict(detail or {}))
            _end(connection, token, "claimed", now, "")
            connection.execute(
                "UPDATE units SET active = active - 1, attempts = attempts - 1 WHERE unit = ?", (unit,)
            )
            connection.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (token, unit, worker, content, base_version, samples, now, json.dumps(made.detail)),
            )
            return made

        return self._commits.call(claim)

    def want(self, unit: int, wanted: Wanted) -> None:
        """Asks for more results of a unit that is checked."""
        self._commits.call(
            lambda connection: connection.execute(
                "UPDATE checks SET wanted = ?, trusted = ? WHERE unit = ?",
                (wanted.results, wanted.trusted, unit),
            )
        )

    def settle(
        self,
        believed: Claim,
        *,
        now: float,
        detail: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        lies: Mapping[str, str] | None = None,
        anew_from: int = 0,
    ) -> tuple[Accepted, Retraction | None]:
        """Accepts one of a unit's claims, and retracts what was believed on the word of those who lied, all or nothing.

        Arguments:
            believed: the claim that counts.
            now: seconds on the run-wide clock.
            detail: what belongs to the accepted result beside the claim's own.
            notes: facts that go on record with it.
            lies: by the token of a claim of this unit, why it is one.
            anew_from: retracted work of units from this one on is to be done again, under new numbers.

        Returns:
            The accepted result, and what was retracted, if anything was.
        """

        def settle(connection: sqlite3.Connection) -> tuple[Accepted, Retraction | None]:
            accepted = _accept(
                connection, replace(believed, detail={**believed.detail, **(detail or {})}), now, notes=notes
            )
            liars: dict[str, str] = {}
            for claim in _claims(connection, "unit = ? AND verdict IS NULL", believed.unit):
                verdict = "confirmed"
                if claim.token == believed.token:
                    verdict = "believed"
                elif claim.token in (lies or {}):
                    verdict = "lie"
                    told = f"unit {claim.unit}: {(lies or {})[claim.token]}; it sent {claim.content}"
                    liars.setdefault(claim.worker, told)
                    _testify(connection, "lie", claim.worker, told, now)
                connection.execute("UPDATE claims SET verdict = ? WHERE token = ?", (verdict, claim.token))
                if verdict != "believed":
                    _end(connection, claim.token, "lied" if verdict == "lie" else "confirmed", now, "")
            connection.execute("DELETE FROM checks WHERE unit = ?", (believed.unit,))
            numbers: list[int] = []
            for worker, told in liars.items():
                numbers += self._disown(connection, worker, told, now, anew_from)
            if not numbers:
                return accepted, None
            connection.executemany(
                "INSERT INTO retracted SELECT ?, ?, COALESCE(MAX(event), 0) + ? FROM retracted",
                [(number, accepted.number, place == 0) for place, number in enumerate(sorted(numbers))],
            )
            return accepted, Retraction(accepted.number, frozenset(numbers))

        return self._commits.call(settle)

    def _disown(
        self, connection: sqlite3.Connection, worker: str, told: str, now: float, anew_from: int
    ) -> list[int]:
        """A worker was caught: ends its leases, drops its claims, and has its unconfirmed work done again."""
        _note(connection, f"{CAUGHT}{worker}", told)
        leases = connection.execute(
            "SELECT token, unit FROM leases WHERE worker = ? AND outcome IS NULL", (worker,)
        ).fetchall()
        for token, unit in leases:
            _end(connection, token, "revoked", now, "its worker was caught lying")
            self._release(connection, unit, counts=False)
        for claim in _claims(connection, "worker = ? AND verdict IS NULL", worker):
            connection.execute("UPDATE claims SET verdict = 'dropped' WHERE token = ?", (claim.token,))
            # A dispute that it caused must not wait for one worker more than there may be.
            connection.execute("UPDATE checks SET wanted = MAX(2, wanted - 1) WHERE unit = ?", (claim.unit,))
            _end(connection, claim.token, "revoked", now, "its worker was caught lying")
        alone = [
            each
            for each in _accepted(
                connection, "worker = ? AND number NOT IN (SELECT number FROM retracted)", worker
            )
            if len(each.detail.get("agreed", ())) < 2
        ]
        for each in alone:
            if each.unit < anew_from:
                continue
            connection.execute(
                "INSERT INTO again SELECT MAX(u.unit) + 1, ? FROM units AS u",
                (each.detail.get("place", each.unit),),
            )
            connection.execute(
                "INSERT INTO units (unit, work, samples) SELECT (SELECT MAX(unit) FROM again), work, "
                "CASE WHEN json_extract(work, '$.begin') IS NULL THEN samples ELSE ? END FROM units WHERE unit = ?",
                (each.samples, each.unit),
            )
            if "own" in each.detail:  # its keeper begins anew, if nobody has brought something since
                connection.execute(
                    "DELETE FROM facts WHERE name = ? AND value = ?",
                    (each.detail["keeper"], json.dumps(each.detail["own"])),
                )
        if alone:
            redone = sum(each.unit >= anew_from for each in alone)
            _testify(
                connection,
                "retracted",
                worker,
                f"{len(alone)} results that nobody had confirmed, of which {redone} are done again: "
                f"{_listed([each.number for each in alone])}",
                now,
            )
        return [each.number for each in alone]

    def end(self, token: str, outcome: Outcome, *, now: float, reason: str = "", counts: bool = True) -> bool:
        """Ends a lease without a result: given back, refused, failed.

        Arguments:
            token: of the lease.
            outcome: how it ended.
            now: seconds on the run-wide clock.
            reason: in words.
            counts: whether it counts as an attempt of the unit; what a worker gives back because its machine goes does not.

        Returns:
            Whether its unit has been set aside for want of attempts.

        Raises:
            NotActive: it has ended before.
        """

        def end(connection: sqlite3.Connection) -> bool:
            unit, _, _ = _active(connection, token)
            _end(connection, token, outcome, now, reason)
            return self._release(connection, unit, counts=counts)

        return self._commits.call(end)

    def expire(self, *, now: float) -> list[str]:
        """Ends all leases whose deadline has passed; returns their tokens."""

        def expire(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                "SELECT token, unit FROM leases WHERE outcome IS NULL AND deadline < ? ORDER BY deadline",
                (now,),
            ).fetchall()
            for token, unit in rows:
                _end(connection, token, "expired", now, "no sign of life before its deadline")
                self._release(connection, unit, counts=True)
            return [token for token, _ in rows]

        return self._commits.call(expire)

    def _release(self, connection: sqlite3.Connection, unit: int, *, counts: bool) -> bool:
        """One lease of a unit less; True if that was its last attempt."""
        connection.execute(
            "UPDATE units SET active = active - 1, attempts = attempts - ? WHERE unit = ?",
            (0 if counts else 1, unit),
        )
        set_aside = connection.execute(
            "UPDATE units SET state = 'aside' WHERE unit = ? AND state = 'waiting' AND active = 0 AND attempts >= ?",
            (unit, self._attempts),
        )
        return set_aside.rowcount > 0

    # ---- what is on record --------------------------------------------------------------------------------------------

    def accepted(self, after: int = 0) -> list[Accepted]:
        """Accepted results in order, those after a number."""

        return self._commits.read(lambda connection: _accepted(connection, "number > ?", after))

    def accepted_by(self, token: str) -> Accepted | None:
        """The accepted result of a lease."""
        found = self._commits.read(lambda connection: _accepted(connection, "token = ?", token))
        return found[0] if found else None

    def active(self) -> list[Lease]:
        """Leases that have not ended, the first to expire first."""

        return self._commits.read(lambda connection: _leases(connection, "l.outcome IS NULL"))

    def counts(self) -> dict[str, int]:
        """Units that wait, are leased, done, or set aside."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            rows = connection.execute(
                "SELECT CASE WHEN state = 'waiting' AND active > 0 THEN 'leased' ELSE state END, COUNT(*) "
                "FROM units GROUP BY 1"
            ).fetchall()
            return {"waiting": 0, "leased": 0, "done": 0, "aside": 0} | dict(rows)

        return self._commits.read(read)

    def standing(self) -> Standing:
        """How far the work is."""

        def read(connection: sqlite3.Connection) -> Standing:
            (is_open,) = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM units WHERE state = 'waiting')"
            ).fetchone()
            (last,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM accepted").fetchone()
            (following,) = connection.execute("SELECT COALESCE(MAX(unit) + 1, 0) FROM units").fetchone()
            return Standing(bool(is_open), last, following)

        return self._commits.read(read)

    def workers(self) -> list[WorkerRecord]:
        """What each worker has done, by name."""

        def read(connection: sqlite3.Connection) -> list[WorkerRecord]:
            rows = connection.execute(
                "SELECT l.worker, SUM(outcome IS NULL), SUM(outcome IS 'accepted'), SUM(outcome IS 'expired'), "
                "SUM(outcome IS 'refused'), SUM(outcome IS 'failed'), SUM(outcome IS 'returned'), "
                "SUM(outcome IS 'revoked'), COALESCE(SUM(a.samples), 0), "
                "AVG(CASE WHEN outcome IS 'accepted' THEN ended - granted END), "
                "AVG(a.number - 1 - a.base_version) "
                "FROM leases AS l LEFT JOIN accepted AS a USING (token) GROUP BY l.worker ORDER BY l.worker"
            ).fetchall()
            return [WorkerRecord(*row) for row in rows]

        return self._commits.read(read)

    def set_aside(self) -> list[Unit]:
        """Units whose attempts were used up."""

        def read(connection: sqlite3.Connection) -> list[Unit]:
            rows = connection.execute(
                "SELECT unit, work, samples FROM units WHERE state = 'aside' ORDER BY unit"
            ).fetchall()
            return [Unit(unit, json.loads(work), samples) for unit, work, samples in rows]

        return self._commits.read(read)

    def testify(self, kind: str, worker: str, detail: str, *, now: float) -> Evidence:
        """Puts what was not as it should be on record, chained to what was before."""

        return self._commits.call(lambda connection: _testify(connection, kind, worker, detail, now))

    def evidence(self) -> list[Evidence]:
        """The log.

        Raises:
            DataError: an entry has been altered or taken out; names it.
        """

        def read(connection: sqlite3.Connection) -> list[Evidence]:
            rows = connection.execute("SELECT * FROM evidence ORDER BY number").fetchall()
            return [Evidence(*row) for row in rows]

        entries = self._commits.read(read)
        broken = first_broken(entries, last=self.noted(_LAST_EVIDENCE))
        if broken is not None:
            raise DataError(f"the evidence log has been altered at or before its entry {broken}")
        return entries

    def claims(self, unit: int | None = None) -> list[Claim]:
        """Results that were compared or are to be, of one unit or of all, in the order in which they came."""
        return self._commits.read(lambda connection: _claims(connection, "?1 IS NULL OR unit = ?1", unit))

    def claimed(self, token: str) -> Claim | None:
        """The claim of a lease."""
        found = self._commits.read(lambda connection: _claims(connection, "token = ?", token))
        return found[0] if found else None

    def checks(self) -> dict[int, Wanted]:
        """What it takes to believe each unit that is being checked."""

        def read(connection: sqlite3.Connection) -> dict[int, Wanted]:
            rows = connection.execute("SELECT unit, wanted, trusted FROM checks").fetchall()
            return {unit: Wanted(results, bool(trusted)) for unit, results, trusted in rows}

        return self._commits.read(read)

    def retractions(self) -> list[Retraction]:
        """What was retracted, in order."""

        def read(connection: sqlite3.Connection) -> list[Retraction]:
            found: dict[int, tuple[int, set[int]]] = {}
            for number, after, event in connection.execute(
                "SELECT number, after, event FROM retracted ORDER BY event, number"
            ):
                found.setdefault(event, (after, set()))[1].add(number)
            return [Retraction(after, frozenset(numbers)) for after, numbers in found.values()]

        return self._commits.read(read)

    def note(self, name: str, value: Any) -> None:
        """Puts a fact on record, in place of an earlier one of that name."""
        self._commits.call(lambda connection: _note(connection, name, value))

    def noted_below(self, prefix: str) -> dict[str, Any]:
        """Facts whose names begin so."""

        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            rows = connection.execute(
                "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
            return {name: json.loads(value) for name, value in rows}

        return self._commits.read(read)

    def noted(self, name: str, default: Any = None) -> Any:
        """A fact."""

        def read(connection: sqlite3.Connection) -> Any:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return default if row is None else json.loads(row[0])

        return self._commits.read(read)


def _note(connection: sqlite3.Connection, name: str, value: Any) -> None:
    connection.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, json.dumps(value)),
    )


def first_broken(entries: Sequence[Evidence], *, last: tuple[int, str] | None = None) -> int | None:
    """The number of the first entry of an evidence log that is not what was written; None if there is none.

    Whoever may write the file may write a new chain. `last` says what the log must at least contain: number and hash of an
    entry that was noted before, by the ledger itself or by somebody who trusts no file.
    """
    before = ""
    for position, entry in enumerate(entries, 1):
        if entry.number != position or entry.hash != _chained(before, entry):
            return position
        if last is not None and last[0] == position and last[1] != entry.hash:
            return position
        before = entry.hash
    return len(entries) + 1 if last is not None and last[0] > len(entries) else None


def _testify(connection: sqlite3.Connection, kind: str, worker: str, detail: str, now: float) -> Evidence:
    row = connection.execute("SELECT number, hash FROM evidence ORDER BY number DESC LIMIT 1").fetchone()
    number, before = row or (0, "")
    entry = Evidence(number + 1, now, kind, worker, detail, "")
    entry = replace(entry, hash=_chained(before, entry))
    connection.execute(
        "INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?)",
        (entry.number, now, kind, worker, detail, entry.hash),
    )
    _note(connection, _LAST_EVIDENCE, [entry.number, entry.hash])
    return entry


def _listed(numbers: Sequence[int]) -> str:
    """The first numbers of some, in words."""
    return ", ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "")


def _chained(before: str, entry: Evidence) -> str:
    told = json.dumps([before, entry.number, entry.time, entry.kind, entry.worker, entry.detail])
    return hashlib.blake2b(told.encode(), digest_size=20).hexdigest()


def _accept(
    connection: sqlite3.Connection,
    claim: Claim,
    now: float,
    *,
    rest: tuple[Mapping[str, Any], int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Accepted:
    """A result counts; all other leases of its unit are revoked."""
    unit, worker, told = claim.unit, claim.worker, dict(claim.detail)
    place = connection.execute("SELECT place FROM again WHERE unit = ?", (unit,)).fetchone()
    if place is not None:
        told["place"] = place[0]
    _end(connection, claim.token, "accepted", now, "")
    others = connection.execute(
        "SELECT token FROM leases WHERE unit = ? AND outcome IS NULL", (unit,)
    ).fetchall()
    for (other,) in others:
        _end(connection, other, "revoked", now, f"the result of {worker} was first")
    connection.execute("UPDATE units SET state = 'done', active = 0 WHERE unit = ?", (unit,))
    cursor = connection.execute(
        "INSERT INTO accepted (token, unit, worker, content, base_version, samples, time, detail) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            claim.token,
            unit,
            worker,
            claim.content,
            claim.base_version,
            claim.samples,
            now,
            json.dumps(told),
        ),
    )
    number = cursor.lastrowid
    assert number is not None
    if rest is not None:
        connection.execute(
            "INSERT INTO units (unit, work, samples) SELECT MAX(unit) + 1, ?, ? FROM units",
            (json.dumps(dict(rest[0])), rest[1]),
        )
    for name, value in (notes or {}).items():
        _note(connection, name, value)
    return Accepted(
        number, claim.token, unit, worker, claim.content, claim.base_version, claim.samples, now, told
    )


def _checked(connection: sqlite3.Connection, unit: int, wanted: Wanted) -> bool:
    """Puts on record what it takes to believe a unit; whether that is more than one word."""
    if wanted.results > 1:
        connection.execute("INSERT INTO checks VALUES (?, ?, ?)", (unit, wanted.results, wanted.trusted))
    return wanted.results > 1


def _is_checked(connection: sqlite3.Connection, unit: int) -> bool:
    return connection.execute("SELECT 1 FROM checks WHERE unit = ?", (unit,)).fetchone() is not None


def _base(connection: sqlite3.Connection, unit: int) -> tuple[int, str] | None:
    """The model that a unit's results are made from, if any is there or under way."""
    found: tuple[int, str] | None = connection.execute(
        "SELECT base_version, model FROM leases WHERE unit = ? AND (outcome IS NULL OR outcome = 'claimed') "
        "ORDER BY granted LIMIT 1",
        (unit,),
    ).fetchone()
    return found


def _claims(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Claim]:
    rows = connection.execute(
        "SELECT token, unit, worker, content, base_version, samples, time, detail, verdict, "
        "(SELECT model FROM leases WHERE token = claims.token) FROM claims "
        f"WHERE {condition} ORDER BY time, token",
        values,
    ).fetchall()
    return [
        Claim(token, unit, worker, content, base_version, samples, time, json.loads(detail), verdict, model)
        for token, unit, worker, content, base_version, samples, time, detail, verdict, model in rows
    ]


def _accepted(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Accepted]:
    rows = connection.execute(
        "SELECT number, token, unit, worker, content, base_version, samples, time, detail FROM accepted "
        f"WHERE {condition} ORDER BY number",
        values,
    ).fetchall()
    return [
        Accepted(number, token, unit, worker, content, base_version, samples, time, json.loads(detail))
        for number, token, unit, worker, content, base_version, samples, time, detail in rows
    ]


def _leases(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Lease]:
    rows = connection.execute(
        "SELECT l.token, u.unit, u.work, u.samples, l.worker, l.attempt, l.base_version, l.granted, l.deadline, "
        "l.model, l.unit IN (SELECT unit FROM checks) AS checked FROM leases AS l JOIN units AS u USING (unit) "
        f"WHERE {condition} ORDER BY l.deadline",
        values,
    ).fetchall()
    return [
        Lease(token, Unit(unit, json.loads(work), samples), *rest)
        for token, unit, work, samples, *rest in rows
    ]


def _check_format(connection: sqlite3.Connection) -> int:
    connection.execute("INSERT OR IGNORE INTO facts VALUES ('format', ?)", (json.dumps(FORMAT),))
    return int(json.loads(connection.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()[0]))


def _active(connection: sqlite3.Connection, token: str) -> tuple[int, str, int]:
    """Unit, worker and base version of a lease that has not ended."""
    row = connection.execute(
        "SELECT unit, worker, base_version, outcome, reason FROM leases WHERE token = ?", (token,)
    ).fetchone()
    if row is None:
        raise NotActive("no lease has this token")
    unit, worker, base_version, outcome, reason = row
    if outcome is not None:
        raise LeaseEnded(
            f"the lease of unit {unit} to {worker} has ended: {outcome}{reason and ', '}{reason}", worker
        )
    return unit, worker, base_version


def _end(connection: sqlite3.Connection, token: str, outcome: Outcome, now: float, reason: str) -> None:
    connection.execute(
        "UPDATE leases SET ended = ?, outcome = ?, reason = ? WHERE token = ?", (now, outcome, reason, token)
    )
