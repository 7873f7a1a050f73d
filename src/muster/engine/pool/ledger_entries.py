"""What a ledger is given and what it answers: units, leases, results, and why a token is none any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from muster.errors import DataError

Outcome = Literal[
    "accepted", "expired", "returned", "revoked", "refused", "failed", "claimed", "confirmed", "lied"
]


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Arguments:
        number: its name, from 0.
        work: what a worker needs to know, as JSON values.
        samples: how much it is.
    """

    number: int
    work: Mapping[str, Any]
    samples: int = 1


@dataclass(frozen=True)
class Lease:
    """A unit in a worker's hands.

    Arguments:
        token: proves it; nobody can guess it.
        unit: the work.
        worker: its name.
        attempt: of the unit, from 1.
        base_version: of the model that the worker begins from.
        granted, deadline: seconds on the run-wide clock.
        model: names that model, as whoever granted the lease wants to know it again.
        checked: whether its result is compared with others before it counts.
    """

    token: str
    unit: Unit
    worker: str
    attempt: int
    base_version: int
    granted: float
    deadline: float
    model: str = ""
    checked: bool = False


@dataclass(frozen=True)
class Accepted:
    """A result that counts.

    Arguments:
        number: in the order of acceptance, from 1.
        token, unit, worker: of the lease.
        content: name of the update in the blob store.
        base_version: of the model it began from.
        samples: that it was made of.
        time: of acceptance, seconds on the run-wide clock.
        detail: what else belongs to it, as JSON values.
    """

    number: int
    token: str
    unit: int
    worker: str
    content: str
    base_version: int
    samples: int
    time: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A result that is compared with others before one of them counts.

    Arguments:
        token, unit, worker, base_version: of the lease.
        content, samples, time, detail: as in `Accepted`.
        verdict: ``believed``, ``confirmed``, ``lie``, ``dropped``; None while there is none.
        model: of the lease.
    """

    token: str
    unit: int
    worker: str
    content: str
    base_version: int
    samples: int
    time: float
    detail: Mapping[str, Any]
    verdict: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Retraction:
    """Accepted results that count no longer, because their worker was caught lying.

    Arguments:
        after: number of the last result that had been accepted by then.
        numbers: of the results.
    """

    after: int
    numbers: frozenset[int]


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker has done.

    Arguments:
        worker: its name.
        active: leases in its hands.
        accepted, expired, refused, failed, returned, revoked: how its other leases ended.
        samples: of accepted results.
        seconds: that an accepted lease took on average; None if there is none.
        staleness: accepted results of others between a lease's model and its result, on average.
    """

    worker: str
    active: int
    accepted: int
    expired: int
    refused: int
    failed: int
    returned: int
    revoked: int
    samples: int
    seconds: float | None
    staleness: float | None


@dataclass(frozen=True)
class Standing:
    """How far the work is.

    Arguments:
        open: whether any unit waits or is leased.
        accepted: number of the last accepted result; 0 if there is none.
        following: the number that no unit has yet.
    """

    open: bool
    accepted: int
    following: int


class NotActive(DataError):
    """A lease's token is unknown, or was revoked; says by what."""


class LeaseEnded(NotActive):
    """A lease's token was revoked; says by what.

    Arguments:
        message: for a person.
        worker: who had the lease.
    """

    def __init__(self, message: str, worker: str) -> None:
        self.worker = worker
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return LeaseEnded, (str(self), self.worker)
