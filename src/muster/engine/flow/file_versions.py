"""Versions of the files and folders that tasks read and write.

A version is the content of a file or folder, named by its digest; names within a folder count, times, owners and
permissions do not. A task never writes where others read: it gets a private *scratch* path, and what it leaves there is
*kept* as a version, read-only, by a rename. What the user is to see is *published*: a copy beside the user's path takes
its place by one rename, or for folders by one exchange of names (``renameat2``), so the path holds a whole version at
any moment, whatever is killed.

A flow changes the user's file only by publishing, and that is on record. So when the flow is started again and finds at
the path what it has published there itself, the file is again what it was at first, whose content is kept; otherwise
the second start would begin from the end of the first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from muster.engine.flow import file_trees
from muster.engine.flow.database import open_database, spoken
from muster.engine.flow.file_trees import (
    OURS,
    clear_drafts,
    copy_tree,
    make_read_only,
    remove_tree,
    resolved,
    restore,
    status_of,
    swap,
    sync,
    tree_digest,
)
from muster.engine.flow.result_store import storing
from muster.errors import BlobDamaged, DataError

FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE seen (
    path TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    digest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE firsts (
    path TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE published (
    path TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (path, digest)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The content of a file or a folder.

    Arguments:
        digest: BLAKE2b of 20 bytes, in hex: of a file's bytes, or of the names and digests in a folder.
        kind: which of the two.
        size: in bytes, of all files together.
    """

    digest: str
    kind: Literal["file", "directory"]
    size: int


