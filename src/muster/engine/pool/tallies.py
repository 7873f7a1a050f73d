"""How far a ledger's work is, and what each worker has done of it, within a transaction."""

from __future__ import annotations

import json
import sqlite3

from muster.engine.pool.ledger_entries import Standing, Unit, WorkerRecord


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Units that wait, are leased, done, or set aside."""
    rows = connection.execute(
        "SELECT CASE WHEN state = 'waiting' AND active > 0 THEN 'leased' ELSE state END, COUNT(*) "
        "FROM units GROUP BY 1"
    ).fetchall()
    return {"waiting": 0, "leased": 0, "done": 0, "aside": 0} | dict(rows)


def standing(connection: sqlite3.Connection) -> Standing:
    """How far the work is."""
    (is_open,) = connection.execute("SELECT EXISTS (SELECT 1 FROM units WHERE state = 'waiting')").fetchone()
    (last,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM accepted").fetchone()
    (following,) = connection.execute("SELECT COALESCE(MAX(unit) + 1, 0) FROM units").fetchone()
    return Standing(bool(is_open), last, following)


def workers(connection: sqlite3.Connection) -> list[WorkerRecord]:
    """What each worker has done, by name."""
    rows = connection.execute(
        "SELECT l.worker, SUM(outcome IS NULL), SUM(outcome IS 'accepted'), SUM(outcome IS 'expired'), "
        "SUM(outcome IS 'refused'), SUM(outcome IS 'failed'), SUM(outcome IS 'returned'), "
        "SUM(outcome IS 'revoked'), COALESCE(SUM(a.samples), 0), "
        "AVG(CASE WHEN outcome IS 'accepted' THEN ended - granted END), "
        "AVG(a.number - 1 - a.base_version) "
        "FROM leases AS l LEFT JOIN accepted AS a USING (token) GROUP BY l.worker ORDER BY l.worker"
    ).fetchall()
    return [WorkerRecord(*row) for row in rows]


def set_aside(connection: sqlite3.Connection) -> list[Unit]:
    """Units whose attempts were used up."""
    rows = connection.execute(
        "SELECT unit, work, samples FROM units WHERE state = 'aside' ORDER BY unit"
    ).fetchall()
    return [Unit(unit, json.loads(work), samples) for unit, work, samples in rows]
