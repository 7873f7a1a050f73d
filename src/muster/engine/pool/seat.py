"""What a worker and its coordinator say to each other: work out, updates in.

A `Seat` is the worker's end. The coordinator itself is one, for workers in its own process; others reach it through a
transport that carries the same calls. Contents travel as chunks with names of their own (`muster.engine.pool.blobs`), so a
transfer that was cut goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from muster.engine.pool.blobs import Manifest
from muster.engine.pool.ledger import Unit


@dataclass(frozen=True)
class Offer:
    """A lease as its worker sees it.

    Arguments:
        token: proves it.
        unit: the work.
        attempt: of the unit, from 1.
        base_version: of the model to begin from.
        model: that model and what the rule sends with it, as `muster.engine.pool.updates.flattened` packs them.
        own: what the unit's keeper kept after its last result; None at first.
        beat_s: a sign of life is wanted so often, in seconds.
    """

    token: str
    unit: Unit
    attempt: int
    base_version: int
    model: Manifest
    own: Manifest | None
    beat_s: float


@dataclass(frozen=True)
class Pause:
    """Nothing to do now: ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Over:
    """Nothing will be to do any more, and why."""

    reason: str


@dataclass(frozen=True)
class Handing:
    """A result, whose contents have been put before.

    Arguments:
        update: the weights and what the rule wants beside them.
        own: what the unit's keeper keeps; the coordinator stores it unread.
        samples: that the update is made of; fewer than the lease's if the worker had to stop.
        steps: of the local optimizer.
        loss: mean loss of the model that was handed out, where a rule wants it.
        seconds: what the lease's time went to, by pillar.
    """

    update: Manifest
    samples: int
    steps: int = 1
    loss: float | None = None
    own: Manifest | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Seat(Protocol):
    """A worker's end.

    All calls may raise `ConnectionError` while the coordinator cannot be reached, after which they may be made again; and
    those with a token `muster.engine.pool.ledger.NotActive` once its lease has ended.
    """

    def hello(self, worker: str, about: Mapping[str, Any]) -> None:
        """Says who works, with JSON values for those who want to know, such as the process id."""
        ...

    def lease(self, worker: str) -> Offer | Pause | Over:
        """Asks for work."""
        ...

    def beat(self, token: str, samples: int) -> None:
        """A sign of life, with the samples done so far."""
        ...

    def chunk(self, name: str) -> bytes:
        """A chunk of an offered model.

        Raises:
            KeyError: there is none of this name.
        """
        ...

    def missing(self, token: str, names: Iterable[str]) -> list[str]:
        """Those of a result's chunks that the coordinator has not got yet."""
        ...

    def put(self, token: str, name: str, content: bytes) -> None:
        """Brings a chunk of a result.

        Raises:
            RefusedUpdate: more than a result of this lease may have, or not the bytes of that name.
        """
        ...

    def hand_in(self, token: str, result: Handing) -> int:
        """Hands a result in; returns its number once it is on the coordinator's disk, or 0 if it does not count yet: it is
        to be compared with others first.

        A result that was accepted before is answered with its number again: its worker did not hear the first answer.

        Raises:
            RefusedUpdate: it is not what it should be; the lease has ended.
        """
        ...

    def give_back(self, token: str, reason: str, *, failed: bool = False) -> None:
        """Returns a lease without a result: the worker must go, or its work has failed."""
        ...
