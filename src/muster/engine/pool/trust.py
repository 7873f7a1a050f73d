"""What a coordinator asks before it believes a result: the narrow contract between a pool and those who judge lies.

A unit is believed on one worker's word, or once several of its results agree. A worker that lied is *caught*: it gets no
more work, and all that was believed on its word alone is retracted. `muster.trust` has an implementation; without one a
coordinator believes everybody, and nothing here costs anything.

Results can be compared where the work is deterministic up to rounding: a function of the unit's work, its number of
samples, the model handed out and what its keeper has kept, with every random number drawn from a seed in the work. All
results of a unit that is checked are therefore made from the same version of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from muster.engine.pool.updates import Arrays


@dataclass(frozen=True)
class Wanted:
    """What it takes to believe a unit.

    Arguments:
        results: that must be there before they are judged; 1 to believe the first at its word.
        trusted: whether those that are still missing must come from trusted workers.
    """

    results: int = 1
    trusted: bool = False


@dataclass(frozen=True)
class Result:
    """One worker's result of a unit, beside others.

    Arguments:
        worker: its name.
        hardware: class of its machine, as it has said.
        arrays: the update and what the keeper keeps, as `muster.engine.pool.updates.flattened` packs them.
        facts: what must be equal, such as samples and steps.
        loss: that it claims.
    """

    worker: str
    hardware: str
    arrays: Arrays
    facts: Mapping[str, Any] = field(default_factory=dict)
    loss: float | None = None


@dataclass(frozen=True)
class Verdict:
    """On the results of a unit.

    Arguments:
        believed: position of the one to be taken; None where more results are wanted.
        lies: position of each that is not believed, and why.
        wanted: how many are wanted where none is believed.
        differences: between honest results: (one's hardware, the other's, relative difference, whether a trusted worker
            vouches for it).
    """

    believed: int | None
    lies: Mapping[int, str] = field(default_factory=dict)
    wanted: Wanted = Wanted()
    differences: Sequence[tuple[str, str, float, bool]] = ()


class Trust(Protocol):
    """Decides whom to believe. Its methods are quick, and are called by one thread at a time.

    What it knows it learns from `believed` and `caught`, which are called again with the whole history when a
    coordinator is opened on a folder that is there.
    """

    @property
    def workers_needed(self) -> int:
        """With fewer workers some units would wait for ever."""
        ...

    def about(self) -> Mapping[str, Any]:
        """Its options, as JSON values."""
        ...

    def is_trusted(self, worker: str) -> bool:
        """Whether a worker's word decides."""
        ...

    def wanted(self, unit: int, worker: str) -> Wanted:
        """Asked when a unit is leased for the first time: what it will take to believe it."""
        ...

    def judged(self, base: Arrays, results: Sequence[Result]) -> Verdict:
        """Compares the results of a unit.

        Arguments:
            base: the model that all of them began from, by the names of the results' arrays.
            results: in the order in which they came.
        """
        ...

    def believed(
        self, workers: Sequence[str], differences: Sequence[tuple[str, str, float, bool]] = ()
    ) -> None:
        """A result was accepted: on one worker's word, or because those of several agreed."""
        ...

    def caught(self, worker: str) -> None:
        """A worker's lie was found."""
        ...
