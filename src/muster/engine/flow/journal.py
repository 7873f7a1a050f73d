"""The journal of a flow: what each task was, what it gave and why it ran, on the disk before its successors start.

A task is found again by its *key*: digests of its code, its arguments and its environment, and the number of identical
calls before it in the program. So identical calls stay apart, and a program that is started again meets each of them in
turn. Only a task that is done is ever found; what failed runs again.

One SQLite database in WAL mode (``journal.sqlite``), ``synchronous=NORMAL``: what `commit` has returned from survives
the death of this process and of all others, since the kernel has it. After a power cut the last transactions may be
missing, those since the log was last synced; the database is whole, and their tasks run again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from muster.engine.flow.code_identity import explain
from muster.engine.flow.database import open_database, spoken
from muster.errors import RefusedInput

FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE sessions (session INTEGER PRIMARY KEY, started_unix_s REAL NOT NULL);
CREATE TABLE code (digest TEXT PRIMARY KEY, parts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    call BLOB NOT NULL,
    code TEXT NOT NULL,
    arguments TEXT NOT NULL,
    environment TEXT NOT NULL,
    occurrence INTEGER NOT NULL,
    task INTEGER NOT NULL,
    function TEXT NOT NULL,
    label TEXT NOT NULL,
    outcome TEXT NOT NULL,
    cache TEXT NOT NULL,
    outputs TEXT NOT NULL,
    worker TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    submitted REAL NOT NULL,
    ready REAL NOT NULL,
    start REAL NOT NULL,
    end REAL NOT NULL,
    io REAL NOT NULL,
    compute REAL NOT NULL,
    comm REAL NOT NULL,
    idle REAL NOT NULL,
    reason TEXT NOT NULL,
    remember_across_runs INTEGER NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions
);
CREATE INDEX done_by_key ON tasks (key) WHERE outcome = 'done';
CREATE INDEX remembered_by_call ON tasks (call) WHERE outcome = 'done' AND remember_across_runs = 1;
"""


@dataclass(frozen=True)
class Key:
    """What a task is found by.

    Arguments:
        code: digest of its function's code (`code_identity`).
        arguments: name and digest of each argument; of input files the digest of their content.
        environment: digest of what else a result depends on, such as declared versions.
        occurrence: number of identical calls before this one in the program.
    """

    code: str
    arguments: tuple[tuple[str, str], ...]
    environment: str = ""
    occurrence: int = 0

    @functools.cached_property
    def call(self) -> bytes:
        """20 bytes, the same for identical calls."""
        words = [self.code, self.environment, *(f"{name}={found}" for name, found in self.arguments)]
        return hashlib.blake2b("\0".join(words).encode(), digest_size=20).digest()

    @functools.cached_property
    def name(self) -> bytes:
        """20 bytes, different for each call of a program."""
        return hashlib.blake2b(self.call + self.occurrence.to_bytes(8, "little"), digest_size=20).digest()


