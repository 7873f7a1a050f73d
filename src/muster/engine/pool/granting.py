"""Units and who is given which of them next, within a transaction of the ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from muster.engine.pool import claims
from muster.engine.pool.facts import noted
from muster.engine.pool.ledger_entries import Lease, Unit
from muster.engine.pool.trust import Wanted

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


def add(connection: sqlite3.Connection, units: Sequence[Unit]) -> int:
    """Adds units that are not there yet; returns how many were new."""
    before = connection.total_changes
    connection.executemany(
        "INSERT OR IGNORE INTO units (unit, work, samples) VALUES (?, ?, ?)",
        [(unit.number, json.dumps(unit.work), unit.samples) for unit in units],
    )
    return connection.total_changes - before


def grant(
    connection: sqlite3.Connection,
    token: str,
    worker: str,
    *,
    now: float,
    deadline: float,
    base_version: int,
    model: str,
    copies: int,
    copied: Sequence[int] | None,
    check: Callable[[int], Wanted] | None,
    trusted: bool,
) -> Lease | None:
    """Gives the first waiting unit to a worker.

    Arguments:
        token: of the lease.
        worker, now, deadline, base_version, model, copies, copied, check, trusted: as in `Ledger.grant`.

    Returns:
        None where there is nothing to do, or nothing for this worker any more.
    """
    row, checked = None, False
    if check is not None:
        if noted(connection, f"{claims.CAUGHT}{worker}") is not None:
            return None  # it was caught while it asked: what it was given now would be nobody's to take back
        row = connection.execute(_WANTING, (worker, trusted)).fetchone()
        checked = row is not None
    if row is None:
        row = connection.execute(
            "SELECT unit, work, samples, attempts FROM units WHERE state = 'waiting' AND active = 0 "
            "AND unit NOT IN (SELECT unit FROM checks) ORDER BY unit LIMIT 1"
        ).fetchone()
        if row is not None and check is not None:
            checked = claims.put_to_check(connection, row[0], check(row[0]))
    if row is None and copies > 0:
        row = connection.execute(
            "SELECT unit, work, samples, attempts FROM units AS u WHERE state = 'waiting' "
            "AND active BETWEEN 1 AND ? AND NOT EXISTS (SELECT 1 FROM leases WHERE unit = u.unit AND worker = ? "
            "AND (outcome IS NULL OR outcome = 'claimed')) "
            "AND (?3 IS NULL OR unit IN (SELECT value FROM json_each(?3))) ORDER BY active, unit LIMIT 1",
            (copies, worker, None if copied is None else json.dumps(list(copied))),
        ).fetchone()
        checked = row is not None and claims.is_checked(connection, row[0])
    if row is None:
        return None
    number, work, samples, attempts = row
    unit = Unit(number, json.loads(work), samples)
    version, handed = base_version, model
    if checked:
        version, handed = claims.base(connection, number) or (base_version, model)
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
