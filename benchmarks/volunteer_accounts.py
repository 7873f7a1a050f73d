"""What the ledger and the events of a volunteer run prove: samples, lost work, pace, and how well its machines were used."""

from __future__ import annotations

import json
import sqlite3
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from muster.engine.pool.ledger import Accepted, Ledger


@dataclass(frozen=True)
class Lease:
    """A row of the ledger; times in seconds since 1970."""

    worker: str
    unit: int
    granted: float
    ended: float | None
    outcome: str | None


@dataclass(frozen=True)
class Life:
    """A worker's process, from when it was ready to work until it was gone or the run was over, seconds since 1970."""

    worker: str
    slot: int
    ready: float
    gone: float

    def within(self, begin: float, end: float) -> float:
        """Seconds of it between two times."""
        return max(0.0, min(self.gone, end) - max(self.ready, begin))


@dataclass(frozen=True)
class Accounts:
    """The books of a run that is over.

    Arguments:
        accepted: results, in order.
        leases: all, in order of their beginning.
        begins: of the samples of each unit, in the endless concatenation of epochs.
        lives: of workers.
    """

    accepted: Sequence[Accepted]
    leases: Sequence[Lease]
    begins: dict[int, int]
    lives: Sequence[Life]

    @classmethod
    def of(cls, folder: Path, gone: dict[str, float]) -> Accounts:
        """From the folder of a pool.

        Arguments:
            folder: with the ledger.
            gone: when workers were lost, by name, seconds since 1970.
        """
        path = folder / "ledger.sqlite"
        with Ledger(path) as ledger:
            accepted, known = ledger.accepted(), ledger.noted_below("worker/")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            leases = [
                Lease(*row)
                for row in connection.execute(
                    "SELECT worker, unit, granted, ended, outcome FROM leases ORDER BY granted"
                )
            ]
            begins = {
                unit: json.loads(work)["begin"]
                for unit, work in connection.execute("SELECT unit, work FROM units")
            }
        end = accepted[-1].time
        lives = [
            Life(worker, told["slot"], told["since"], gone.get(worker, end))
            for name, told in known.items()
            for worker in [name.removeprefix("worker/")]
        ]
        return cls(accepted, leases, begins, lives)

    # ---- samples --------------------------------------------------------------------------------------------------------

    def audit(self, total: int) -> tuple[int, int]:
        """Samples of 0 to `total` that no accepted result has, and those that several have."""
        spans = sorted((self.begins[each.unit], each.samples) for each in self.accepted)
        reached = lost = doubled = 0
        for begin, samples in spans:
            lost += max(0, begin - reached)
            doubled += max(0, min(reached, begin + samples) - begin)
            reached = max(reached, begin + samples)
        return lost + max(0, total - reached), doubled

    @property
    def samples(self) -> int:
        """Of all accepted results."""
        return sum(each.samples for each in self.accepted)

    # ---- time -----------------------------------------------------------------------------------------------------------

    @property
    def begin(self) -> float:
        """When the first worker was ready."""
        return min(life.ready for life in self.lives)

    @property
    def end(self) -> float:
        """When the last result was accepted."""
        return self.accepted[-1].time

    def capacity(self, begin: float, end: float, pace: float, slow: Sequence[float] = ()) -> float:
        """Samples that the workers that were alive and ready could have done, each at its undisturbed rate."""
        return sum(
            life.within(begin, end) * pace / (slow[life.slot] if life.slot < len(slow) else 1.0)
            for life in self.lives
        )

    def over_ideal(self, pace: float, slow: Sequence[float] = ()) -> float:
        """The run's time, in that which its alive and ready workers would have taken without loss."""
        return self.capacity(self.begin, self.end, pace, slow) / self.samples

    @cached_property
    def median_lease_s(self) -> float:
        """Of accepted ones."""
        took = [
            each.ended - each.granted for each in self.leases if each.outcome == "accepted" and each.ended
        ]
        return statistics.median(took)

    @property
    def most_patient_s(self) -> float:
        """By when the next merge is due after a loss: 2 s, or one and a half leases."""
        return max(2.0, 1.5 * self.median_lease_s)

    def merge_times(self, without: str | None = None) -> list[float]:
        """Of accepted results, those of one worker left out."""
        return [each.time for each in self.accepted if each.worker != without]

    def next_merge_s(self, moment: float) -> float | None:
        """How long after a moment the next result was merged; None if none was."""
        times = self.merge_times()
        place = bisect_right(times, moment)
        return times[place] - moment if place < len(times) else None

    def pace(self, begin: float, end: float) -> float:
        """Samples a second between two times; each lease's are spread over its time."""
        done = 0.0
        granted = {
            (each.worker, each.unit): each.granted for each in self.leases if each.outcome == "accepted"
        }
        for each in self.accepted:
            since = granted[each.worker, each.unit]
            overlap = max(0.0, min(each.time, end) - max(since, begin))
            done += each.samples * overlap / max(1e-9, each.time - since)
        return done / (end - begin)

    # ---- lost work ------------------------------------------------------------------------------------------------------

    def lost_leases(self) -> list[Lease]:
        """Leases whose work came to nothing; one whose unit another worker was faster with is not lost."""
        return [each for each in self.leases if each.outcome in ("expired", "failed", "refused", "returned")]

    def most_lost_at_once(self, kills: Sequence[float]) -> int:
        """Of one worker, between one kill of the coordinator and the next: the largest number of lost leases."""
        counts = Counter((each.worker, bisect_right(kills, each.granted)) for each in self.lost_leases())
        return max(counts.values(), default=0)
