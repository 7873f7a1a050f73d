"""How many instances there are over time: a step function, and the sums that follow from it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from muster.errors import RefusedInput


@dataclass(frozen=True)
class Availability:
    """A number of instances that is constant between changes. After its end it begins again.

    Arguments:
        times_s: of the changes, in seconds; the first is 0, each is later than the one before.
        instances: how many there are from each of these times on.
        length_s: its end, later than the last change.
        notice_s: an instance that is taken away is told so long before.

    Raises:
        RefusedInput: no such function; says why.
    """

    times_s: tuple[float, ...]
    instances: tuple[int, ...]
    length_s: float
    notice_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.times_s or len(self.times_s) != len(self.instances):
            raise RefusedInput(
                f"availability: found {len(self.times_s)} times and {len(self.instances)} numbers of instances; expected "
                "as many, and at least one"
            )
        if self.times_s[0] != 0:
            raise RefusedInput(f"availability: begins at {self.times_s[0]:g} s; expected 0")
        ends = (*self.times_s[1:], self.length_s)
        for begin, end in zip(self.times_s, ends, strict=True):
            if not begin < end < math.inf:
                raise RefusedInput(
                    f"availability: {end:g} s comes after {begin:g} s; expected times that grow"
                )
        if min(self.instances) < 0:
            raise RefusedInput(f"availability: found {min(self.instances)} instances; expected 0 or more")
        if not 0 <= self.notice_s < math.inf:
            raise RefusedInput(f"availability: a notice of {self.notice_s:g} s; expected 0 or more")

    @classmethod
    def of(
        cls, changes: Iterable[tuple[float, int]], length_s: float, *, notice_s: float = 0.0
    ) -> Availability:
        """From (time, instances) in order of time; a change that changes nothing is left out, of equal times the last counts.

        Raises:
            RefusedInput: as for the class.
        """
        kept: list[tuple[float, int]] = []
        for time_s, count in changes:
            if kept and kept[-1][0] == time_s:
                kept.pop()
            if not kept or kept[-1][1] != count:
                kept.append((time_s, count))
        return cls(tuple(time for time, _ in kept), tuple(count for _, count in kept), length_s, notice_s)

    # ---- reading --------------------------------------------------------------------------------------------------------

    def at(self, time_s: float) -> int:
        """How many there are at a time."""
        return self.instances[bisect_right(self.times_s, time_s % self.length_s) - 1]

    def next_change_s(self, time_s: float) -> float:
        """When the first change after a time comes; infinity if there is none at all."""
        if len(self.times_s) == 1:
            return math.inf
        rounds, within = divmod(time_s, self.length_s)
        begin = rounds * self.length_s
        place = bisect_right(self.times_s, within)
        if place < len(self.times_s):
            return begin + self.times_s[place]
        again = begin + self.length_s
        return again if self.instances[0] != self.instances[-1] else again + self.times_s[1]

    def instance_seconds(self, until_s: float | None = None) -> float:
        """The integral from 0 on: how long all instances are there, together.

        Arguments:
            until_s: where it ends; None for one length.
        """
        if until_s is None:
            return self._within(self.length_s)
        rounds, rest = divmod(until_s, self.length_s)
        return rounds * self._within(self.length_s) + self._within(rest)

    def _within(self, until_s: float) -> float:
        ends = (*self.times_s[1:], self.length_s)
        return math.fsum(
            count * (min(end, until_s) - begin)
            for begin, end, count in zip(self.times_s, ends, self.instances, strict=True)
            if begin < until_s
        )

    @property
    def most(self) -> int:
        """The largest number of instances."""
        return max(self.instances)

    @property
    def mean(self) -> float:
        """Instances, on average over time."""
        return self.instance_seconds() / self.length_s

    @property
    def interruptions(self) -> int:
        """Instances taken away in one length. One that is replaced between two ticks of a trace is not seen."""
        return sum(
            max(0, before - after) for before, after in zip(self.instances, self.instances[1:], strict=False)
        )

    @property
    def interruptions_per_s(self) -> float:
        """The rate at which an instance that is there is taken away: interruptions by instance-seconds."""
        seconds = self.instance_seconds()
        return self.interruptions / seconds if seconds else 0.0

    # ---- other ones, made from it -----------------------------------------------------------------------------------------

    def compressed(self, factor: float) -> Availability:
        """The same in a time that runs so many times faster.

        Raises:
            RefusedInput: the factor is not above 0.
        """
        if not 0 < factor < math.inf:
            raise RefusedInput(f"compress: found {factor:g}; expected a number above 0")
        return replace(
            self,
            times_s=tuple(time / factor for time in self.times_s),
            length_s=self.length_s / factor,
            notice_s=self.notice_s / factor,
        )

    def begun_at(self, time_s: float) -> Availability:
        """The same, begun at another time within its length; what was before comes at its end.

        Raises:
            RefusedInput: it is not that long.
        """
        if not 0 <= time_s < self.length_s:
            raise RefusedInput(f"begin: found {time_s:g} s; expected 0 to less than {self.length_s:g} s")
        later = [(time - time_s, n) for time, n in self._changes() if time > time_s]
        earlier = [(time + self.length_s - time_s, n) for time, n in self._changes() if time <= time_s]
        changes = [(0.0, self.at(time_s)), *later, *earlier]
        return Availability.of(
            [change for change in changes if change[0] < self.length_s],
            self.length_s,
            notice_s=self.notice_s,
        )

    def begun_with_an_instance(self) -> Availability:
        """The same, begun when the first instance is there: nobody starts where there is none.

        Raises:
            RefusedInput: there never is one.
        """
        for time, count in self._changes():
            if count:
                return self.begun_at(time)
        raise RefusedInput("availability: never any instance; nothing could run on it")

    def scaled(self, most: int) -> Availability:
        """The same with another largest number, all others in proportion and rounded up: who is there counts.

        Raises:
            RefusedInput: not at least 1, or there never is any instance.
        """
        if most < 1:
            raise RefusedInput(f"availability: scaled to {most} instances; expected 1 or more")
        if self.most == 0:
            raise RefusedInput("availability: never any instance; nothing could run on it")
        changes = [(time, -(-count * most // self.most)) for time, count in self._changes()]
        return Availability.of(changes, self.length_s, notice_s=self.notice_s)

    def _changes(self) -> Sequence[tuple[float, int]]:
        return list(zip(self.times_s, self.instances, strict=True))