class Occurrences:
    """Numbers identical calls in the order in which they are made; a program's next start numbers them in the same way."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def key(self, code: str, arguments: tuple[tuple[str, str], ...], environment: str = "") -> Key:
        """The key of the next such call."""
        call = Key(code, arguments, environment).call
        occurrence = self._seen.get(call, 0)
        self._seen[call] = occurrence + 1
        return Key(code, arguments, environment, occurrence)


@dataclass(frozen=True, slots=True)
class Output:
    """One value that a task has given: its blob in the result store, the digest of its content, its size in bytes."""

    blob: str
    digest: str
    size: int


@dataclass(frozen=True)
class Entry:
    """What happened to a task. Times are seconds on the run-wide clock.

    Arguments:
        key: what it is found by.
        task: its number in the program.
        function: its qualified name.
        label: as people read it.
        outcome: ``done``; any other is not found again.
        cache: whether it ``ran``, was ``resumed`` from an earlier start of this run, or ``reused`` from an identical call.
        outputs: what it has given.
        worker: that ran it.
        attempt: from 1.
        submitted, ready, start, end: when.
        io, compute, comm, idle: the pillars, in seconds.
        reason: why it ran though there was a result, as ``its blob was damaged``; of a reused one, where that is from.
        remember_across_runs: whether identical calls may take its result, whatever their number, in any run.
        parts: of its code's identity, for `Journal.why`.
        session: which start of the run, from 1; the journal says.
    """

    key: Key
    task: int
    function: str
    label: str = ""
    outcome: str = "done"
    cache: Literal["ran", "resumed", "reused"] = "ran"
    outputs: tuple[Output, ...] = ()
    worker: str = ""
    attempt: int = 1
    submitted: float = 0.0
    ready: float = 0.0
    start: float = 0.0
    end: float = 0.0
    io: float = 0.0
    compute: float = 0.0
    comm: float = 0.0
    idle: float = 0.0
    reason: str = ""
    remember_across_runs: bool = False
    parts: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    session: int = field(default=0, compare=False)


_PLAIN: Final = [
    each.name for each in fields(Entry) if each.name not in ("key", "outputs", "parts", "session")
]
_COLUMNS: Final = ", ".join(["code", "arguments", "environment", "occurrence", "outputs", "session", *_PLAIN])
_INSERT: Final = f"INSERT INTO tasks (key, call, {_COLUMNS}) VALUES ({', '.join('?' * (8 + len(_PLAIN)))})"


class Journal:
    """The journal in a run folder; may be used by several threads.

    Arguments:
        folder: made if it is not there.
        read_only: to look at a run that may be going on; the folder must have a journal then.

    Raises:
        DataError: the file is truncated, damaged, of a newer format, or no journal.
        CannotStore: the disk is full.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._path = folder / "journal.sqlite"
        self._lock = threading.Lock()
        self._parts: dict[
            str, dict[str, str]
        ] = {}  # by digest of the code, of those that are in the database
        self._closed = False
        self._connection = open_database(self._path, "journal", _SCHEMA, FORMAT, read_only=read_only)
        with self._use() as connection:
            found = connection.execute("SELECT COALESCE(MAX(session), 0) FROM sessions").fetchone()[0]
            self.session: int = found if read_only else found + 1
            if not read_only:
                connection.execute("INSERT INTO sessions VALUES (?, ?)", (self.session, time.time()))

    def commit(self, entries: Sequence[Entry]) -> None:
        """Puts entries on record, all or none; they outlive any process once it returns.

        Raises:
            CannotStore: the disk is full, or fails; none of them is on record.
        """
        codes = {
            entry.key.code: dict(entry.parts)
            for entry in entries
            if entry.parts and entry.key.code not in self._parts
        }
        rows = [_row(entry, self.session) for entry in entries]
        with self._use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for digest, parts in codes.items():
                connection.execute("INSERT OR IGNORE INTO code VALUES (?, ?)", (digest, json.dumps(parts)))
            connection.executemany(_INSERT, rows)
            connection.execute("COMMIT")
        self._parts.update(codes)

    def find(self, key: Key) -> Entry | None:
        """The newest entry of a task that is done, by its key; of this start of the run or an earlier one."""
        return self._newest("key = ? AND outcome = 'done'", key.name)

    def find_across_runs(self, key: Key) -> Entry | None:
        """As `find`, of any identical call that was committed to be remembered."""
        return self._newest("call = ? AND outcome = 'done' AND remember_across_runs = 1", key.call)

    def entries(self, session: int | None = None) -> Iterator[Entry]:
        """All entries in the order of their commits, of one start of the run or of all; while others are added, too."""
        last = 0
        while True:
            found = self._select(
                "number > ? AND (?2 IS NULL OR session = ?2) ORDER BY number LIMIT 1000",
                last,
                session,
                number=True,
            )
            for number, entry in found:
                last = number
                yield entry
            if len(found) < 1000:
                return

    def why(self, task: int | str) -> str:
        """Why a task ran, or why it did not have to, in a person's words.

        Arguments:
            task: its number in the program, its label or its function; the last such counts.

        Raises:
            RefusedInput: there is no such task.
        """
        if isinstance(task, str) and task.isdecimal():
            task = int(task)
        column = "task = ?" if isinstance(task, int) else "(label = ?1 OR function = ?1)"
        found = self._select(f"{column} ORDER BY number DESC LIMIT 1", task, number=True)
        if not found:
            raise RefusedInput(
                f"no task {task} in {self._path.parent}; give its number, its label or its function"
            )
        number, entry = found[0]
        if entry.cache == "resumed":
            before = self._newest(
                "key = ? AND outcome = 'done' AND session < ?", entry.key.name, entry.session
            )
            return "resumed" if before is None else f"resumed: done in start {before.session} of this run"
        if entry.cache == "reused":
            before = self._newest(
                "call = ? AND outcome = 'done' AND remember_across_runs = 1 AND number < ?",
                entry.key.call,
                number,
            )
            source = entry.reason or (
                f"{_called(before)}, start {before.session}" if before else "an identical call"
            )
            return f"reused from {source}"
        if entry.reason:
            return f"ran again: {entry.reason}"
        return self._why_again(entry)

    def close(self) -> None:
        """Ends; what was committed is on record."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _why_again(self, entry: Entry) -> str:
        """What of an earlier start did not fit: its outcome, its code, its environment, or its arguments."""
        key, session = entry.key, entry.session
        if (before := self._newest("key = ? AND session < ?", key.name, session)) is not None:
            if before.outcome == "done":
                return "ran again: its stored result was missing or damaged"
            return f"ran again: it was {before.outcome} before"
        arguments = json.dumps(key.arguments)
        before = self._newest(
            "function = ? AND arguments = ? AND occurrence = ? AND session < ?",
            entry.function,
            arguments,
            key.occurrence,
            session,
        ) or self._newest("function = ? AND task = ? AND session < ?", entry.function, entry.task, session)
        if before is None:
            return "ran: no earlier result"
        changes = []
        if before.key.code != key.code:
            changes += explain(before.parts, entry.parts) or ["its code changed"]
        if before.key.environment != key.environment:
            changes.append("the environment changed")
        earlier, now = dict(before.key.arguments), dict(key.arguments)
        changes += [f"argument {name} changed" for name in now if earlier.get(name) != now[name]]
        changes += [f"argument {name} is not given any more" for name in earlier if name not in now]
        return f"ran again: {'; '.join(changes) or 'it is called more often than before'}"

    def _newest(self, condition: str, *values: Any) -> Entry | None:
        found = self._select(f"{condition} ORDER BY number DESC LIMIT 1", *values)
        return found[0] if found else None

    def _select(self, condition: str, *values: Any, number: bool = False) -> list[Any]:
        with self._use() as connection:
            rows = connection.execute(
                f"SELECT number, {_COLUMNS} FROM tasks WHERE {condition}", values
            ).fetchall()
            for code in {row[1] for row in rows} - self._parts.keys():
                told = connection.execute("SELECT parts FROM code WHERE digest = ?", (code,)).fetchone()
                if told is not None:
                    self._parts[code] = json.loads(told[0])
            found = [_entry(row[1:], self._parts.get(row[1], {})) for row in rows]
        return [(row[0], entry) for row, entry in zip(rows, found, strict=True)] if number else found

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock, spoken(self._path, "journal"):
            if self._closed:
                raise RuntimeError("the journal is closed")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _row(entry: Entry, session: int) -> tuple[Any, ...]:
    key = entry.key
    outputs = json.dumps([(each.blob, each.digest, each.size) for each in entry.outputs])
    known = (
        key.name,
        key.call,
        key.code,
        json.dumps(key.arguments),
        key.environment,
        key.occurrence,
        outputs,
        session,
    )
    return known + tuple([getattr(entry, name) for name in _PLAIN])


def _entry(row: Sequence[Any], parts: Mapping[str, str]) -> Entry:
    code, arguments, environment, occurrence, outputs, session, *plain = row
    key = Key(code, tuple((name, found) for name, found in json.loads(arguments)), environment, occurrence)
    given = tuple(Output(*each) for each in json.loads(outputs))
    told = dict(zip(_PLAIN, plain, strict=True))
    told["remember_across_runs"] = bool(told["remember_across_runs"])
    return Entry(key=key, outputs=given, parts=parts, session=session, **told)


def _called(entry: Entry) -> str:
    return f"task {entry.task} {entry.label or entry.function}"
