"""Federated training with simulated parties: the coordinator, the ledger and the merge rules of a pool, on one machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from muster.engine import gang, hardware
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import Version
from muster.engine.pool.rules import Rules
from muster.engine.pool.trust import Trust
from muster.engine.pool.updates import Arrays
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.errors import RefusedInput
from muster.training.federated.local_training import (
    LocalTraining,
    Objective,
    Party,
    PartyData,
    load_weights,
    train_party,
    weights_of,
)
from muster.training.merge.compressed_updates import RESIDUAL, UpdateCompression, fold_of
from muster.training.merge.registry import described, get
from muster.training.merge.rule import Handed, MergeRule

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Simulated:
    """What a simulation has come to.

    Arguments:
        model: with the weights of the last round.
        history: what ``evaluate`` has returned, by round; ``round`` 0 is the first model.
        short: rounds that were merged without some of their parties, in words.
    """

    model: nn.Module
    history: list[dict[str, float]]
    short: list[str] = field(default_factory=list)

    @property
    def weights(self) -> Arrays:
        """Parameters and buffers by name."""
        return weights_of(self.model)


@dataclass(frozen=True)
class Sampled:
    """Rounds of parties: all of them, or a share that is drawn anew for every round.

    Arguments:
        sizes: samples of each party.
        count: rounds.
        fraction: of the parties that take part in a round, at least one.
        seed: of the draw.
    """

    sizes: Sequence[int]
    count: int
    fraction: float
    seed: int

    def units(self, number: int) -> list[tuple[dict[str, Any], int]]:
        """See `muster.engine.pool.rules.Rounds`."""
        parties = len(self.sizes)
        wanted = max(1, round(self.fraction * parties))
        chosen = (
            range(parties)
            if wanted == parties
            else sorted(
                np.random.default_rng([self.seed, number]).choice(parties, wanted, replace=False).tolist()
            )
        )
        return [
            ({"party": party, "keeper": f"party {party}", "round": number}, self.sizes[party])
            for party in chosen
        ]


@dataclass(frozen=True)
class PartyWork:
    """A party's share of a round, as the work of a pool.

    Arguments:
        model: is used for it; its weights are overwritten.
        parties, rule, local, seed, compression: as in `simulate`.
    """

    model: nn.Module
    parties: Sequence[Party]
    rule: MergeRule
    local: LocalTraining
    seed: int
    compression: UpdateCompression | None = None

    def __call__(self, task: Task) -> Outcome:
        party = self.parties[task.work["party"]]
        outcome = party_outcome(task, self.model, party, self.rule, self.local, self.seed)
        return outcome if self.compression is None else self.compression.of_party(outcome, task)


def party_outcome(
    task: Task,
    model: nn.Module,
    party: PartyData,
    rule: MergeRule,
    local: LocalTraining,
    seed: int,
    objective: Objective | None = None,
) -> Outcome:
    """What a party's share of a round comes to; arguments as in `train_party`."""
    update, own, done = train_party(
        model,
        party,
        rule,
        local,
        Handed(task.model, task.sent),
        {name: group for name, group in task.own.items() if name != RESIDUAL},
        seed=(seed, 2, task.work["round"], task.work["party"]),
        must_end=lambda: task.must_end,
        objective=objective,
    )
    samples = task.samples if done == 1 else max(1, int(done * task.samples))
    return Outcome(update.arrays, samples, update.steps, update.loss, update.extra, own)


