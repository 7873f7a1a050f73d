"""One SQLite database, one writer thread, many callers: each is answered once what it wrote is on the disk.

A full sync takes milliseconds, so it is shared: whatever has been submitted while one transaction is synced goes into the
next one together (group commit; DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984).
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

_MOST: Final = 512  # pieces of work in one transaction


class GroupCommit:
    """Runs work on a database in the order submitted, in transactions that are synced before anybody is answered.

    A piece of work that raises leaves no trace and disturbs no other; one that was submitted may end up in the same
    transaction as its neighbours, but each sees all that came before it.

    Arguments:
        path: of the database; made if it is not there.
        schema: statements that make its tables, if they do not exist.
        most: pieces of work in one transaction; 1 for a sync each.
        durable: whether transactions are synced at all.
    """

    def __init__(self, path: Path, schema: str, *, most: int = _MOST, durable: bool = True) -> None:
        self._most = most
        self._path, self._local = path, threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(path, schema, durable, ready), name="muster-ledger", daemon=True
        )
        self._thread.start()
        ready.result()

    def submit(self, work: Work[Result]) -> Future[Result]:
        """Queues a piece of work; its future is done once its transaction is on the disk.

        Arguments:
            work: gets the connection, within a transaction; must not commit.

        Raises:
            RuntimeError: closed.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the ledger is closed")
            self._queue.put((work, future))
        return future

    def call(self, work: Work[Result]) -> Result:
        """Does a piece of work and waits until it is on the disk.

        Raises:
            sqlite3.OperationalError: it cannot be written, as on a full disk; nothing of it was.
        """
        return self.submit(work).result()

    def read(self, work: Work[Result]) -> Result:
        """Does a piece of work that changes nothing, at once and in the caller's thread; sees all that was answered before.

        Arguments:
            work: gets a connection that shows one state of the database.
        """
        if str(self._path) == ":memory:":  # another connection would be to another database
            return self.call(work)
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
            with self._lock:
                if self._closed:
                    connection.close()
                    raise RuntimeError("the ledger is closed")
                self._readers.append(connection)
            self._local.connection = connection
        connection.execute("BEGIN")
        try:
            return work(connection)
        finally:
            connection.execute("COMMIT")

    def close(self) -> None:
        """Does what was submitted, then ends."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
            readers, self._readers = self._readers, []
        self._thread.join()
        for connection in readers:
            connection.close()

    def __enter__(self) -> GroupCommit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _serve(self, path: Path, schema: str, durable: bool, ready: Future[None]) -> None:
        try:
            connection = _opened(path, schema, durable)
        except sqlite3.Error as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            over = False
            while not over:
                first = self._queue.get()
                if first is None:
                    break
                group = [first]
                while len(group) < self._most:
                    try:
                        following = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if following is None:
                        over = True
                        break
                    group.append(following)
                self._commit(connection, group)
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in group:
                connection.execute("SAVEPOINT one")
                try:
                    answers.append((future, work(connection), None))
                except Exception as error:
                    connection.execute("ROLLBACK TO one")
                    answers.append((future, None, error))
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except sqlite3.Error as error:  # the whole transaction is gone: a full disk, an I/O error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, future in group:
                future.set_exception(error)
            return
        for future, result, failure in answers:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)


def _opened(path: Path, schema: str, durable: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
    connection.executescript(schema)
    return connection
