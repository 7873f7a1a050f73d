"""The one vocabulary of records: the tables of a run folder, how rows are written and read.

Rows are JSON lines while a run is going, one file per writer, and Parquet when it is closed.
docs/run-folder.md documents the columns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

_KINDS: Final = {"i": pa.int64(), "f": pa.float64(), "s": pa.string()}


def _schema(columns: str) -> pa.Schema:
    """A schema from ``name:kind`` words."""
    return pa.schema(
        [(name, _KINDS[kind]) for name, _, kind in (word.partition(":") for word in columns.split())]
    )


SCHEMAS: Final[dict[str, pa.Schema]] = {
    "steps": _schema(
        "attempt:i rank:i world_size:i step:i start:f wall:f io:f compute:f comm:f idle:f comm_hidden:f stall:f "
        "samples:i flops:f loss:f learning_rate:f"
    ),
    "collectives": _schema(
        "attempt:i rank:i step:i kind:s group:s bucket:i bytes:i wire_bytes:i ready:f enter:f last_enter:f end:f"
    ),
    "spans": _schema("attempt:i rank:i step:i lane:s name:s start:f end:f"),
    "leases": _schema(
        "lease:s unit:i worker:s attempt:i base_version:i number:i start:f granted:f deadline:f ended:f outcome:s reason:s "
        "wall:f io:f compute:f comm:f idle:f lost:f samples:i bytes_in:i bytes_out:i"
    ),
    "metrics": _schema("attempt:i step:i time:f name:s value:f split:s item:s"),
    "events": _schema("attempt:i time:f kind:s who:s detail:s"),
}


class TableWriter:
    """Appends rows of one table to one JSON-lines file; buffered, flushed at most once a second.

    Arguments:
        folder: the run folder's ``tables``.
        table: a key of `SCHEMAS`.
        who: names the writer, and so the file.
        flush_every_s: rows older than this are on their way to the disk.
    """

    def __init__(self, folder: Path, table: str, who: str, flush_every_s: float = 1.0) -> None:
        self._columns = frozenset(SCHEMAS[table].names)
        path = folder / table / f"{who}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._flush_every_s = flush_every_s
        self._flushed = time.monotonic()

    def append(self, **row: Any) -> None:
        """Adds one row; missing columns are null.

        Raises:
            KeyError: a column that the table does not have.
        """
        if not row.keys() <= self._columns:
            raise KeyError(f"no such column: {sorted(row.keys() - self._columns)}")
        self._file.write(json.dumps(row) + "\n")
        if time.monotonic() - self._flushed > self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """Cuts a line that a kill left half written, so that the next row does not join it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_table(folder: Path, table: str) -> pa.Table:
    """All rows of a table, of a closed or a running run.

    Arguments:
        folder: the run folder's ``tables``.
        table: a key of `SCHEMAS`.
    """
    schema = SCHEMAS[table]
    parts = [pa.Table.from_pylist(list(_read_lines(folder / table)), schema=schema)]
    closed = folder / f"{table}.parquet"
    if closed.exists():
        parts.insert(0, _with_all_columns(pq.read_table(closed), schema))
    return pa.concat_tables(parts)


def _with_all_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` with the columns of ``schema``; one that did not exist when they were written is null."""
    columns = [
        rows.column(field.name) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def _read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:  # torn by a kill: the last line of a writer that is no more
                continue
            if isinstance(row, dict):
                yield row


def close_tables(folder: Path) -> None:
    """Turns the JSON lines of every table into Parquet; a kill in between loses and doubles nothing.

    The Parquet file is complete on disk under another name before it takes its place; the lines it holds
    are moved into a folder that readers ignore before they are removed.
    """
    for table in SCHEMAS:
        lines = folder / table
        if not any(lines.glob("*.jsonl")):
            continue
        rows = read_table(folder, table)
        draft = folder / f".{table}.parquet.tmp"
        pq.write_table(rows, draft, compression="zstd")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        spent = folder / f".{table}.spent"
        _remove_folder(spent)
        lines.rename(spent)
        draft.rename(folder / f"{table}.parquet")
        _remove_folder(spent)


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def recover_tables(folder: Path) -> None:
    """Finishes or undoes a `close_tables` that a kill cut short; call it before writing again."""
    for table in SCHEMAS:
        spent, draft = folder / f".{table}.spent", folder / f".{table}.parquet.tmp"
        if spent.exists():
            if draft.exists():  # the rename pair was cut in the middle: the draft is complete
                draft.rename(folder / f"{table}.parquet")
            _remove_folder(spent)
        draft.unlink(missing_ok=True)


def surviving(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the lineage that survives: for each (rank, step) that of the last attempt that reached it.

    A step done again after a restart replaces the earlier one on *every* rank, also when the restart had fewer ranks.

    Arguments:
        rows: rows of `steps`, `collectives` or `spans`.
    """
    rows = list(rows)
    last: dict[int, int] = {}
    for row in rows:
        last[row["step"]] = max(last.get(row["step"], 0), row["attempt"])
    return [row for row in rows if row["attempt"] == last[row["step"]]]
