"""The leases of a pool as rows of the table ``leases``, read from the ledger while the pool works or afterwards."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from muster.engine.records import TableWriter, read_table

_LEASES: Final = (
    "SELECT l.token, l.unit, l.worker, l.attempt, l.base_version, l.granted, l.deadline, l.ended, l.outcome, l.reason, "
    "l.model, a.number, a.samples, a.detail "
    "FROM leases AS l LEFT JOIN accepted AS a USING (token) WHERE l.ended IS NOT NULL ORDER BY l.granted, l.token"
)


def ended_leases(folder: Path, epoch_unix_s: float) -> Iterator[dict[str, Any]]:
    """A row for each lease that has ended, in the order in which they were granted.

    ``idle`` is the time that the worker had waited for the lease, from its start or from the end of its lease before. What
    a lease that brought a result took at its worker goes to ``io`` and ``compute`` as the worker said, and the rest, in which
    model and update travelled and were merged, to ``comm``. Of one that brought none nobody can say: its time is ``lost``.

    Arguments:
        folder: of the pool.
        epoch_unix_s: zero of the run-wide clock.
    """
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as connection:
        rows = connection.execute(_LEASES).fetchall()
        facts = connection.execute("SELECT name, value FROM facts WHERE name LIKE 'worker/%'").fetchall()
    free = {name.removeprefix("worker/"): json.loads(told).get("since") for name, told in facts}
    for (
        token,
        unit,
        worker,
        attempt,
        base,
        granted,
        deadline,
        ended,
        outcome,
        reason,
        model,
        *accepted,
    ) in rows:
        since = free.get(worker)
        start = granted if since is None else min(since, granted)
        free[worker] = max(ended, since or ended)
        yield {
            # a token is a secret while it lasts, and no name afterwards either
            "lease": hashlib.blake2b(token.encode(), digest_size=6).hexdigest(),
            "unit": unit,
            "worker": worker,
            "attempt": attempt,
            "base_version": base,
            "start": start - epoch_unix_s,
            "granted": granted - epoch_unix_s,
            "deadline": deadline - epoch_unix_s,
            "ended": ended - epoch_unix_s,
            "outcome": outcome,
            "reason": reason,
            "wall": ended - start,
            "idle": granted - start,
            "bytes_in": json.loads(model)["size"] if model else 0,
        } | _of_result(ended - granted, *accepted)


def _of_result(held_s: float, number: int | None, samples: int | None, detail: str | None) -> dict[str, Any]:
    """The columns that depend on whether there was one."""
    if detail is None:
        nothing = {"io": 0.0, "compute": 0.0, "comm": 0.0, "lost": held_s}
        return nothing | {"samples": 0, "bytes_out": 0, "number": None}
    told = json.loads(detail)
    seconds = told["seconds"]
    # The worker's clock is another than the coordinator's: what it says is cut to the time that there was.
    io = min(max(0.0, float(seconds.get("io", 0.0))), held_s)
    compute = min(max(0.0, float(seconds.get("compute", 0.0))), held_s - io)
    return {
        "io": io,
        "compute": compute,
        "comm": held_s - io - compute,
        "lost": 0.0,
        "samples": samples,
        "bytes_out": json.loads(told["update"])["size"],
        "number": number,
    }


class LeaseWriter:
    """Brings the table of a run up to the ledger, again and again; after a kill it goes on where the table ends.

    Arguments:
        tables: of the run.
        folder: of the pool.
        epoch_unix_s: zero of the run-wide clock.
    """

    def __init__(self, tables: Path, folder: Path, epoch_unix_s: float) -> None:
        self._folder, self._epoch = folder, epoch_unix_s
        self._written = set(read_table(tables, "leases").column("lease").to_pylist())
        self._writer = TableWriter(tables, "leases", "pool")

    def write(self) -> None:
        """Adds the leases that have ended since."""
        if not (self._folder / "ledger.sqlite").is_file():
            return
        for row in ended_leases(self._folder, self._epoch):
            if row["lease"] not in self._written:
                self._writer.append(**row)
                self._written.add(row["lease"])
        self._writer.flush()

    def close(self) -> None:
        """Writes the last ones, and ends."""
        self.write()
        self._writer.close()