class FileVersions:
    """Versions in a folder; may be used by several threads and processes. One process publishes.

    Arguments:
        folder: made if it is not there; best on the file system of the files, where copies may share their blocks.

    Raises:
        DataError: its records are damaged, or of a newer format.
        CannotStore: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._database = self._folder / "files.sqlite"
        self._connection = open_database(self._database, "record of files", _SCHEMA, FORMAT)
        with storing("versions of files", self._folder):
            for name in ("versions", "scratch"):
                (self._folder / name).mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._publishing: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._orders: dict[Path, int] = {}

    def close(self) -> None:
        """Ends; versions stay."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> FileVersions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what tasks read ---------------------------------------------------------------------------------------------

    def adopt(self, path: str | os.PathLike[str]) -> FileVersion:
        """The version that a user's file or folder is when a program names it first.

        It is not copied, and not read again while it looks the same. Where it is what this run has published there in
        an earlier start, the version is the one that was there before.

        Raises:
            DataError: it is not there, cannot be read, changes while it is read, or is neither a file nor a folder.
        """
        place = resolved(path)
        restore(place)
        version = self._version_at(place)
        first = self._first(place)
        if (
            first is not None
            and first != version
            and self._is_published(place, version)
            and self._kept(first).exists()
        ):
            return first
        with self._records() as records:
            records.execute("BEGIN")
            records.execute("DELETE FROM published WHERE path = ?", (str(place),))
            row = (str(place), version.digest, version.kind, version.size)
            records.execute("INSERT OR REPLACE INTO firsts VALUES (?, ?, ?, ?)", row)
            records.execute("COMMIT")
        return version

    def path(self, version: FileVersion) -> Path:
        """Where a version can be read; not to be written to.

        Raises:
            BlobDamaged: it is not there any more: never kept, removed, or the user's file has changed since it was adopted.
        """
        kept = self._kept(version)
        if kept.exists():
            return kept
        with self._records() as records:
            rows = records.execute("SELECT path FROM firsts WHERE digest = ?", (version.digest,)).fetchall()
        adopted = [Path(row[0]) for row in rows]
        for place in adopted:
            if place.exists() and self._version_at(place) == version:
                return place
        where = f"has changed in {adopted[0]} since" if adopted else f"is not in {self._folder}"
        raise BlobDamaged(version.digest, where)

    def check(self, version: FileVersion) -> None:
        """Reads a version again and compares its digest; one that is damaged is set aside.

        Raises:
            BlobDamaged: it is missing or damaged.
        """
        place = self.path(version)
        if tree_digest(place, lambda file: file_trees.file_digest(file)[0]) == (version.digest, version.size):
            return
        if place == self._kept(version):
            aside = self._folder / "damaged"
            aside.mkdir(exist_ok=True)
            place.rename(aside / f"{version.digest}.{secrets.token_hex(4)}")
        raise BlobDamaged(version.digest, f"is damaged: {place} has other content")

    # ---- what tasks write --------------------------------------------------------------------------------------------

    def scratch(self, version: FileVersion | None = None, *, name: str = "data") -> Path:
        """A private path for a task: nothing is there yet, or a copy of a version that the task may change.

        Arguments:
            version: for INOUT, what is copied; None for OUT.
            name: of the file or folder, as programs may look at its ending.

        Raises:
            BlobDamaged: the version is not there any more.
            CannotStore: the disk is full.
        """
        place = self._folder / "scratch" / secrets.token_hex(8) / (Path(name).name or "data")
        with storing(f"scratch space for {name}", self._folder):
            place.parent.mkdir()
            if version is not None:
                try:
                    copy_tree(self.path(version), place)
                except BaseException:
                    remove_tree(place.parent)
                    raise
        return place

    def keep(self, scratch: Path) -> FileVersion:
        """Makes a version of what a task has left at its scratch path, which is gone afterwards.

        Raises:
            DataError: it left nothing there, or neither a file nor a folder.
            CannotStore: the disk is full.
        """
        if not os.path.lexists(scratch):
            raise DataError(
                f"{scratch.name} was to be written by its task, and was not; nothing is at {scratch}"
            )
        version = _version(scratch, lambda file: file_trees.file_digest(file)[0])
        self._take(scratch, version)
        remove_tree(scratch.parent)
        return version

    def clear_scratch(self) -> None:
        """Removes what tasks that were killed have left; only while no task runs."""
        for left in (self._folder / "scratch").iterdir():
            remove_tree(left)

    def remove(self, versions: Sequence[FileVersion]) -> None:
        """Forgets the content of versions, except those from which a user's file began; those not kept are no error."""
        with self._records() as records:
            firsts = {row[0] for row in records.execute("SELECT digest FROM firsts")}
        for version in versions:
            if version.digest not in firsts:
                remove_tree(self._kept(version))

    # ---- what the user sees ------------------------------------------------------------------------------------------

    def publish(self, version: FileVersion, path: str | os.PathLike[str], *, order: int) -> bool:
        """Puts a copy of a version at the user's path, in place of what is there, all at once.

        What was there when the path was adopted is kept first. Of a path that was adopted nothing is overwritten but
        that and what was published there; of other paths no folder is but an empty one.

        Arguments:
            version: that is kept.
            path: a file or folder, or where one is to be.
            order: of the version among those of this path in the program; an older one never takes the place of a newer one.

        Returns:
            whether the path has this version now; False where a newer one was published since this object was made.

        Raises:
            DataError: the user has changed the file since it was adopted, or has a folder there.
            BlobDamaged: the version is not there any more.
            CannotStore: the disk of the path is full; it holds what it did.
        """
        place = resolved(path)
        with self._lock:
            publishing = self._publishing[place]
        with publishing:
            if order < self._orders.get(place, order):
                return False
            restore(place)
            clear_drafts(place)
            with storing(place.name, place.parent):
                there = self._version_at(place) if place.exists() else None
                if there != version:
                    self._replace(place, there, version)
            self._orders[place] = order
        return True

    def _replace(self, place: Path, there: FileVersion | None, version: FileVersion) -> None:
        first = self._first(place)
        if there is not None and there != first and not self._is_published(place, there):
            if first is not None:
                raise DataError(
                    f"{place} was changed while the flow worked on it, and is not overwritten; "
                    "save it elsewhere and start again"
                )
            if place.is_dir() and any(place.iterdir()):
                raise DataError(
                    f"{place} is a folder that the flow has not made; name one that is empty or not there"
                )
        if there is not None and there == first and not self._kept(first).exists():
            self._keep_first(place, first)
        draft = place.with_name(f".{place.name}.{OURS}{secrets.token_hex(4)}")
        try:
            copy_tree(self.path(version), draft)
            sync(draft)  # a power cut must not leave an empty file where a whole one was
            with self._records() as records:  # before it is there: a start after a kill must know it
                row = (str(place), version.digest)
                records.execute("INSERT OR IGNORE INTO published VALUES (?, ?)", row)
            swap(draft, place)
        finally:
            remove_tree(draft)

    def _keep_first(self, place: Path, first: FileVersion) -> None:
        """Keeps what is about to be replaced, by links to its files, which cost nothing."""
        linked = self._folder / "scratch" / secrets.token_hex(8) / "data"
        linked.parent.mkdir()
        try:
            copy_tree(place, linked, link=True)
            self._take(linked, first, seal=False)  # its files are still the user's
        finally:
            remove_tree(linked.parent)

    # ---- records -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _records(self) -> Iterator[sqlite3.Connection]:
        with self._lock, spoken(self._database, "record of files"):
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _first(self, place: Path) -> FileVersion | None:
        """What was at a path when it was adopted."""
        with self._records() as records:
            row = records.execute(
                "SELECT digest, kind, size FROM firsts WHERE path = ?", (str(place),)
            ).fetchone()
        return None if row is None else FileVersion(*row)

    def _is_published(self, place: Path, version: FileVersion) -> bool:
        with self._records() as records:
            found = records.execute(
                "SELECT 1 FROM published WHERE path = ? AND digest = ?", (str(place), version.digest)
            ).fetchone()
        return found is not None

    # ---- digests -----------------------------------------------------------------------------------------------------

    def _kept(self, version: FileVersion) -> Path:
        return self._folder / "versions" / version.digest[:2] / version.digest[2:]

    def _take(self, source: Path, version: FileVersion, *, seal: bool = True) -> None:
        kept = self._kept(version)
        with storing(f"a version of {source.name}", self._folder):
            kept.parent.mkdir(exist_ok=True)
            if kept.exists():
                return
            if seal:
                make_read_only(source)
            try:
                source.rename(kept)
            except OSError:
                if not kept.exists():  # otherwise another task has made the same folder meanwhile
                    raise

    def _version_at(self, place: Path) -> FileVersion:
        """The version of the user's file or folder, by the digests of files that look the same as when they were read."""
        fresh: dict[str, tuple[str, str]] = {}

        def digest(file: Path) -> str:
            status = status_of(file)
            with self._records() as records:
                row = records.execute(
                    "SELECT digest FROM seen WHERE path = ? AND status = ?", (str(file), status)
                ).fetchone()
            if row is not None:
                return str(row[0])
            found, status, settled = file_trees.file_digest(file)
            if settled:
                fresh[str(file)] = (status, found)
            return found

        version = _version(place, digest)
        if fresh:
            with self._records() as records:
                records.execute("BEGIN")
                rows = [(path, *told) for path, told in fresh.items()]
                records.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)
                records.execute("COMMIT")
        return version


def _version(place: Path, digest: Callable[[Path], str]) -> FileVersion:
    found, size = tree_digest(place, digest)
    return FileVersion(found, "directory" if place.is_dir() else "file", size)
