"""The log of what was not as it should be: each entry is chained to the one before by its hash."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from muster.engine.pool.facts import note

LAST: Final = "evidence"  # name of the fact that says how the log ends


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


def testify(connection: sqlite3.Connection, kind: str, worker: str, detail: str, now: float) -> Evidence:
    """Puts an entry into the log, and on record that it is the last one."""
    row = connection.execute("SELECT number, hash FROM evidence ORDER BY number DESC LIMIT 1").fetchone()
    number, before = row or (0, "")
    entry = Evidence(number + 1, now, kind, worker, detail, "")
    entry = replace(entry, hash=_chained(before, entry))
    connection.execute(
        "INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?)",
        (entry.number, now, kind, worker, detail, entry.hash),
    )
    note(connection, LAST, [entry.number, entry.hash])
    return entry


def read(connection: sqlite3.Connection) -> list[Evidence]:
    """The log, whether or not it is what was written."""
    rows = connection.execute("SELECT * FROM evidence ORDER BY number").fetchall()
    return [Evidence(*row) for row in rows]


def _chained(before: str, entry: Evidence) -> str:
    told = json.dumps([before, entry.number, entry.time, entry.kind, entry.worker, entry.detail])
    return hashlib.blake2b(told.encode(), digest_size=20).hexdigest()