def simulate(
    model_fn: Callable[[], nn.Module],
    parties: Sequence[Any],
    rule: str | MergeRule = "fedavg",
    rounds: int = 50,
    *,
    local: LocalTraining | None = None,
    fraction: float = 1.0,
    quorum: float = 1.0,
    seed: int = 0,
    workers: int = 0,
    engine: gang.Engine | None = None,
    evaluate: Evaluate | None = None,
    folder: str | Path | None = None,
    trust: Trust | None = None,
    compression: UpdateCompression | None = None,
    told: Callable[[str, str, str], None] = lambda kind, who, detail: None,
) -> Simulated:
    """Trains a model over parties that keep their data::

        parties = [(inputs[mine], labels[mine]) for mine in muster.federated.dirichlet(labels, 10, alpha=0.1)]
        found = muster.federated.simulate(make_model, parties, rule="fedavg", rounds=50)

    Arguments:
        model_fn: makes the model; called once.
        parties: the data of each: a pair of arrays or tensors (inputs, targets), or a data set of such pairs.
        rule: a merge rule of rounds, or its name.
        rounds: how many.
        local: what a party does in a round.
        fraction: of the parties that take part in a round.
        quorum: the share of a round's parties whose updates must come.
        seed: of the draw of parties, of the order of their samples and of what the model draws.
        workers: processes that parties are trained in; 0: in this one.
        engine: a started engine for them; by default one of their own, on this machine.
        evaluate: is given the model, in evaluation mode, before the first round and after every round.
        folder: keeps the ledger and all updates, so that a simulation that was killed goes on; None: nothing is kept.
        trust: whom of the workers to believe, such as `muster.trust.Replication`; None: everybody.
        compression: how updates travel, such as ``muster.federated.UpdateCompression("int8")``; None: as they are.
        told: is called with (kind, who, detail) of what happens.

    Raises:
        RefusedInput: an argument makes no sense; says which.
        BelowQuorum: too many parties of a round failed; names them.
    """
    how, chosen = local or LocalTraining(), get(rule) if isinstance(rule, str) else rule
    members = [Party(data) for data in parties]
    _check(chosen, members, rounds, fraction, quorum, workers)
    if trust is not None and max(1, workers) < trust.workers_needed:
        raise RefusedInput(
            f"trust: workers: found {workers}; expected at least {trust.workers_needed}, which check each other"
        )
    if engine is not None and engine.session is None:
        raise RefusedInput(
            f"engine: found a {engine.kind} one; workers need Ray: give an embedded one or a cluster's"
        )
    model = model_fn()
    first = weights_of(model)
    record = None if folder is None else Path(folder) / "history.jsonl"
    history = _read(record)
    short: list[str] = []

    def on_event(kind: str, who: str, detail: str) -> None:
        if kind == "short":
            short.append(detail)
        told(kind, who, detail)

    def on_version(version: Version) -> None:
        if evaluate is None or any(row["round"] == version.number for row in history):
            return
        load_weights(model, version.model)
        model.eval()
        history.append({"round": version.number, **evaluate(model)})
        if record is not None:
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(history[-1]) + "\n")

    course = Sampled([len(party) for party in members], rounds, fraction, seed)
    about = described(chosen) | {
        "rounds": rounds,
        "parties": len(members),
        "samples": sum(course.sizes),
        "fraction": fraction,
        "quorum": quorum,
        "seed": seed,
        "local": {each.name: getattr(how, each.name) for each in fields(how) if each.name != "loss"},
        **({} if compression is None else {"compression": compression.about()}),
    }
    with ExitStack() as stack:
        where = Path(folder) if folder is not None else Path(stack.enter_context(_temporary()))
        opened = partial(
            Coordinator,
            where.absolute(),
            model=first,
            fold=fold_of(chosen, compression),
            about=about,
            rounds=course,
            rules=Rules(quorum=quorum),
            trust=trust,
            durable=folder is not None,
        )
        work = PartyWork(model, members, chosen, how, seed, compression)
        if workers == 0:
            pool = stack.enter_context(opened(told=on_event, merged=on_version))
            Worker(pool, "in process", work).run()
            final = pool.wait(0)
        else:
            final = _on_engine(engine, opened, work, workers, on_event, on_version)
    load_weights(model, final.model)
    model.eval()
    return Simulated(model, history, short)


def _on_engine(
    engine: gang.Engine | None,
    opened: Callable[..., Coordinator],
    work: PartyWork,
    workers: int,
    told: Callable[[str, str, str], None],
    on_version: Callable[[Version], None],
) -> Version:
    """Has the parties trained by workers on an engine."""
    from muster.engine.pool.ray_pool import ray_pool

    threads = max(1, hardware.cores() // workers)
    with ExitStack() as stack:
        session = (engine or stack.enter_context(gang.engine("embedded"))).session
        assert session is not None  # `_check` has refused the others
        pool = stack.enter_context(
            ray_pool(
                session,
                lambda told, merged: opened(told=told, merged=merged),
                work,
                workers=workers,
                threads=threads,
                told=told,
            )
        )
        for version in pool.versions():
            on_version(version)
        return pool.newest()


def _read(record: Path | None) -> list[dict[str, float]]:
    """What rounds were measured at before; a line that a kill has cut is measured again."""
    if record is None or not record.is_file():
        return []
    rows = []
    for line in record.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    record.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="muster-pool-")


def _check(
    rule: MergeRule, parties: Sequence[Party], rounds: int, fraction: float, quorum: float, workers: int
) -> None:
    if rule.arrival != "round":
        raise RefusedInput(f"rule {rule.name} merges updates one by one; simulated parties come in rounds")
    if not parties:
        raise RefusedInput("parties: found none; give the data of at least one")
    for number, party in enumerate(parties):
        if len(party) == 0:
            raise RefusedInput(f"party {number} has no samples; leave it out")
    if rounds < 0:
        raise RefusedInput(f"rounds: found {rounds}; expected 0 or more")
    if workers < 0:
        raise RefusedInput(f"workers: found {workers}; expected 0 or more")
    for name, value in (("fraction", fraction), ("quorum", quorum)):
        if not 0 < value <= 1:
            raise RefusedInput(f"{name}: found {value}; expected above 0, up to 1")
