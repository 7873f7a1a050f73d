"""The coordinator's memory: work units, leases and accepted results, on the disk before anybody is told of them.

A *unit* is a piece of work. A *lease* gives it to a worker for a time, by a token; a result is accepted while its token is
active, and that revokes every other lease of the unit. So each unit's result is accepted at most once, and after a
kill of the coordinator the ledger says which were. Times are seconds on the run-wide clock and are given by the caller:
the ledger has no clock of its own.

What happens within a transaction is in `granting`, `leases`, `acceptance`, `claims`, `evidence`, `facts` and `tallies`, as
functions of the connection. `Ledger` says which of them is a transaction.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from muster.engine.pool import acceptance, claims, evidence, facts, granting, leases, tallies
from muster.engine.pool.claims import CAUGHT
from muster.engine.pool.evidence import Evidence, first_broken
from muster.engine.pool.group_commit import GroupCommit
from muster.engine.pool.ledger_entries import (
    Accepted,
    Claim,
    Lease,
    LeaseEnded,
    NotActive,
    Outcome,
    Retraction,
    Standing,
    Unit,
    WorkerRecord,
)
from muster.engine.pool.ledger_schema import FORMAT, SCHEMA, check_format
from muster.engine.pool.trust import Wanted
from muster.errors import DataError

__all__ = [
    "CAUGHT",
    "FORMAT",
    "Accepted",
    "Claim",
    "Evidence",
    "Lease",
    "LeaseEnded",
    "Ledger",
    "NotActive",
    "Outcome",
    "Retraction",
    "Standing",
    "Unit",
    "WorkerRecord",
    "first_broken",
]


class Ledger:
    """Units, leases and accepted results in one SQLite database.

    Methods that change something return once it is on the disk; those whose names end in ``_soon`` return a future
    of that, so that one thread can have many under way.

    Arguments:
        path: of the database; made if it is not there.
        attempts: leases of a unit that may end without a result before it is set aside.
        most_together: changes that may share a sync; 1 for one each.
        durable: whether changes are on the disk when they are answered; a ledger that is thrown away need not be.

    Raises:
        DataError: the file is no ledger of this format.
    """

    def __init__(
        self, path: Path, *, attempts: int = 5, most_together: int = 512, durable: bool = True
    ) -> None:
        self._attempts = attempts
        try:
            self._commits = GroupCommit(path, SCHEMA, most=most_together, durable=durable)
            known = self._commits.call(check_format)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no ledger ({error}); name another file, or remove it") from None
        if known != FORMAT:
            self._commits.close()
            raise DataError(f"{path} has format {known}; this version reads {FORMAT}")

    def close(self) -> None:
        """Ends; what was submitted is on the disk."""
        self._commits.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- work ---------------------------------------------------------------------------------------------------------

    def add(self, units: Sequence[Unit]) -> int:
        """Adds units that are not there yet; returns how many were new. One that is there stays as it is."""
        return self._commits.call(lambda connection: granting.add(connection, units))

    def grant(
        self,
        worker: str,
        *,
        now: float,
        deadline: float,
        base_version: int,
        model: str = "",
        copies: int = 0,
        copied: Sequence[int] | None = None,
        check: Callable[[int], Wanted] | None = None,
        trusted: bool = False,
    ) -> Lease | None:
        """Gives the first waiting unit to a worker.

        Arguments:
            worker: its name.
            now, deadline: seconds on the run-wide clock.
            base_version, model: of the model it is given.
            copies: where nothing waits, a unit that is leased already may be given to so many workers more; never twice to
                the same.
            copied: only these units may be; None for any.
            check: what it takes to believe a unit that is leased for the first time. Units that want more results than they
                have come first, with the model that the unit's other results are made from; never twice to the same worker.
            trusted: whether the worker's word decides.

        Returns:
            None where there is nothing to do.
        """
        return self.grant_soon(
            worker,
            now=now,
            deadline=deadline,
            base_version=base_version,
            model=model,
            copies=copies,
            copied=copied,
            check=check,
            trusted=trusted,
        ).result()

    def grant_soon(
        self,
        worker: str,
        *,
        now: float,
        deadline: float,
        base_version: int,
        model: str = "",
        copies: int = 0,
        copied: Sequence[int] | None = None,
        check: Callable[[int], Wanted] | None = None,
        trusted: bool = False,
    ) -> Future[Lease | None]:
        """As `grant`."""
        token = secrets.token_hex(16)
        return self._commits.submit(
            lambda connection: granting.grant(
                connection,
                token,
                worker,
                now=now,
                deadline=deadline,
                base_version=base_version,
                model=model,
                copies=copies,
                copied=copied,
                check=check,
                trusted=trusted,
            )
        )

    def lease(self, token: str) -> Lease:
        """A lease that has not ended.

        Raises:
            NotActive: it has.
        """
        return self._commits.read(lambda connection: leases.lease(connection, token))

    def extend(self, token: str, *, deadline: float) -> None:
        """A sign of life: moves a lease's deadline.

        Raises:
            NotActive: the lease has ended.
        """
        self._commits.call(lambda connection: leases.extend(connection, token, deadline))

    def extend_all(self, *, deadline: float) -> None:
        """Gives every lease at least so long, as after a time in which nobody could hear its worker."""
        self._commits.call(lambda connection: leases.extend_all(connection, deadline))

    # ---- results ------------------------------------------------------------------------------------------------------

    def accept(
        self,
        token: str,
        *,
        content: str,
        samples: int,
        now: float,
        detail: Mapping[str, Any] | None = None,
        rest: tuple[Mapping[str, Any], int] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Accepted:
        """Takes a result; every other lease of its unit is revoked.

        Arguments:
            token: of the lease.
            content: name of the update in the blob store, where it must be already.
            samples: that it was made of.
            now: seconds on the run-wide clock.
            detail: what else belongs to it, as JSON values.
            rest: of a result that is only a part: the work that is left and its samples, which becomes a unit of its own.
            notes: facts that go on record with it.

        Raises:
            NotActive: the lease has ended: too late, or another result was first.
        """
        return self.accept_soon(
            token, content=content, samples=samples, now=now, detail=detail, rest=rest, notes=notes
        ).result()

    def accept_soon(
        self,
        token: str,
        *,
        content: str,
        samples: int,
        now: float,
        detail: Mapping[str, Any] | None = None,
        rest: tuple[Mapping[str, Any], int] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Future[Accepted]:
        """As `accept`."""
        return self._commits.submit(
            lambda connection: acceptance.take(
                connection, token, content, samples, now, detail or {}, rest=rest, notes=notes
            )
        )

    def claim(
        self, token: str, *, content: str, samples: int, now: float, detail: Mapping[str, Any] | None = None
    ) -> Claim:
        """Takes a result that does not count before it was compared with others; its lease ends.

        Arguments:
            token, content, samples, now, detail: as in `accept`.

        Raises:
            NotActive: the lease has ended.
        """
        return self._commits.call(
            lambda connection: claims.claim(connection, token, content, samples, now, detail or {})
        )

    def want(self, unit: int, wanted: Wanted) -> None:
        """Asks for more results of a unit that is checked."""
        self._commits.call(lambda connection: claims.want(connection, unit, wanted))

    def settle(
        self,
        believed: Claim,
        *,
        now: float,
        detail: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        lies: Mapping[str, str] | None = None,
        anew_from: int = 0,
    ) -> tuple[Accepted, Retraction | None]:
        """Accepts one of a unit's claims, and retracts what was believed on the word of those who lied, all or nothing.

        Arguments:
            believed: the claim that counts.
            now: seconds on the run-wide clock.
            detail: what belongs to the accepted result beside the claim's own.
            notes: facts that go on record with it.
            lies: by the token of a claim of this unit, why it is one.
            anew_from: retracted work of units from this one on is to be done again, under new numbers.

        Returns:
            The accepted result, and what was retracted, if anything was.
        """
        return self._commits.call(
            lambda connection: claims.settle(
                connection,
                believed,
                now=now,
                detail=detail or {},
                notes=notes,
                lies=lies or {},
                anew_from=anew_from,
                attempts=self._attempts,
            )
        )

    def end(self, token: str, outcome: Outcome, *, now: float, reason: str = "", counts: bool = True) -> bool:
        """Ends a lease without a result: given back, refused, failed.

        Arguments:
            token: of the lease.
            outcome: how it ended.
            now: seconds on the run-wide clock.
            reason: in words.
            counts: whether it counts as an attempt of the unit; what a worker gives back because its machine goes does not.

        Returns:
            Whether its unit has been set aside for want of attempts.

        Raises:
            NotActive: it has ended before.
        """
        return self._commits.call(
            lambda connection: leases.give_up(
                connection, token, outcome, now, reason, counts=counts, attempts=self._attempts
            )
        )

    def expire(self, *, now: float) -> list[str]:
        """Ends all leases whose deadline has passed; returns their tokens."""
        return self._commits.call(lambda connection: leases.expire(connection, now, self._attempts))

    # ---- what is on record --------------------------------------------------------------------------------------------

    def accepted(self, after: int = 0) -> list[Accepted]:
        """Accepted results in order, those after a number."""
        return self._commits.read(lambda connection: acceptance.accepted(connection, "number > ?", after))

    def accepted_by(self, token: str) -> Accepted | None:
        """The accepted result of a lease."""
        found = self._commits.read(lambda connection: acceptance.accepted(connection, "token = ?", token))
        return found[0] if found else None

    def active(self) -> list[Lease]:
        """Leases that have not ended, the first to expire first."""
        return self._commits.read(lambda connection: leases.leases(connection, "l.outcome IS NULL"))

    def counts(self) -> dict[str, int]:
        """Units that wait, are leased, done, or set aside."""
        return self._commits.read(tallies.counts)

    def standing(self) -> Standing:
        """How far the work is."""
        return self._commits.read(tallies.standing)

    def workers(self) -> list[WorkerRecord]:
        """What each worker has done, by name."""
        return self._commits.read(tallies.workers)

    def set_aside(self) -> list[Unit]:
        """Units whose attempts were used up."""
        return self._commits.read(tallies.set_aside)

    def testify(self, kind: str, worker: str, detail: str, *, now: float) -> Evidence:
        """Puts what was not as it should be on record, chained to what was before."""
        return self._commits.call(lambda connection: evidence.testify(connection, kind, worker, detail, now))

    def evidence(self) -> list[Evidence]:
        """The log.

        Raises:
            DataError: an entry has been altered or taken out; names it.
        """
        last = self.noted(evidence.LAST)  # first: what is added meanwhile makes the log longer, and no other
        entries = self._commits.read(evidence.read)
        broken = first_broken(entries, last=last)
        if broken is not None:
            raise DataError(f"the evidence log has been altered at or before its entry {broken}")
        return entries

    def claims(self, unit: int | None = None) -> list[Claim]:
        """Results that were compared or are to be, of one unit or of all, in the order in which they came."""
        return self._commits.read(
            lambda connection: claims.claims(connection, "?1 IS NULL OR unit = ?1", unit)
        )

    def claimed(self, token: str) -> Claim | None:
        """The claim of a lease."""
        found = self._commits.read(lambda connection: claims.claims(connection, "token = ?", token))
        return found[0] if found else None

    def checks(self) -> dict[int, Wanted]:
        """What it takes to believe each unit that is being checked."""
        return self._commits.read(claims.checks)

    def retractions(self) -> list[Retraction]:
        """What was retracted, in order."""
        return self._commits.read(claims.retractions)

    def note(self, name: str, value: Any) -> None:
        """Puts a fact on record, in place of an earlier one of that name."""
        self._commits.call(lambda connection: facts.note(connection, name, value))

    def noted_below(self, prefix: str) -> dict[str, Any]:
        """Facts whose names begin so."""
        return self._commits.read(lambda connection: facts.noted_below(connection, prefix))

    def noted(self, name: str, default: Any = None) -> Any:
        """A fact."""
        return self._commits.read(lambda connection: facts.noted(connection, name, default))
