"""Results that count, within a transaction of the ledger; the first of a unit ends all its other leases."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from muster.engine.pool.facts import note
from muster.engine.pool.leases import active, end
from muster.engine.pool.ledger_entries import Accepted, Claim


def accepted(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Accepted]:
    """Accepted results that a condition in SQL is true of, in order."""
    rows = connection.execute(
        "SELECT number, token, unit, worker, content, base_version, samples, time, detail FROM accepted "
        f"WHERE {condition} ORDER BY number",
        values,
    ).fetchall()
    return [
        Accepted(number, token, unit, worker, content, base_version, samples, time, json.loads(detail))
        for number, token, unit, worker, content, base_version, samples, time, detail in rows
    ]


def take(
    connection: sqlite3.Connection,
    token: str,
    content: str,
    samples: int,
    now: float,
    detail: Mapping[str, Any],
    *,
    rest: tuple[Mapping[str, Any], int] | None,
    notes: Mapping[str, Any] | None,
) -> Accepted:
    """Takes the result of a lease on its worker's word.

    Raises:
        NotActive: the lease has ended: too late, or another result was first.
    """
    unit, worker, base_version = active(connection, token)
    claim = Claim(token, unit, worker, content, base_version, samples, now, dict(detail))
    return accept(connection, claim, now, rest=rest, notes=notes)


def accept(
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
    end(connection, claim.token, "accepted", now, "")
    others = connection.execute(
        "SELECT token FROM leases WHERE unit = ? AND outcome IS NULL", (unit,)
    ).fetchall()
    for (other,) in others:
        end(connection, other, "revoked", now, f"the result of {worker} was first")
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
        note(connection, name, value)
    return Accepted(
        number, claim.token, unit, worker, claim.content, claim.base_version, claim.samples, now, told
    )
