"""A SQLite database in a run folder: made as a whole, refused in one sentence where it is damaged."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from muster.errors import CannotStore, DataError


def open_database(
    path: Path, what: str, schema: str, version: int, *, read_only: bool = False
) -> sqlite3.Connection:
    """Opens a database of a run folder; one that is not there is made, and is whole before it has its name.

    Arguments:
        path: of the database.
        what: it is, for errors.
        schema: statements that make its tables.
        version: of these, on record in the table ``facts``.
        read_only: nothing is written or made.

    Returns:
        a connection in autocommit mode, for any thread.

    Raises:
        DataError: it is truncated, damaged, of a newer format, or no such database.
        CannotStore: the disk is full.
    """
    with spoken(path, what):
        if not path.exists():
            if read_only:
                raise DataError(f"there is no {what} at {path}; name the folder of a run that has one")
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(path, schema, version)
        if not path.stat().st_size:
            raise DataError(f"{path} is empty, which no {what} is: it was truncated; {_MEND}")
        if read_only:
            address = path.absolute().as_uri() + "?mode=ro"
            connection = sqlite3.connect(
                address, uri=True, isolation_level=None, check_same_thread=False, timeout=30
            )
        else:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            _check(connection, path, what, version)
            if not read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
    return connection


_MEND: Final = "restore it from a copy, or remove it to run all tasks anew"


def _make(path: Path, schema: str, version: int) -> None:
    for left in ("-wal", "-shm"):  # of a database that was removed; SQLite would apply it to the new one
        path.with_name(path.name + left).unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            connection.execute(
                "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            )
            connection.execute("INSERT INTO facts VALUES ('format', ?)", (str(version),))
            connection.execute("COMMIT")
            connection.executescript(schema)
        try:
            os.link(draft, path)
        except FileExistsError:  # another process was first
            pass
        except OSError:  # a file system without links
            draft.rename(path)
    finally:
        for left in ("", "-wal", "-shm"):
            draft.with_name(draft.name + left).unlink(missing_ok=True)


def _check(connection: sqlite3.Connection, path: Path, what: str, version: int) -> None:
    whole = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if whole != "ok":
        raise DataError(f"{path} is damaged ({whole.splitlines()[-1]}); {_MEND}")
    try:
        known = int(connection.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()[0])
    except (sqlite3.OperationalError, TypeError, ValueError):
        raise DataError(f"{path} is no {what} of Muster; name another folder, or remove it") from None
    if known > version:
        raise DataError(
            f"{path} has format {known} and this version of Muster reads {version}; use a newer Muster, or another folder"
        )


@contextlib.contextmanager
def spoken(path: Path, what: str) -> Iterator[None]:
    """Says in one sentence what a failure of SQLite means.

    Raises:
        CannotStore: the disk is full, or fails.
        DataError: the database is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CANTOPEN,
        ):
            raise CannotStore(
                f"the {what} cannot be written to {path.parent}: {error}; "
                "make room there and start again: what is finished is kept"
            ) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CannotStore(f"{path} is held by another process; wait for that one, or stop it") from error
        raise DataError(f"{path} is damaged ({error}); {_MEND}") from error
    except sqlite3.ProgrammingError:  # not the database's fault
        raise
    except OSError as error:
        raise CannotStore(
            f"the {what} cannot be written to {path.parent}: {error.strerror or error}"
        ) from error
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); {_MEND}") from error
