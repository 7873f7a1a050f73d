"""What a coordinator writes with, and what it does where the disk takes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from muster.engine.pool.blobs import BlobStore
from muster.engine.pool.ledger import Ledger


@dataclass(frozen=True)
class Desk:
    """What the parts of a coordinator write with. It needs no lock.

    Arguments:
        ledger: of the pool.
        blobs: of the pool.
        now: the run-wide clock, in seconds.
        told: is called with (kind, who, detail) of what happens.
    """

    ledger: Ledger
    blobs: BlobStore
    now: Callable[[], float]
    told: Callable[[str, str, str], None]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Where something is written: what goes wrong there is nobody's fault, and may go well the next time."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise self.unable(error) from None

    def unable(self, error: Exception) -> ConnectionError:
        """The disk does not take it now; whoever came may come again."""
        told = f"the coordinator cannot write: {error}"
        self.told("unable", "", told)
        return ConnectionError(told)

    def testify(self, kind: str, worker: str, detail: str) -> None:
        """Puts into the evidence log what was refused, late or disputed, and tells of it."""
        with self.writing():
            self.ledger.testify(kind, worker, detail[:500], now=self.now())
        self.told(kind, worker, detail[:500])
