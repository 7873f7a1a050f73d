"""Disturbing a pool on purpose: workers are killed for real, join late, are slow, and spoil what they hand in.

When a worker dies follows from a seed and from which worker it is, so two runs of a job have the same lifetimes; what they
were doing at that moment is theirs.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from muster.engine.pool.worker import Outcome

_FALSE_SAMPLES: Final = 10**9


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
    """

    kill_every_s: float | None = None
    notice_s: float = 0.0
    join_s: float = 0.0
    extra: int = 0
    extra_every_s: float = 5.0
    seed: int = 0

    def life_s(self, slot: int, generation: int) -> float | None:
        """How long a worker lives: the one that is so many-th at its place; None: until the end."""
        if self.kill_every_s is None:
            return None
        return float(np.random.default_rng([self.seed, slot, generation]).exponential(self.kill_every_s))


@dataclass
class _Doomed:
    pid: int
    notice_at: float | None
    kill_at: float


class Reaper:
    """Sends the signals when their time has come.

    Arguments:
        disturbance: says when.
        told: is called with (kind, who, detail) of each: ``notice`` and ``killed``.
    """

    def __init__(self, disturbance: Disturbance, told: Callable[[str, str, str], None]) -> None:
        self._disturbance, self._told = disturbance, told
        self._doomed: dict[str, _Doomed] = {}
        self.killed: set[str] = set()

    def joined(self, name: str, pid: int, slot: int, generation: int, now: float) -> None:
        """A worker's life begins."""
        life_s = self._disturbance.life_s(slot, generation)
        if life_s is not None:
            notice_at = now + life_s if self._disturbance.notice_s else None
            self._doomed[name] = _Doomed(pid, notice_at, now + life_s + self._disturbance.notice_s)

    def gone(self, name: str) -> None:
        """A worker has ended; its process id may soon be another's."""
        self._doomed.pop(name, None)

    def tend(self, now: float) -> None:
        """Sends what is due."""
        for name, doomed in list(self._doomed.items()):
            if doomed.notice_at is not None and now >= doomed.notice_at:
                doomed.notice_at = None
                if _send(doomed.pid, signal.SIGTERM):
                    self._told("notice", name, f"SIGTERM to process {doomed.pid}")
            if now >= doomed.kill_at:
                del self._doomed[name]
                self.killed.add(name)
                if _send(doomed.pid, signal.SIGKILL):
                    self._told("killed", name, f"SIGKILL to process {doomed.pid}")


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _not_a_number(outcome: Outcome) -> Outcome:
    name, array = next(
        (name, array) for name, array in outcome.weights.items() if np.issubdtype(array.dtype, np.floating)
    )
    spoilt = np.array(array, copy=True)
    spoilt.reshape(-1)[:1] = np.nan
    return dataclasses.replace(outcome, weights={**outcome.weights, name: spoilt})


def _wrong_shape(outcome: Outcome) -> Outcome:
    name, array = next(iter(outcome.weights.items()))
    return dataclasses.replace(outcome, weights={**outcome.weights, name: np.stack([array, array])})


def _wrong_type(outcome: Outcome) -> Outcome:
    name, array = next(iter(outcome.weights.items()))
    return dataclasses.replace(outcome, weights={**outcome.weights, name: array.astype(np.int16)})


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
