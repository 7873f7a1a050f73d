"""A pool's run through one life of its engine: coordinator and workers, evaluation beside them, the model at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from muster.engine import gang, hardware
from muster.engine.pool.chaos import Disturbance
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import Version
from muster.engine.pool.lease_records import LeaseWriter
from muster.engine.pool.ledger import Ledger
from muster.engine.pool.ray_pool import RayPool, ray_pool
from muster.engine.pool.rules import Rounds, Rules
from muster.engine.pool.updates import Arrays
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.engine.run_folder import EventLog, RunFolder
from muster.errors import MusterError, Preempted, Stopped
from muster.spec import Job, PoolHow, load_application
from muster.training.application import Application
from muster.training.export import export_model
from muster.training.federated.local_training import load_weights, weights_of
from muster.training.federated.simulation import Sampled
from muster.training.generators import seed_generators
from muster.training.merge.compressed_updates import fold_of
from muster.training.merge.registry import described
from muster.training.merge.rule import MergeRule
from muster.training.pool.check import check_pool, rule_of, trust_of
from muster.training.pool.evaluation import Evaluator
from muster.training.pool.lease_size import lease_samples
from muster.training.pool.machines import availability
from muster.training.pool.parties import ApplicationParties, dealt
from muster.training.pool.volunteers import Passes, RoundsOfLeases, VolunteerWork, compression_for

_GRACE_S: Final = 5.0  # for workers to hand in what they have when a run is stopped
_RECORD_EVERY_S: Final = 1.0

Told = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Coordination:
    """What a job's coordinator is opened with, in whichever process it is.

    Arguments:
        model: the first one.
        rule: that merges.
        rounds: what is to be done.
        how: of the job.
        about: what the pool's folder says of itself.
    """

    model: Arrays
    rule: MergeRule
    rounds: Rounds
    how: PoolHow
    about: Mapping[str, Any]

    def open(self, folder: Path, told: Told, merged: Callable[[Version], None]) -> Coordinator:
        """Begins, or goes on with what is in the folder."""
        how = self.how
        return Coordinator(
            folder,
            model=self.model,
            fold=fold_of(self.rule, compression_for(how)),
            about=self.about,
            rounds=self.rounds,
            rules=Rules(
                silence_s=how.silence.seconds, copies=how.copies, quorum=how.quorum, attempts=how.attempts
            ),
            trust=trust_of(how),
            told=told,
            merged=merged,
        )


@dataclass(frozen=True)
class Plan:
    """What a job comes to once its data are known.

    Arguments:
        coordination: the coordinator's part.
        work: does a unit.
        lease: samples of a lease; None for parties.
        units: that there are at least, over all rounds.
        evaluate_every: merges.
    """

    coordination: Coordination
    work: Callable[[Task], Outcome]
    lease: int | None
    units: int
    evaluate_every: int


def plan(application: Application, how: PoolHow) -> Plan:
    """Opens the data and says what is to be done.

    Raises:
        JobError: the data do not suit the job.
    """
    rule, seed = rule_of(how), application.what.seed
    seed_generators(seed)
    model = weights_of(application.build_model())
    application.prepare()
    data = application.training_data()
    samples = len(data)  # type: ignore[arg-type]
    about = described(rule) | {
        "samples": samples,
        "seed": seed,
        "local": how.local.model_dump(mode="json"),
        "quorum": how.quorum,
    }
    if (compression := compression_for(how)) is not None:
        about |= {"compression": compression.about()}

    def coordination(units: Rounds, /, **others: Any) -> Coordination:
        return Coordination(model, rule, units, how, about | others)

    if how.parties is not None:
        indices = dealt(application, data, how)
        assert how.rounds is not None
        sampled = Sampled([len(mine) for mine in indices], how.rounds, how.parties.fraction, seed)
        work = ApplicationParties(application, how, rule, indices)
        parties = how.parties.model_dump(mode="json")
        part = coordination(sampled, rounds=how.rounds, parties=parties)
        return Plan(part, work, None, how.rounds, how.evaluate_every or 1)
    lease, volunteers = lease_samples(how, samples), VolunteerWork(application, how, rule)
    if how.epochs is not None:
        a_pass = -(-samples // lease)
        part = coordination(Passes(samples, lease, how.epochs), lease=lease, epochs=how.epochs)
        return Plan(part, volunteers, lease, how.epochs * a_pass, how.evaluate_every or a_pass)
    assert how.rounds is not None
    leases = how.round_leases or how.workers
    part = coordination(
        RoundsOfLeases(lease, leases, how.rounds), lease=lease, rounds=how.rounds, round_leases=leases
    )
    every = how.evaluate_every or max(1, samples // (leases * lease))
    return Plan(part, volunteers, lease, how.rounds, every)


def execute_pool(
    run: RunFolder,
    job: Job,
    engine: gang.Engine,
    stop_asked: Callable[[], str | None],
) -> None:
    """Runs a pool to its end, or goes on with one.

    Arguments:
        run: the run folder, locked by this process or by its parent.
        job: the resolved job.
        engine: a started one.
        stop_asked: says ``preempted`` or ``stopped`` once the run is to end early.

    Raises:
        MusterError: the pool could not go on; says why.
        Preempted, Stopped: as was asked; `muster resume` goes on.
        EngineLost: the engine is no more.
    """
    check_pool(job)
    how = job.how
    assert isinstance(how, PoolHow)
    application: Application = load_application(job.what.app)(job.what)
    planned = plan(application, how)
    if job.where.threads_per_rank is None and engine.session is None:
        threads = hardware.cores()
    else:
        threads = job.where.threads_per_rank or max(1, hardware.cores() // how.workers)
    _Execution(run, job, application, planned, threads, stop_asked).run(engine)


class _Execution:
    """One life of a run."""

    def __init__(
        self,
        run: RunFolder,
        job: Job,
        application: Application,
        planned: Plan,
        threads: int,
        stop_asked: Callable[[], str | None],
    ) -> None:
        self._run, self._job, self._how = run, job, job.how
        self._application, self._plan, self._threads = application, planned, threads
        self._stop_asked = stop_asked
        self._folder = run.path / "pool"
        state = run.state()
        self._attempt, self._epoch = state["attempt"], state["epoch_unix_s"]
        self._events = EventLog(run, "pool", self._attempt)
        self._leases = LeaseWriter(run.tables, self._folder, self._epoch)
        self._recorded = 0.0

    def run(self, engine: gang.Engine) -> None:
        """From the first lease to the exported model."""
        self._run.update(world_size=self._how.workers, shape="pool")
        rule = self._plan.coordination.rule
        self._events(
            "pool_started", workers=self._how.workers, lease=self._plan.lease, units=self._plan.units,
            rule=rule.name, arrival=rule.arrival, resumed=(self._folder / "ledger.sqlite").is_file(),
        )  # fmt: skip
        try:
            with Evaluator(
                self._application, self._run, self._attempt, self._plan.coordination.model
            ) as evaluator:
                if engine.session is None:
                    final = self._in_process(evaluator)
                else:
                    final = self._on_engine(engine, evaluator)
                evaluator.last(final)
                self._export(final)
        finally:
            self._leases.close()
            self._record(final=True)
            self._events.close()

    def _on_engine(self, engine: gang.Engine, evaluator: Evaluator) -> Version:
        assert engine.session is not None
        chaos = self._how.chaos
        disturbance = Disturbance(
            kill_every_s=chaos.kill_every.seconds if chaos.kill_every else None,
            notice_s=chaos.notice.seconds if chaos.notice else 0.0,
            join_s=chaos.join.seconds if chaos.join else 0.0,
            extra=chaos.extra,
            extra_every_s=chaos.extra_every.seconds,
            seed=chaos.seed,
            presence=availability(self._how),
        )
        folder, coordination = self._folder.absolute(), self._plan.coordination
        with ray_pool(
            engine.session,
            lambda told, merged: coordination.open(folder, told, merged),
            self._plan.work,
            workers=self._how.workers,
            threads=self._threads,
            told=self._tell,
            every=self._plan.evaluate_every,
            disturbance=disturbance,
            known=self._known(),
        ) as pool:
            while True:
                news = pool.news()
                for version in news.versions:
                    evaluator.put(version)
                self._record()
                if news.over:
                    return pool.newest()
                if (reason := self._stop_asked()) is not None:
                    self._stop(pool, reason)

    def _stop(self, pool: RayPool, reason: str) -> None:
        pool.stop(_GRACE_S)
        for event in pool.final_news().events:
            self._tell(*event)
        raise _ended_by(reason)

    def _in_process(self, evaluator: Evaluator) -> Version:
        """The one worker in this process."""
        torch.set_num_threads(self._threads)

        def merged(version: Version) -> None:
            if version.number % self._plan.evaluate_every == 0:
                evaluator.put(version)
            self._record()

        with ExitStack() as stack:
            pool = stack.enter_context(
                self._plan.coordination.open(self._folder.absolute(), self._tell, merged)
            )
            stop = stack.enter_context(_watched(self._stop_asked))
            known = self._known()
            number = len(known)
            name = f"worker 0.{number}" if number else "worker 0"
            worker = Worker(pool, name, self._plan.work, stop=stop)
            self._tell("joined", name, "in this process")
            worker.run()
            self._tell("left", name, "")
            if stop.is_set() and not pool.over:
                raise _ended_by(self._stop_asked() or "stopped")
            return pool.wait(0)

    def _known(self) -> set[str]:
        """Names of workers of earlier lives."""
        if not (self._folder / "ledger.sqlite").is_file():
            return set()
        with Ledger(self._folder / "ledger.sqlite") as ledger:
            return {name.removeprefix("worker/") for name in ledger.noted_below("worker/")}

    def _tell(self, kind: str, who: str, detail: str) -> None:
        self._events(kind, worker=who, what=detail)

    def _record(self, *, final: bool = False) -> None:
        """Brings tables and progress up to date, now and then."""
        now = time.monotonic()
        if not final and now - self._recorded < _RECORD_EVERY_S:
            return
        self._recorded = now
        if not (self._folder / "ledger.sqlite").is_file():
            return
        if not final:
            self._leases.write()
        with Ledger(self._folder / "ledger.sqlite") as ledger:
            counts, standing = ledger.counts(), ledger.standing()
            opened = ledger.noted("opened", [])
        if self._plan.coordination.rule.arrival == "each":
            step, steps = standing.accepted, max(self._plan.units, sum(counts.values()))
        else:
            step, steps = max(0, len(opened) - (1 if standing.open else 0)), self._plan.units
        self._run.update(step=step, steps=steps)

    def _export(self, final: Version) -> None:
        """Leaves the model and its pictures."""
        model = self._application.build_model()
        load_weights(model, final.model)
        model.eval()
        metadata = self._application.metadata() | {"app": self._job.what.app}
        export_model(model, metadata, self._run.model_path)
        self._events("exported", file=self._run.model_path.name)
        pictures = self._run.path / "pictures"
        pictures.mkdir(exist_ok=True)
        self._application.illustrate(model, pictures)


def _ended_by(reason: str) -> MusterError:
    if reason == "preempted":
        return Preempted("preempted; every accepted update is on the disk, `muster resume` goes on")
    return Stopped("stopped; every accepted update is on the disk, `muster resume` goes on")


@contextmanager
def _watched(asked: Callable[[], str | None]) -> Iterator[threading.Event]:
    """An event that is set once somebody asks."""
    stop, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if asked() is not None:
                stop.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        ended.set()
        thread.join()
