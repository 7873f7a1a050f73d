"""Disturbing a pool on purpose: workers are killed for real, join late, are slow, and spoil what they hand in.

When a worker dies follows from a seed and from which worker it is, so two runs of a job have the same lifetimes; what they
were doing at that moment is theirs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from muster.engine.pool.updates import Array, Arrays
from muster.engine.pool.worker import Outcome

_FALSE_SAMPLES: Final = 10**9
_BOLDNESS: Final = 10  # of a lie


class Presence(Protocol):
    """How many machines there are over time; `muster.fleet.Availability` is one."""

    @property
    def notice_s(self) -> float:
        """How long before its end a machine that is taken away is told so."""
        ...

    def at(self, time_s: float) -> int:
        """Machines at a time, from the beginning on."""
        ...


@dataclass(frozen=True)
class Disturbance:
    """What is done to the workers of a pool.

    Arguments:
        kill_every_s: mean of the exponential distribution of a worker's life, s; None: nobody is killed.
        notice_s: SIGTERM comes so long before SIGKILL; 0: it does not.
        join_s: a lost worker's successor joins after so long.
        extra: workers that join besides.
        extra_every_s: the time between two of them.
        seed: of the lives.
        presence: of as many machines as there are, each has one worker, those of the first places; from the pool's beginning
            on. Who loses its machine is killed, and another one takes the place when the machine is back. None: all stay.
    """

    kill_every_s: float | None = None
    notice_s: float = 0.0
    join_s: float = 0.0
    extra: int = 0
    extra_every_s: float = 5.0
    seed: int = 0
    presence: Presence | None = None

    def life_s(self, slot: int, generation: int) -> float | None:
        """How long a worker lives: the one that is so many-th at its place; None: until the end."""
        if self.kill_every_s is None:
            return None
        return float(np.random.default_rng([self.seed, slot, generation]).exponential(self.kill_every_s))


@dataclass
class _Mortal:
    pid: int
    slot: int
    notice_at: float
    kill_at: float
    noticed: bool = False


class Reaper:
    """Sends the signals when their time has come.

    Arguments:
        disturbance: says when.
        told: is called with (kind, who, detail) of each: ``notice`` and ``killed``.
        began: when the pool did, on the clock of the other times.
    """

    def __init__(
        self, disturbance: Disturbance, told: Callable[[str, str, str], None], began: float = 0.0
    ) -> None:
        self._disturbance, self._told, self._began = disturbance, told, began
        self._mortals: dict[str, _Mortal] = {}
        self.killed: set[str] = set()

    def admits(self, slot: int, now: float) -> bool:
        """Whether there is a machine for a place, which is not about to be taken away."""
        presence = self._disturbance.presence
        if presence is None:
            return True
        since = now - self._began
        return slot < min(presence.at(since), presence.at(since + presence.notice_s))

    def joined(self, name: str, pid: int, slot: int, generation: int, now: float) -> None:
        """A worker's life begins."""
        life_s, notice_s = self._disturbance.life_s(slot, generation), self._disturbance.notice_s
        end = math.inf if life_s is None else now + life_s
        self._mortals[name] = _Mortal(pid, slot, end if notice_s else math.inf, end + notice_s)

    def gone(self, name: str) -> None:
        """A worker has ended; its process id may soon be another's."""
        self._mortals.pop(name, None)

    def tend(self, now: float) -> None:
        """Sends what is due."""
        presence, since = self._disturbance.presence, now - self._began
        there = soon = math.inf
        if presence is not None:
            there = presence.at(since)
            soon = presence.at(since + presence.notice_s) if presence.notice_s else there
        for name, mortal in list(self._mortals.items()):
            leaves = there > mortal.slot >= soon
            if not mortal.noticed and (now >= mortal.notice_at or leaves):
                mortal.noticed = True
                if _send(mortal.pid, signal.SIGTERM):
                    self._told("notice", name, f"SIGTERM to process {mortal.pid}")
            if now >= mortal.kill_at or mortal.slot >= there:
                del self._mortals[name]
                self.killed.add(name)
                if _send(mortal.pid, signal.SIGKILL):
                    self._told("killed", name, f"SIGKILL to process {mortal.pid}")


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def lied(outcome: Outcome, base: Arrays, share: float, *, seed: int, unit: int, attempt: int) -> Outcome:
    """A result as it was, or, with that probability, one that looks right: ten times its change, in the opposite direction.

    Arguments:
        outcome: an honest one.
        base: the model that it began from.
        share: of the results that are lies.
        seed, unit, attempt: fix which.
    """
    generator = np.random.default_rng([seed, 2, unit, attempt])
    if outcome.samples == 0 or generator.random() >= share:
        return outcome
    weights = {
        name: (base[name] - _BOLDNESS * (array - base[name])).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in outcome.weights.items()
    }
    return dataclasses.replace(outcome, weights=weights)


def _changed(outcome: Outcome, change: Callable[[Array], Array], kinds: str) -> Outcome:
    """The first array of such a dtype (`numpy.dtype.kind`) is changed, whether it travels as it is or encoded."""
    for name, array in outcome.weights.items():
        if array.dtype.kind in kinds:
            return dataclasses.replace(outcome, weights={**outcome.weights, name: change(array)})
    for part, groups in outcome.coded.items():
        for name, array in groups[""].items():
            if array.dtype.kind in kinds:
                changed = {**groups, "": {**groups[""], name: change(array)}}
                return dataclasses.replace(outcome, coded={**outcome.coded, part: changed})
    raise ValueError("an update without arrays cannot be spoilt")


def _not_a_number(outcome: Outcome) -> Outcome:
    def change(array: Array) -> Array:
        spoilt = np.array(array, copy=True)
        spoilt.reshape(-1)[:1] = np.nan
        return spoilt

    return _changed(outcome, change, "f")


def _wrong_shape(outcome: Outcome) -> Outcome:
    return _changed(outcome, lambda array: np.stack([array, array]), "fiub")


def _wrong_type(outcome: Outcome) -> Outcome:
    return _changed(outcome, lambda array: array.astype(np.int16), "fiub")


def _false_samples(outcome: Outcome) -> Outcome:
    return dataclasses.replace(outcome, samples=_FALSE_SAMPLES)


SPOILERS: Final[Mapping[str, Callable[[Outcome], Outcome]]] = {
    "nan": _not_a_number,
    "shape": _wrong_shape,
    "dtype": _wrong_type,
    "samples": _false_samples,
}


def spoilt(outcome: Outcome, share: float, *, seed: int, unit: int, attempt: int) -> Outcome:
    """A result as it was, or with that share spoilt in one of the ways of `SPOILERS`; fixed by seed, unit and attempt."""
    generator = np.random.default_rng([seed, 1, unit, attempt])
    if outcome.samples == 0 or generator.random() >= share:
        return outcome
    return list(SPOILERS.values())[generator.integers(len(SPOILERS))](outcome)
