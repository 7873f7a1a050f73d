"""The coordinator's memory: work units, leases and accepted results, on the disk before anybody is told of them.

A *unit* is a piece of work. A *lease* gives it to a worker for a time, by a token; a result is accepted while its token is
active, and that revokes every other lease of the unit. So each unit's result is accepted at most once, and after a
kill of the coordinator the ledger says which were. Times are seconds on the run-wide clock and are given by the caller:
the ledger has no clock of its own.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from muster.engine.pool.group_commit import GroupCommit
from muster.errors import DataError

FORMAT: Final = 1

Outcome = Literal["accepted", "expired", "returned", "revoked", "refused", "failed"]

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
"""


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
    """

    token: str
    unit: Unit
    worker: str
    attempt: int
    base_version: int
    granted: float
    deadline: float


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


class NotActive(DataError):
    """A lease's token is unknown, or was revoked; says by what."""


class Ledger:
    """Units, leases and accepted results in one SQLite database.

    Methods that change something return once it is on the disk; those whose names end in ``_soon`` return a future
    of that, so that one thread can have many under way.

    Arguments:
        path: of the database; made if it is not there.
        attempts: leases of a unit that may end without a result before it is set aside.
        most_together: changes that may share a sync; 1 for one each.

    Raises:
        DataError: the file is no ledger of this format.
    """

    def __init__(self, path: Path, *, attempts: int = 5, most_together: int = 512) -> None:
        self._attempts = attempts
        try:
            self._commits = GroupCommit(path, _SCHEMA, most=most_together)
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
        self, worker: str, *, now: float, deadline: float, base_version: int, copies: int = 0
    ) -> Lease | None:
        """Gives the first waiting unit to a worker.

        Arguments:
            worker: its name.
            now, deadline: seconds on the run-wide clock.
            base_version: of the model it is given.
            copies: where nothing waits, a unit that is leased already may be given to so many workers more; never twice to
                the same.

        Returns:
            None where there is nothing to do.
        """
        return self.grant_soon(
            worker, now=now, deadline=deadline, base_version=base_version, copies=copies
        ).result()

    def grant_soon(
        self, worker: str, *, now: float, deadline: float, base_version: int, copies: int = 0
    ) -> Future[Lease | None]:
        """As `grant`."""
        token = secrets.token_hex(16)

        def grant(connection: sqlite3.Connection) -> Lease | None:
            row = connection.execute(
                "SELECT unit, work, samples, attempts FROM units WHERE state = 'waiting' AND active = 0 "
                "ORDER BY unit LIMIT 1"
            ).fetchone()
            if row is None and copies > 0:
                row = connection.execute(
                    "SELECT unit, work, samples, attempts FROM units AS u WHERE state = 'waiting' AND active <= ? "
                    "AND NOT EXISTS (SELECT 1 FROM leases WHERE unit = u.unit AND outcome IS NULL AND worker = ?) "
                    "ORDER BY active, unit LIMIT 1",
                    (copies, worker),
                ).fetchone()
            if row is None:
                return None
            number, work, samples, attempts = row
            connection.execute(
                "UPDATE units SET attempts = attempts + 1, active = active + 1 WHERE unit = ?", (number,)
            )
            connection.execute(
                "INSERT INTO leases (token, unit, worker, attempt, base_version, granted, deadline) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (token, number, worker, attempts + 1, base_version, now, deadline),
            )
            unit = Unit(number, json.loads(work), samples)
            return Lease(token, unit, worker, attempts + 1, base_version, now, deadline)

        return self._commits.submit(grant)

    def extend(self, token: str, *, deadline: float) -> None:
        """A sign of life: moves a lease's deadline.

        Raises:
            NotActive: the lease has ended.
        """

        def extend(connection: sqlite3.Connection) -> None:
            _active(connection, token)
            connection.execute("UPDATE leases SET deadline = ? WHERE token = ?", (deadline, token))

        self._commits.call(extend)

    # ---- results ------------------------------------------------------------------------------------------------------

    def accept(
        self, token: str, *, content: str, samples: int, now: float, detail: Mapping[str, Any] | None = None
    ) -> Accepted:
        """Takes a result; every other lease of its unit is revoked.

        Arguments:
            token: of the lease.
            content: name of the update in the blob store, where it must be already.
            samples: that it was made of.
            now: seconds on the run-wide clock.
            detail: what else belongs to it, as JSON values.

        Raises:
            NotActive: the lease has ended: too late, or another result was first.
        """
        return self.accept_soon(token, content=content, samples=samples, now=now, detail=detail).result()

    def accept_soon(
        self, token: str, *, content: str, samples: int, now: float, detail: Mapping[str, Any] | None = None
    ) -> Future[Accepted]:
        """As `accept`."""

        def accept(connection: sqlite3.Connection) -> Accepted:
            unit, worker, base_version = _active(connection, token)
            _end(connection, token, "accepted", now, "")
            others = connection.execute(
                "SELECT token FROM leases WHERE unit = ? AND outcome IS NULL", (unit,)
            ).fetchall()
            for (other,) in others:
                _end(connection, other, "revoked", now, f"the result of {worker} was first")
            connection.execute("UPDATE units SET state = 'done', active = 0 WHERE unit = ?", (unit,))
            told = dict(detail or {})
            cursor = connection.execute(
                "INSERT INTO accepted (token, unit, worker, content, base_version, samples, time, detail) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (token, unit, worker, content, base_version, samples, now, json.dumps(told)),
            )
            number = cursor.lastrowid
            assert number is not None
            return Accepted(number, token, unit, worker, content, base_version, samples, now, told)

        return self._commits.submit(accept)

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

        def read(connection: sqlite3.Connection) -> list[Accepted]:
            rows = connection.execute(
                "SELECT number, token, unit, worker, content, base_version, samples, time, detail FROM accepted "
                "WHERE number > ? ORDER BY number",
                (after,),
            ).fetchall()
            return [
                Accepted(
                    number, token, unit, worker, content, base_version, samples, time, json.loads(detail)
                )
                for number, token, unit, worker, content, base_version, samples, time, detail in rows
            ]

        return self._commits.call(read)

    def active(self) -> list[Lease]:
        """Leases that have not ended, the first to expire first."""

        def read(connection: sqlite3.Connection) -> list[Lease]:
            rows = connection.execute(
                "SELECT l.token, u.unit, u.work, u.samples, l.worker, l.attempt, l.base_version, l.granted, l.deadline "
                "FROM leases AS l JOIN units AS u USING (unit) WHERE l.outcome IS NULL ORDER BY l.deadline"
            ).fetchall()
            return [
                Lease(token, Unit(unit, json.loads(work), samples), *rest)
                for token, unit, work, samples, *rest in rows
            ]

        return self._commits.call(read)

    def counts(self) -> dict[str, int]:
        """Units that wait, are leased, done, or set aside."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            rows = connection.execute(
                "SELECT CASE WHEN state = 'waiting' AND active > 0 THEN 'leased' ELSE state END, COUNT(*) "
                "FROM units GROUP BY 1"
            ).fetchall()
            return {"waiting": 0, "leased": 0, "done": 0, "aside": 0} | dict(rows)

        return self._commits.call(read)

    def set_aside(self) -> list[Unit]:
        """Units whose attempts were used up."""

        def read(connection: sqlite3.Connection) -> list[Unit]:
            rows = connection.execute(
                "SELECT unit, work, samples FROM units WHERE state = 'aside' ORDER BY unit"
            ).fetchall()
            return [Unit(unit, json.loads(work), samples) for unit, work, samples in rows]

        return self._commits.call(read)

    def note(self, name: str, value: Any) -> None:
        """Puts a fact on record, in place of an earlier one of that name."""
        self._commits.call(
            lambda connection: connection.execute(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, json.dumps(value)),
            )
        )

    def noted(self, name: str, default: Any = None) -> Any:
        """A fact."""

        def read(connection: sqlite3.Connection) -> Any:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return default if row is None else json.loads(row[0])

        return self._commits.call(read)


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
        raise NotActive(f"the lease of unit {unit} to {worker} has ended: {outcome}{reason and ', '}{reason}")
    return unit, worker, base_version


def _end(connection: sqlite3.Connection, token: str, outcome: Outcome, now: float, reason: str) -> None:
    connection.execute(
        "UPDATE leases SET ended = ?, outcome = ?, reason = ? WHERE token = ?", (now, outcome, reason, token)
    )
