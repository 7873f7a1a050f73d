"""Leases within a transaction of the ledger: which there are, and what their end does to their units."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from muster.engine.pool.ledger_entries import Lease, LeaseEnded, NotActive, Outcome, Unit


def leases(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Lease]:
    """Leases ``l`` that a condition in SQL is true of, the first to expire first."""
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


def lease(connection: sqlite3.Connection, token: str) -> Lease:
    """A lease that has not ended.

    Raises:
        NotActive: it has.
    """
    active(connection, token)
    return leases(connection, "l.token = ?", token)[0]


def active(connection: sqlite3.Connection, token: str) -> tuple[int, str, int]:
    """Unit, worker and base version of a lease that has not ended.

    Raises:
        NotActive: it has.
    """
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


def extend(connection: sqlite3.Connection, token: str, deadline: float) -> None:
    """Moves a lease's deadline.

    Raises:
        NotActive: the lease has ended.
    """
    active(connection, token)
    connection.execute("UPDATE leases SET deadline = ? WHERE token = ?", (deadline, token))


def extend_all(connection: sqlite3.Connection, deadline: float) -> None:
    """Gives every lease at least so long."""
    connection.execute("UPDATE leases SET deadline = MAX(deadline, ?) WHERE outcome IS NULL", (deadline,))


def end(connection: sqlite3.Connection, token: str, outcome: Outcome, now: float, reason: str) -> None:
    """A lease has ended; what that is to its unit, `release` says."""
    connection.execute(
        "UPDATE leases SET ended = ?, outcome = ?, reason = ? WHERE token = ?", (now, outcome, reason, token)
    )


def release(connection: sqlite3.Connection, unit: int, *, counts: bool, attempts: int) -> bool:
    """One lease of a unit less; True if that was its last attempt.

    Arguments:
        counts: whether the lease was an attempt.
        attempts: that a unit has.
    """
    connection.execute(
        "UPDATE units SET active = active - 1, attempts = attempts - ? WHERE unit = ?",
        (0 if counts else 1, unit),
    )
    set_aside = connection.execute(
        "UPDATE units SET state = 'aside' WHERE unit = ? AND state = 'waiting' AND active = 0 AND attempts >= ?",
        (unit, attempts),
    )
    return set_aside.rowcount > 0


def give_up(
    connection: sqlite3.Connection,
    token: str,
    outcome: Outcome,
    now: float,
    reason: str,
    *,
    counts: bool,
    attempts: int,
) -> bool:
    """Ends a lease without a result; whether its unit has been set aside for want of attempts.

    Raises:
        NotActive: it has ended before.
    """
    unit, _, _ = active(connection, token)
    end(connection, token, outcome, now, reason)
    return release(connection, unit, counts=counts, attempts=attempts)


def expire(connection: sqlite3.Connection, now: float, attempts: int) -> list[str]:
    """Ends all leases whose deadline has passed; returns their tokens."""
    rows = connection.execute(
        "SELECT token, unit FROM leases WHERE outcome IS NULL AND deadline < ? ORDER BY deadline",
        (now,),
    ).fetchall()
    for token, unit in rows:
        end(connection, token, "expired", now, "no sign of life before its deadline")
        release(connection, unit, counts=True, attempts=attempts)
    return [token for token, _ in rows]
