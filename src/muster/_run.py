"""`muster.run`: carries a job from its description to its report, through whatever happens in between.

The calling process becomes the run's supervisor: it starts an engine process, watches it, starts another when the engine
is lost, and closes the run. It never imports Ray or torch (but for a run of one local rank, which runs right here).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from muster import errors
from muster._progress import follow
from muster.engine import hardware, records
from muster.engine.processes import Warded, mark_of
from muster.engine.run_folder import EventLog, RunFolder
from muster.engine.trace import write_trace
from muster.errors import EngineLost, JobError, MusterError, Preempted, RankFailed, RefusedInput, Stopped
from muster.spec import Job, PoolHow, dump_job, load_application, load_job, located
from muster.training.preflight import preflight

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

_STATUS = {Stopped: "stopped", Preempted: "preempted"}


class Run:
    """A run: what it measured and what it left behind.

    Arguments:
        folder: its run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The run folder; docs/run-folder.md says what is in it."""
        return self.folder.path

    def status(self) -> str:
        """`running`, `done`, `failed`, `stopped`, `preempted` or `crashed`."""
        return self.folder.status()

    def metrics(self) -> pa.Table:
        """Every measured quality as an Arrow table: attempt, step, time, name, value, split, item."""
        return self.folder.table("metrics")

    def table(self, name: str) -> pa.Table:
        """A table of the run folder: `steps`, `collectives`, `spans`, `leases`, `metrics` or `events`."""
        return self.folder.table(name)

    def report(self) -> Path:
        """Writes the report from the run folder as it is now, and returns its path."""
        from muster.report import write_report

        return write_report(self.folder)

    def model(self) -> torch.nn.Module:
        """The trained model, rebuilt by its application with the weights of ``model.safetensors``.

        Raises:
            RefusedInput: the run has not left a model yet.
        """
        if not self.folder.model_path.is_file():
            raise RefusedInput(f"{self.folder.id} has no model yet; it is {self.status()}")
        from safetensors.torch import load_model

        job = load_job(self.path / "job.yaml", environ={})
        model = load_application(job.what.app)(job.what).build_model()
        load_model(model, str(self.folder.model_path))
        return model.eval()

    def __repr__(self) -> str:
        return f"<Run {self.folder.id}: {self.status()}>"


def run(job: Job | str | os.PathLike[str], overrides: Sequence[str] = (), *, progress: bool = True) -> Run:
    """Runs a job to its end.

    Arguments:
        job: a job, or the path of a job file.
        overrides: settings such as ``how.ranks=4``, as ``--set`` takes them.
        progress: whether to show a progress bar on a terminal.

    Raises:
        MusterError: the tree in `muster.errors` says which and when; `RefusedInput` before anything was started.
    """
    source = "" if isinstance(job, Job) else os.fspath(job)
    job = job if isinstance(job, Job) else load_job(source, overrides)
    with located(source, overrides) if source else contextlib.nullcontext():
        warnings = preflight(job)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    folder = RunFolder.create(
        job.where.runs,
        job.name,
        app=job.what.app,
        steps=0 if isinstance(job.how, PoolHow) else job.how.steps,  # a pool's follow from its data
        job_yaml=dump_job(job),
        environment=hardware.environment(source),
    )
    return _carry(folder, job, progress=progress)


def resume(folder: RunFolder, *, progress: bool = True) -> Run:
    """Continues a run from its newest intact checkpoint.

    Raises:
        RunLocked: another live process works on it.
        RefusedInput: it is done already.
    """
    if folder.state()["status"] == "done":
        raise RefusedInput(f"{folder.id} is done; its report is {folder.report_path}")
    path = folder.path / "job.yaml"
    job = load_job(path, environ={})
    with located(path, environ={}):
        preflight(job)
    return _carry(folder, job, progress=progress, again=True)


def _carry(folder: RunFolder, job: Job, *, progress: bool, again: bool = False) -> Run:
    with folder.lock(), Warded(mark_of(folder.path)) as warded:
        if again:
            records.recover_tables(folder.tables)
            folder.update(status="running", message="", attempt=folder.state()["attempt"] + 1, restarts=0)
        try:
            with follow(folder) if progress else contextlib.nullcontext():
                _attempts(folder, job, warded)
        except MusterError as error:
            _close(folder, _STATUS.get(type(error), "failed"), str(error))
            raise
        except BaseException as error:
            _close(folder, "failed", f"the supervisor failed: {error!r}")
            raise
        _close(folder, "done", "")
    return Run(folder)


def _attempts(folder: RunFolder, job: Job, warded: Warded) -> None:
    """Starts the engine, and again when it is lost, until the job has ended one way or the other."""
    processes = job.how.workers if isinstance(job.how, PoolHow) else job.how.ranks
    if job.where.engine == "local" and processes == 1:
        from muster.training.attempt import execute

        execute(folder, job, warded.folder, warded.mark)
        return
    while True:
        try:
            _one_engine(folder, warded)
            return
        except EngineLost as error:
            warded.clear()
            state = folder.state()
            log = EventLog(folder, "supervisor", state["attempt"])
            log("engine_lost", what=str(error))
            if state["restarts"] >= job.how.max_restarts:
                raise
            folder.update(restarts=state["restarts"] + 1, attempt=state["attempt"] + 1)
            log("restart", number=state["restarts"] + 1, of=job.how.max_restarts, because=str(error))
            log.close()


def _one_engine(folder: RunFolder, warded: Warded) -> None:
    """Runs one engine process to its end.

    Raises:
        MusterError: what the engine process ended with; EngineLost if it left no word.
    """
    warded.folder.mkdir(mode=0o700, exist_ok=True)
    outcome_path = warded.folder / "outcome.json"
    outcome_path.unlink(missing_ok=True)
    with (folder.path / "logs" / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "muster.training.attempt", folder.path, outcome_path, warded.folder],
            env=os.environ | warded.mark_environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process alone: it passes it on as a wish to save and stop
        )
    with _passing_on_signals(process, warded) as asked:
        while True:
            try:
                code = process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                warded.watch_the_warden()
    warded.clear()
    if asked.count(signal.SIGINT) > 1:
        raise Stopped("stopped at once; `muster resume` continues the run from its last checkpoint")
    if not outcome_path.is_file():
        if asked:  # it was still starting, and Ray's daemons do not survive that
            kind = Preempted if asked[0] == signal.SIGTERM else Stopped
            raise kind("ended before anything new could be saved; `muster resume` continues the run")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise EngineLost(f"the engine process {how}; see {folder.path / 'logs' / 'engine.log'}")
    _raise(json.loads(outcome_path.read_text(encoding="utf-8")))


def _raise(outcome: dict[str, Any]) -> None:
    if not outcome["error"]:
        return
    if outcome["error"] == "RankFailed":
        raise RankFailed(outcome["message"], rank=outcome["rank"], traceback=outcome["traceback"])
    kind = getattr(errors, outcome["error"], MusterError)
    if not issubclass(kind, (JobError, errors.MissingExtra)):
        raise kind(outcome["message"])
    raise RefusedInput(outcome["message"])


@contextlib.contextmanager
def _passing_on_signals(process: subprocess.Popen[bytes], warded: Warded) -> Iterator[list[int]]:
    """SIGTERM and the first Ctrl-C ask the engine to save and stop; the second Ctrl-C ends everything at once.

    Gives the list of the signals so far.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def terminate(number: int, _: object) -> None:
        asked.append(number)
        process.send_signal(signal.SIGTERM)

    def interrupt(number: int, _: object) -> None:
        asked.append(number)
        if asked.count(signal.SIGINT) == 1:
            print("\nsaving a checkpoint and stopping; Ctrl-C again stops at once", file=sys.stderr)
            process.send_signal(signal.SIGINT)
        else:
            warded.clear()

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {
        signal.SIGTERM: terminate,
        signal.SIGINT: interrupt,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for which, earlier in before.items():
            signal.signal(which, earlier)


def _close(folder: RunFolder, status: str, message: str) -> None:
    """Books the end of the run and writes its report."""
    log = EventLog(folder, "supervisor", folder.state()["attempt"])
    log(status, message=message)
    log.close()
    steps = folder.table("steps").column("step")
    records.close_tables(folder.tables)
    write_trace(folder)
    reached = max(
        steps.to_pylist(), default=folder.state()["step"]
    )  # a pool has no table of steps, and says itself
    folder.update(status=status, message=message, step=reached)
    Run(folder).report()


__all__ = ["Run", "resume", "run"]
