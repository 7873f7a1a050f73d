"""Workers of a pool in one process, which take turns in a seeded order: real leases and real staleness, the same every time.

Every worker is a `muster.engine.pool.worker.Worker` with its own seat at a real coordinator, on a thread of its own. What a
lease takes is drawn from a seed in a time that is only counted; a worker goes on when its time is the first of all. So
several leases are out at any moment, results come back in the order of those times, and nothing depends on the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import Version
from muster.engine.pool.rules import Rules
from muster.engine.pool.seat import Handing, Offer, Over, Pause
from muster.engine.pool.updates import Arrays
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.training.merge.rule import MergeRule

_SILENCE_S = 1e9  # in the counted time nobody is silent


class Turns:
    """A clock that goes to the next time that anybody waits for, once all wait.

    Arguments:
        count: of those who wait.
    """

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._count, self._waiting, self._gone = count, dict[int, float](), set[int]()
        self.now = 0.0

    def until(self, who: int, time_s: float) -> None:
        """Returns when it is this one's turn and so late."""
        with self._changed:
            self._waiting[who] = time_s
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._first() == who)
            del self._waiting[who]
            self.now = time_s

    def leave(self, who: int) -> None:
        """Waits for nothing any more."""
        with self._changed:
            self._gone.add(who)
            self._changed.notify_all()

    def _first(self) -> int | None:
        if len(self._waiting) + len(self._gone) < self._count:
            return None
        return min(self._waiting, key=lambda who: (self._waiting[who], who))


class TurnSeat:
    """A worker's end of a coordinator in the same process; the first lease waits for its turn.

    Arguments:
        pool: the coordinator.
        turns, who: of the worker.
    """

    def __init__(self, pool: Coordinator, turns: Turns, who: int) -> None:
        self._pool, self._turns, self._who, self._begun = pool, turns, who, False

    def lease(self, worker: str) -> Offer | Pause | Over:
        if not self._begun:
            self._turns.until(self._who, 1e-9 * self._who)
            self._begun = True
        answer = self._pool.lease(worker)
        if not isinstance(answer, Offer):  # nothing waits any more, and nothing here comes back
            self._turns.leave(self._who)
        return answer

    def hello(self, worker: str, about: Mapping[str, Any]) -> None:
        self._pool.hello(worker, about)

    def beat(self, token: str, samples: int) -> None:
        self._pool.beat(token, samples)

    def chunk(self, name: str) -> bytes:
        return self._pool.chunk(name)

    def missing(self, token: str, names: Sequence[str]) -> list[str]:
        return self._pool.missing(token, names)

    def put(self, token: str, name: str, content: bytes) -> None:
        self._pool.put(token, name, content)

    def hand_in(self, token: str, result: Handing) -> int:
        return self._pool.hand_in(token, result)

    def give_back(self, token: str, reason: str, *, failed: bool = False) -> None:
        self._pool.give_back(token, reason, failed=failed)


class Units:
    """Units that are all there from the beginning.

    Arguments:
        work: of each, with its samples.
    """

    count = 1

    def __init__(self, work: Sequence[tuple[dict[str, Any], int]]) -> None:
        self._work = work

    def units(self, number: int) -> Sequence[tuple[dict[str, Any], int]]:
        return self._work


def in_turns(
    folder: Path,
    model: Arrays,
    rule: MergeRule,
    units: Sequence[tuple[dict[str, Any], int]],
    work: Callable[[Task], Outcome],
    *,
    workers: int,
    seed: int,
    merged: Callable[[Version], None] = lambda version: None,
) -> Version:
    """The model that a pool of such workers ends with.

    Arguments:
        folder: of the pool.
        model: the first one.
        rule: of arrivals.
        units: work and samples of each.
        work: does a task.
        workers: how many.
        seed: of what each lease takes: a worker's own speed, between one and two, times a draw around 1 for each.
        merged: is called with every version.
    """
    turns = Turns(workers)
    draws = np.random.default_rng([seed, 7])
    speeds = draws.uniform(1, 2, workers)
    takes = draws.lognormal(0, 0.2, len(units))

    def doing(who: int) -> Callable[[Task], Outcome]:
        def do(task: Task) -> Outcome:
            turns.until(who, turns.now + speeds[who] * takes[task.unit])
            return work(task)  # with the model of when it was leased

        return do

    failures: list[BaseException] = []

    def run(who: int) -> None:
        try:
            Worker(TurnSeat(pool, turns, who), f"worker {who}", doing(who)).run()
        except BaseException as error:
            failures.append(error)
            turns.leave(who)

    with Coordinator(
        folder,
        model=model,
        fold=rule,
        rounds=Units(units),
        rules=Rules(silence_s=_SILENCE_S, copies=0),
        now=lambda: turns.now,
        durable=False,
        merged=merged,
    ) as pool:
        threads = [threading.Thread(target=run, args=(who,)) for who in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return pool.wait(0)
