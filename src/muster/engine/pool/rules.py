"""What a pool is to do, and what its coordinator holds its workers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from muster.errors import MusterError


class Rounds(Protocol):
    """What is to be done, round by round."""

    @property
    def count(self) -> int:
        """How many rounds there are."""
        ...

    def units(self, number: int) -> Sequence[tuple[dict[str, Any], int]]:
        """Work and samples of each unit of a round, from 0; always the same for the same number.

        Two keys of the work mean something here. ``keeper`` names who keeps something from one unit to the next, such as a
        party. ``begin`` says that the unit is a part of a whole, so that what a partial result leaves is leased again, from
        there on; without it a partial result is all there is.
        """
        ...


class BelowQuorum(MusterError):
    """Too many units of a round were set aside; names them."""


@dataclass(frozen=True)
class Rules:
    """What a coordinator holds its workers to.

    Arguments:
        silence_s: a lease whose worker gives no sign of life for so long has expired.
        patience: a lease may take so many times as long as its worker's pace says before it has expired all the same.
        copies: further workers that a lagging unit may be given to where nothing else is to do.
        quorum: the share of a round's units that must be done; the others were set aside after too many attempts.
        attempts: leases of a unit that may end without a result.
        most_bytes: of an update; None for what such a model takes.
    """

    silence_s: float = 10.0
    patience: float = 10.0
    copies: int = 1
    quorum: float = 1.0
    attempts: int = 5
    most_bytes: int | None = None
