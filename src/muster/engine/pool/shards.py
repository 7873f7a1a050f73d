"""One model that several merging servers share: in blocks of parameters, each of which is merged and written by itself.

A merge is a read, a computation and a write. Written only where nobody else has written since the read (compare and swap),
and done again otherwise, no update is lost. Written whatever has happened meanwhile, as in a store that is eventually
consistent, it takes back what others have merged since. Nothing is done twice then, and how much is lost is counted.
Atre, Jha and Rao had that choice, between Redis and MySQL ("Distributed deep learning using volunteer computing-like
paradigm", PAISE 2021).

A block has its own state of the rule, so the rule must treat each array by itself and merge each update as it arrives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from muster.engine.pool.fold import Fold
from muster.engine.pool.updates import Arrays, State, Update, flattened, pack, parted, unpack
from muster.errors import DataError, RefusedInput

Consistency = Literal["strong", "eventual"]

_BUSY_MS: Final = 60_000
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    block INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,   -- writes
    holds INTEGER NOT NULL,     -- updates that the content is made of
    lost INTEGER NOT NULL,      -- updates that were merged once and that the content does not have any more
    conflicts INTEGER NOT NULL, -- writes that came too late and were done again
    content BLOB NOT NULL
)
"""


@dataclass(frozen=True)
class Counts:
    """What has happened to a block.

    Arguments:
        merged: updates that a server was told of as merged.
        holds: of them, those that the block is made of.
        lost: the others: somebody has overwritten them.
        conflicts: merges that had to be done again, since somebody else was first.
    """

    merged: int
    holds: int
    lost: int
    conflicts: int


@dataclass(frozen=True)
class _Read:
    """A block as it was at one moment."""

    version: int
    holds: int
    model: Arrays
    state: State


class SharedModel:
    """A model in a store that servers in many processes of one machine open, each for itself.

    Arguments:
        path: of the store, an SQLite file.

    Raises:
        DataError: there is none; make one with `create`.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no shared model is there; make one first")
        self._store = _connected(path)
        rows = self._store.execute("SELECT block, content FROM blocks ORDER BY block").fetchall()
        self._names = {block: tuple(parted(unpack(content), "weights")[""]) for block, content in rows}

    @classmethod
    def create(cls, path: Path, model: Arrays, fold: Fold, *, blocks: int) -> SharedModel:
        """Stores a first model.

        Arguments:
            path: where nothing is yet.
            model: its arrays are dealt to the blocks so that all have about as many bytes.
            fold: whose state begins with it.
            blocks: how many; at most as many as there are arrays.

        Raises:
            RefusedInput: the rule merges rounds, there are fewer arrays than blocks, or something is at ``path``.
        """
        _refuse_rounds(fold)
        if not 1 <= blocks <= len(model):
            raise RefusedInput(f"blocks: found {blocks}; expected 1 to {len(model)}, the number of arrays")
        if path.exists():
            raise RefusedInput(f"{path}: something is there already; open it, or take another name")
        store = _connected(path)
        with store, _writing(store):
            store.execute(_TABLES)
            for block, names in enumerate(dealt(model, blocks)):
                part = {name: model[name] for name in names}
                store.execute(
                    "INSERT INTO blocks VALUES (?, 0, 0, 0, 0, ?)", (block, _packed(part, fold.begin(part)))
                )
        store.close()
        return cls(path)

    def __enter__(self) -> SharedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes this server's connection; the store stays."""
        self._store.close()

    def merge(self, update: Update, fold: Fold, consistency: Consistency = "strong") -> None:
        """Merges an update into every block; others may do the same meanwhile.

        Arguments:
            update: of the whole model.
            fold: the rule, the same in all servers.
            consistency: ``strong`` loses no update; ``eventual`` overwrites what others have merged since the read.

        Raises:
            RefusedInput: the rule merges rounds.
        """
        _refuse_rounds(fold)
        for block, names in self._names.items():
            part = replace(
                update,
                arrays={name: update.arrays[name] for name in names},
                base={name: update.base[name] for name in names},
            )
            while True:
                read = self._read(block)
                merged, state = fold.merge(read.model, [part], read.state)
                if self._wrote(block, read, _packed(merged, state), consistency):
                    break

    def model(self) -> dict[str, Any]:
        """All blocks together; while others merge, each as of its own moment."""
        found: dict[str, Any] = {}
        for block in self._names:
            found.update(self._read(block).model)
        return found

    def state(self, block: int) -> State:
        """What the rule remembers of a block."""
        return self._read(block).state

    def counts(self) -> list[Counts]:
        """Of each block."""
        rows = self._store.execute("SELECT version, holds, lost, conflicts FROM blocks ORDER BY block")
        return [Counts(*row) for row in rows]

    def _read(self, block: int) -> _Read:
        version, holds, content = self._store.execute(
            "SELECT version, holds, content FROM blocks WHERE block = ?", (block,)
        ).fetchone()
        arrays = unpack(content)
        return _Read(version, holds, parted(arrays, "weights")[""], parted(arrays, "state"))

    def _wrote(self, block: int, read: _Read, content: bytes, consistency: Consistency) -> bool:
        """Writes what a read block has become; False if somebody else was first and that counts."""
        with _writing(self._store):
            if consistency == "strong":
                done = self._store.execute(
                    "UPDATE blocks SET version = version + 1, holds = holds + 1, content = ? "
                    "WHERE block = ? AND version = ?",
                    (content, block, read.version),
                ).rowcount
                if not done:
                    self._store.execute(
                        "UPDATE blocks SET conflicts = conflicts + 1 WHERE block = ?", (block,)
                    )
                return bool(done)
            # What others have written since the read is gone; what they have lost and this read still had is back.
            self._store.execute(
                "UPDATE blocks SET version = version + 1, lost = lost + holds - ?, holds = ? + 1, content = ? "
                "WHERE block = ?",
                (read.holds, read.holds, content, block),
            )
            return True


def dealt(model: Arrays, blocks: int) -> list[list[str]]:
    """The names of a model's arrays in so many blocks of about equal bytes: the largest first, each to the lightest block.

    Source: Graham, "Bounds on multiprocessing timing anomalies" (SIAM Journal on Applied Mathematics, 1969).
    """
    names: list[list[str]] = [[] for _ in range(blocks)]
    sizes = [0] * blocks
    for name in sorted(model, key=lambda name: (-model[name].nbytes, name)):
        lightest = min(range(blocks), key=lambda block: (sizes[block], len(names[block]), block))
        names[lightest].append(name)
        sizes[lightest] += model[name].nbytes
    return names


def merge_all(path: Path, updates: Iterable[Update], fold: Fold, consistency: Consistency) -> int:
    """What a server does: opens the store, merges its updates one after the other; returns how many."""
    count = 0
    with SharedModel(path) as shared:
        for update in updates:
            shared.merge(update, fold, consistency)
            count += 1
    return count


def _packed(model: Arrays, state: State) -> bytes:
    return pack(flattened(weights={"": model}, state=state))


def _connected(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, isolation_level=None)
    store.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = NORMAL")
    return store


@contextmanager
def _writing(store: sqlite3.Connection) -> Iterator[None]:
    """A transaction that nobody else's is in the middle of."""
    store.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        store.execute("ROLLBACK")
        raise
    store.execute("COMMIT")


def _refuse_rounds(fold: Fold) -> None:
    if fold.arrival != "each":
        raise RefusedInput(
            "shared model: the rule merges rounds; expected one that merges each update as it arrives"
        )
