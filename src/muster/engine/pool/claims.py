"""Units that are checked, within a transaction of the ledger: claims, their verdicts, and what a liar was believed.

A checked unit has no result before several workers' claims were compared. Who is to be believed is decided elsewhere
(`muster.engine.pool.trust`); here it is put on record, and what had been accepted on the word of a liar is retracted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from muster.engine.pool.acceptance import accept, accepted
from muster.engine.pool.evidence import testify
from muster.engine.pool.facts import note
from muster.engine.pool.leases import active, end, release
from muster.engine.pool.ledger_entries import Accepted, Claim, Retraction
from muster.engine.pool.trust import Wanted

CAUGHT: Final = "caught/"  # begins the names of the facts of workers that have lied


def put_to_check(connection: sqlite3.Connection, unit: int, wanted: Wanted) -> bool:
    """Puts on record what it takes to believe a unit; whether that is more than one word."""
    if wanted.results > 1:
        connection.execute("INSERT INTO checks VALUES (?, ?, ?)", (unit, wanted.results, wanted.trusted))
    return wanted.results > 1


def is_checked(connection: sqlite3.Connection, unit: int) -> bool:
    """Whether a unit's results are compared before one counts."""
    return connection.execute("SELECT 1 FROM checks WHERE unit = ?", (unit,)).fetchone() is not None


def base(connection: sqlite3.Connection, unit: int) -> tuple[int, str] | None:
    """The model that a unit's results are made from, if any is there or under way."""
    found: tuple[int, str] | None = connection.execute(
        "SELECT base_version, model FROM leases WHERE unit = ? AND (outcome IS NULL OR outcome = 'claimed') "
        "ORDER BY granted LIMIT 1",
        (unit,),
    ).fetchone()
    return found


def want(connection: sqlite3.Connection, unit: int, wanted: Wanted) -> None:
    """Asks for more results of a unit that is checked."""
    connection.execute(
        "UPDATE checks SET wanted = ?, trusted = ? WHERE unit = ?",
        (wanted.results, wanted.trusted, unit),
    )


def checks(connection: sqlite3.Connection) -> dict[int, Wanted]:
    """What it takes to believe each unit that is being checked."""
    rows = connection.execute("SELECT unit, wanted, trusted FROM checks").fetchall()
    return {unit: Wanted(results, bool(trusted)) for unit, results, trusted in rows}


def claims(connection: sqlite3.Connection, condition: str, *values: Any) -> list[Claim]:
    """Claims that a condition in SQL is true of, in the order in which they came."""
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


def claim(
    connection: sqlite3.Connection,
    token: str,
    content: str,
    samples: int,
    now: float,
    detail: Mapping[str, Any],
) -> Claim:
    """Takes a result that does not count before it was compared with others; its lease ends.

    Raises:
        NotActive: the lease has ended.
    """
    unit, worker, base_version = active(connection, token)
    made = Claim(token, unit, worker, content, base_version, samples, now, dict(detail))
    end(connection, token, "claimed", now, "")
    connection.execute(
        "UPDATE units SET active = active - 1, attempts = attempts - 1 WHERE unit = ?", (unit,)
    )
    connection.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (token, unit, worker, content, base_version, samples, now, json.dumps(made.detail)),
    )
    return made


def settle(
    connection: sqlite3.Connection,
    believed: Claim,
    *,
    now: float,
    detail: Mapping[str, Any],
    notes: Mapping[str, Any] | None,
    lies: Mapping[str, str],
    anew_from: int,
    attempts: int,
) -> tuple[Accepted, Retraction | None]:
    """Accepts one of a unit's claims, and retracts what was believed on the word of those who lied.

    Arguments:
        believed, now, detail, notes, lies, anew_from: as in `Ledger.settle`.
        attempts: that a unit has.
    """
    result = accept(connection, replace(believed, detail={**believed.detail, **detail}), now, notes=notes)
    liars: dict[str, str] = {}
    for each in claims(connection, "unit = ? AND verdict IS NULL", believed.unit):
        verdict = "confirmed"
        if each.token == believed.token:
            verdict = "believed"
        elif each.token in lies:
            verdict = "lie"
            told = f"unit {each.unit}: {lies[each.token]}; it sent {each.content}"
            liars.setdefault(each.worker, told)
            testify(connection, "lie", each.worker, told, now)
        connection.execute("UPDATE claims SET verdict = ? WHERE token = ?", (verdict, each.token))
        if verdict != "believed":
            end(connection, each.token, "lied" if verdict == "lie" else "confirmed", now, "")
    connection.execute("DELETE FROM checks WHERE unit = ?", (believed.unit,))
    numbers: list[int] = []
    for worker, told in liars.items():
        numbers += _disown(connection, worker, told, now, anew_from, attempts)
    if not numbers:
        return result, None
    connection.executemany(
        "INSERT INTO retracted SELECT ?, ?, COALESCE(MAX(event), 0) + ? FROM retracted",
        [(number, result.number, place == 0) for place, number in enumerate(sorted(numbers))],
    )
    return result, Retraction(result.number, frozenset(numbers))


def _disown(
    connection: sqlite3.Connection, worker: str, told: str, now: float, anew_from: int, attempts: int
) -> list[int]:
    """A worker was caught: ends its leases, drops its claims, and has its unconfirmed work done again."""
    note(connection, f"{CAUGHT}{worker}", told)
    leases = connection.execute(
        "SELECT token, unit FROM leases WHERE worker = ? AND outcome IS NULL", (worker,)
    ).fetchall()
    for token, unit in leases:
        end(connection, token, "revoked", now, "its worker was caught lying")
        release(connection, unit, counts=False, attempts=attempts)
    for dropped in claims(connection, "worker = ? AND verdict IS NULL", worker):
        connection.execute("UPDATE claims SET verdict = 'dropped' WHERE token = ?", (dropped.token,))
        # A dispute that it caused must not wait for one worker more than there may be.
        connection.execute("UPDATE checks SET wanted = MAX(2, wanted - 1) WHERE unit = ?", (dropped.unit,))
        end(connection, dropped.token, "revoked", now, "its worker was caught lying")
    alone = [
        each
        for each in accepted(
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
        testify(
            connection,
            "retracted",
            worker,
            f"{len(alone)} results that nobody had confirmed, of which {redone} are done again: "
            f"{_listed([each.number for each in alone])}",
            now,
        )
    return [each.number for each in alone]


def retractions(connection: sqlite3.Connection) -> list[Retraction]:
    """What was retracted, in order."""
    found: dict[int, tuple[int, set[int]]] = {}
    for number, after, event in connection.execute(
        "SELECT number, after, event FROM retracted ORDER BY event, number"
    ):
        found.setdefault(event, (after, set()))[1].add(number)
    return [Retraction(after, frozenset(numbers)) for after, numbers in found.values()]


def _listed(numbers: Sequence[int]) -> str:
    """The first numbers of some, in words."""
    return ", ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "")
