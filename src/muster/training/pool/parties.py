"""Simulated parties from a job file: an application's training data, dealt to parties that each train on their own part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.engine.pool.worker import Outcome, Task
from muster.errors import JobError, RefusedInput
from muster.spec import PoolHow
from muster.spec.pool_how import Local
from muster.training.application import Application
from muster.training.federated.local_training import LocalTraining
from muster.training.federated.partition import by_class, dirichlet, even
from muster.training.federated.simulation import party_outcome
from muster.training.merge.rule import MergeRule
from muster.training.pool.samples import PartySamples, labels_of
from muster.training.pool.volunteers import Loaded, Metronome, compression_for, corrupted, disturbed


def dealt(application: Application, data: Any, how: PoolHow) -> list[npt.NDArray[np.int64]]:
    """Indices of each party's samples.

    Raises:
        JobError: they cannot be dealt so; says why.
    """
    parties, seed = how.parties, application.what.seed
    assert parties is not None
    try:
        if parties.partition == "even":
            return even(len(data), parties.count, seed=seed)
        labels = labels_of(application, data, key="how.parties.partition")
        if parties.partition == "by_class":
            return by_class(labels, parties.count, stretches=parties.stretches or 2, seed=seed)
        return dirichlet(labels, parties.count, parties.alpha or 0.5, seed=seed, least=parties.least)
    except JobError:
        raise
    except RefusedInput as error:
        found, _, mend = str(error).partition("; ")
        raise JobError(found, mend=mend, key="how.parties") from error


def local_training(local: Local) -> LocalTraining:
    """A job's local training as federated training knows it."""
    return LocalTraining(
        epochs=local.epochs,
        batch=local.batch,
        lr=local.lr,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        steps=local.steps,
    )


@dataclass
class ApplicationParties:
    """A party's share of a round with an application's model, data and loss, as the work of a pool.

    Arguments:
        application, how: of the job.
        rule: whose party's side is followed.
        indices: of each party's samples.
    """

    application: Application
    how: PoolHow
    rule: MergeRule
    indices: Sequence[npt.NDArray[np.int64]]
    _loaded: Loaded | None = None

    def ready(self) -> None:
        """Builds the model and opens the data; see `muster.engine.pool.worker.Prepared`."""
        if self._loaded is None:
            self._loaded = Loaded.of(self.application, self.how.local.recipe)

    def __call__(self, task: Task) -> Outcome:
        began = time.monotonic()
        self.ready()
        assert self._loaded is not None
        io_s = time.monotonic() - began
        loaded, compression = self._loaded, compression_for(self.how)
        party = PartySamples(loaded.samples, self.indices[task.work["party"]], task.work["round"])
        metronome = Metronome.of(self.how, task.slot)
        local = local_training(self.how.local)
        outcome = party_outcome(
            task, loaded.model, party, self.rule, local, self.application.what.seed, loaded.application.loss
        )
        io_s += party.fetching_s
        metronome.wait(outcome.steps * local.batch, task)
        seconds = {"io": io_s, "compute": time.monotonic() - began - io_s}
        outcome = disturbed(replace(outcome, seconds=seconds), task, self.how.chaos)
        if compression is not None:
            outcome = compression.of_party(outcome, task)
        return corrupted(outcome, task, self.how.chaos)
