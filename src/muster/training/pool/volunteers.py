"""Volunteer training: leases are stretches of the global order of samples, and whoever comes takes the next one.

After Atre, Jha and Rao, "Distributed deep learning using volunteer computing-like paradigm" (PAISE 2021): data shards as
subtasks, a model handed out with each, asynchronous merging of whatever comes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from muster.engine.pool.chaos import lied, spoilt
from muster.engine.pool.worker import Outcome, Task
from muster.spec import PoolHow
from muster.spec.gang_how import Optimizer
from muster.spec.pool_how import Chaos
from muster.training.application import Application
from muster.training.federated.local_training import (
    correct_gradients,
    drawing_from,
    load_weights,
    weights_of,
)
from muster.training.merge.compressed_updates import UpdateCompression
from muster.training.merge.rule import Arrays, Handed, MergeRule, State, Trained
from muster.training.pool.samples import Samples
from muster.training.recipe import make_optimizer


@dataclass(frozen=True)
class Passes:
    """Leases of some passes over the data, for rules that merge each update as it arrives.

    Arguments:
        samples: of the data.
        lease: samples of a lease; the last of a pass has what is left.
        count: passes.
    """

    samples: int
    lease: int
    count: int

    def units(self, number: int) -> list[tuple[dict[str, Any], int]]:
        """See `muster.engine.pool.rules.Rounds`."""
        first, last = number * self.samples, (number + 1) * self.samples
        return [({"begin": begin}, min(self.lease, last - begin)) for begin in range(first, last, self.lease)]


@dataclass(frozen=True)
class RoundsOfLeases:
    """Rounds of as many leases each, for rules that merge a round together; the data are passed as often as it takes.

    Arguments:
        lease: samples of a lease.
        leases: of a round.
        count: rounds.
    """

    lease: int
    leases: int
    count: int

    def units(self, number: int) -> list[tuple[dict[str, Any], int]]:
        """See `muster.engine.pool.rules.Rounds`."""
        first = number * self.leases
        return [({"begin": (first + place) * self.lease}, self.lease) for place in range(self.leases)]


class Metronome:
    """Holds a worker to a rate, and slows it down.

    Arguments:
        pace: samples per second; None: as fast as it goes.
        slower: by what factor.
    """

    def __init__(self, pace: float | None, slower: float) -> None:
        self._pace, self._slower = pace, slower
        self._began = self._last = time.monotonic()

    @classmethod
    def of(cls, how: PoolHow, slot: int) -> Metronome:
        """For the worker at a place of a job's pool."""
        slow = how.chaos.slow
        return cls(how.pace, slow[slot] if slot < len(slow) else 1.0)

    def wait(self, samples: int, task: Task) -> None:
        """Waits until so many samples of this lease may have been done; in short naps, for the worker may have to go."""
        now = time.monotonic()
        if self._pace is not None:
            until = self._began + samples * self._slower / self._pace
        else:
            until = now + (self._slower - 1) * (now - self._last)
        while (left := until - time.monotonic()) > 0 and not task.must_end:
            time.sleep(min(left, 0.05))
        self._last = time.monotonic()


@dataclass
class Loaded:
    """What a worker's process has of a job once it has its first lease."""

    application: Application
    model: nn.Module
    samples: Samples

    @classmethod
    def of(cls, application: Application, recipe: Optimizer) -> Loaded:
        """Builds the model, whose weights are overwritten, and opens the data."""
        samples = Samples(application.training_data(), application.what.seed)
        loaded = cls(application, application.build_model(), samples)
        make_optimizer(loaded.model, recipe)  # torch imports much for the first one
        return loaded


def compression_for(how: PoolHow) -> UpdateCompression | None:
    """How a job's updates travel; None: as they are."""
    told = how.communication
    if told.compression == "none":
        return None
    return UpdateCompression(told.compression, 0.01 if told.density is None else told.density)


def disturbed(outcome: Outcome, task: Task, chaos: Chaos) -> Outcome:
    """What a worker takes for its result: a lie, where its place is one of those that lie."""
    if task.slot not in chaos.lying:
        return outcome
    return lied(outcome, task.model, chaos.lies, seed=chaos.seed, unit=task.unit, attempt=task.attempt)


def corrupted(outcome: Outcome, task: Task, chaos: Chaos) -> Outcome:
    """What a worker hands in: its result, or something that is none."""
    return spoilt(outcome, chaos.corrupt, seed=chaos.seed, unit=task.unit, attempt=task.attempt)


@dataclass
class VolunteerWork:
    """The training of a lease, as the work of a pool.

    Arguments:
        application: of the job.
        how: of the job.
        rule: whose worker's side is followed.
    """

    application: Application
    how: PoolHow
    rule: MergeRule
    _loaded: Loaded | None = None
    _own: State = field(default_factory=dict)  # what the rule keeps at a worker; a new one begins without
    _residual: Arrays = field(default_factory=dict)  # what was left out of its updates

    def ready(self) -> None:
        """Builds the model and opens the data; see `muster.engine.pool.worker.Prepared`."""
        if self._loaded is None:
            self._loaded = Loaded.of(self.application, self.how.local.recipe)

    def __call__(self, task: Task) -> Outcome:
        began = time.monotonic()
        self.ready()
        assert self._loaded is not None
        outcome = disturbed(
            self._trained(task, self._loaded, Metronome.of(self.how, task.slot), began), task, self.how.chaos
        )
        compression = compression_for(self.how)
        if compression is not None and outcome.samples:
            outcome, self._residual = compression.encoded(outcome, task.model, self._residual, seed=task.unit)
        return corrupted(outcome, task, self.how.chaos)

    def _trained(self, task: Task, loaded: Loaded, metronome: Metronome, began: float) -> Outcome:
        io_s = time.monotonic() - began
        model, local, begin = loaded.model, self.how.local, task.work["begin"]
        handed = Handed(task.model, task.sent)
        load_weights(model, self.rule.start(handed, self._own))
        model.train()
        optimizer = make_optimizer(model, local.recipe)
        parameters = dict(model.named_parameters())
        correct = None
        if type(self.rule).gradient is not MergeRule.gradient:
            correct = partial(self.rule.gradient, handed=handed, own=self._own, lr=local.lr)
        steps, done, seen = 0, 0, 0
        with drawing_from((self.application.what.seed, 3, begin)):
            for first, last in self._stretches(task.samples):
                if task.must_end:
                    break
                fetching = time.monotonic()
                batch = loaded.samples.ordered(range(begin + first, begin + last))
                io_s += time.monotonic() - fetching
                optimizer.zero_grad()
                loaded.application.loss(model, batch).backward()  # type: ignore[no-untyped-call]
                if correct is not None:
                    correct_gradients(parameters, correct)
                optimizer.step()
                # A sample counts once it has been seen, in whichever of the lease's passes.
                steps, done, seen = steps + 1, done + last - first, max(seen, last)
                task.progress(seen)
                metronome.wait(done, task)
        if steps == 0:
            return Outcome({}, 0)  # gives the lease back
        trained = Trained(weights_of(model), seen, steps, local.lr)
        update, self._own = self.rule.hand_in(handed, trained, self._own)
        seconds = {"io": io_s, "compute": time.monotonic() - began - io_s}
        return Outcome(update.arrays, seen, steps, extra=update.extra, seconds=seconds)

    def _stretches(self, samples: int) -> Iterator[tuple[int, int]]:
        """First and last sample of each step, pass after pass."""
        for _ in range(self.how.local.epochs):
            for first in range(0, samples, self.how.local.batch):
                yield first, min(first + self.how.local.batch, samples)
