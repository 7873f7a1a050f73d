"""The engine process of a run: starts the engine, supervises the gang, says how it ended.

``python -m muster.training.attempt RUN OUTCOME FOLDER`` is started by `muster.run`, which watches it; a run of one
local rank calls `execute` in its own process instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muster.engine import gang, hardware
from muster.engine.processes import MARK_VARIABLE
from muster.engine.run_folder import RunFolder
from muster.errors import EngineLost, MusterError, RankFailed
from muster.spec import Job, PoolHow, load_job

_REASONS = {signal.SIGTERM: "preempted", signal.SIGINT: "stopped"}


def execute(
    run: RunFolder, job: Job, folder: Path, mark: str, *, on_engine_lost: Callable[[str], None] | None = None
) -> None:
    """Runs a job's gang or pool on its engine until it is done.

    Arguments:
        run: the run folder, locked by this process or by its parent.
        job: the resolved job.
        folder: private to the run, with a short path.
        mark: the run's mark.
        on_engine_lost: called from a thread with what was lost, when a call into the engine may already hang for good.

    Raises:
        MusterError: as `muster.engine.gang.Supervision.supervise`.
    """
    asked: list[str] = []
    before = {
        number: signal.signal(number, lambda which, _: asked.append(_REASONS[signal.Signals(which)]))
        for number in _REASONS
    }
    try:
        _execute(run, job, folder, mark, lambda: asked[-1] if asked else None, on_engine_lost)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _execute(
    run: RunFolder,
    job: Job,
    folder: Path,
    mark: str,
    stop_asked: Callable[[], str | None],
    on_engine_lost: Callable[[str], None] | None,
) -> None:
    if isinstance(job.how, PoolHow):
        _execute_pool(run, job, folder, mark, stop_asked, on_engine_lost)
        return
    how, where = job.how, job.where
    device = _device(job)
    with (
        gang.engine(
            where.engine,
            cpus=max(hardware.cores(), where.max_ranks or how.ranks),
            address=where.address,
            private=(mark, folder),
            preload=["muster.training.synchronous"],
        ) as engine,
        contextlib.ExitStack() as closing,
    ):
        if on_engine_lost is not None:
            closing.enter_context(_guarded(engine, on_engine_lost))
        gpus = where.gpus_per_rank if where.gpus_per_rank is not None else float(device == "cuda")
        launcher = engine.launcher(
            cpus=where.cpus_per_rank,
            gpus=gpus,
            memory=where.memory_per_rank.bytes if where.memory_per_rank else 0,
        )
        limits = gang.Limits(
            ranks=how.ranks,
            min_ranks=where.min_ranks or how.ranks,
            max_ranks=where.max_ranks or how.ranks,
            max_restarts=how.max_restarts,
            hang_timeout_s=how.hang_timeout.seconds,
            threads=where.threads_per_rank,
            device=device,
            environment=engine.environment() | {MARK_VARIABLE: mark},
            folder=folder,
        )
        supervision = gang.Supervision(
            launcher, limits, run=run, stop_asked=stop_asked, engine_alive=engine.lost
        )
        supervision.supervise(_train)


def _execute_pool(
    run: RunFolder,
    job: Job,
    folder: Path,
    mark: str,
    stop_asked: Callable[[], str | None],
    on_engine_lost: Callable[[str], None] | None,
) -> None:
    from muster.training.pool.attempt import execute_pool

    with (
        gang.engine(job.where.engine, private=(mark, folder)) as engine,
        contextlib.ExitStack() as closing,
    ):
        if on_engine_lost is not None:
            closing.enter_context(_guarded(engine, on_engine_lost))
        execute_pool(run, job, engine, stop_asked)


@contextlib.contextmanager
def _guarded(engine: gang.Engine, on_engine_lost: Callable[[str], None]) -> Iterator[None]:
    """Watches the engine's daemons from a thread until the context ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if (lost := engine.lost()) is not None:
                on_engine_lost(lost)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _train(context: gang.RankContext) -> int:
    from muster.training.synchronous import train

    return train(context)


def _device(job: Job) -> str:
    """`cuda` where it is asked for, or where every rank of this machine can have a GPU."""
    assert not isinstance(job.how, PoolHow)
    if job.where.device != "auto":
        return job.where.device
    enough = 0 < job.how.ranks <= hardware.nvidia_gpus()
    return "cuda" if job.where.engine != "cluster" and enough else "cpu"


def main(run_path: str, outcome_path: str, folder: str) -> None:
    """Runs one attempt and leaves its outcome as JSON; no outcome means that this process was killed."""

    def leave(outcome: dict[str, Any]) -> None:
        draft = Path(f"{outcome_path}.tmp")
        draft.write_text(json.dumps(outcome), encoding="utf-8")
        draft.replace(outcome_path)

    def give_up(lost: str) -> None:
        leave(_outcome(EngineLost(lost)))
        os._exit(EngineLost.exit_code)

    run = RunFolder(run_path)
    try:
        job = load_job(run.path / "job.yaml", environ={})
        execute(run, job, Path(folder), os.environ[MARK_VARIABLE], on_engine_lost=give_up)
    except Exception as error:
        leave(_outcome(error))
    else:
        leave({"exit_code": 0, "error": "", "message": "", "traceback": "", "rank": None})


def _outcome(error: Exception) -> dict[str, Any]:
    """An exception as the supervisor reads it."""
    if isinstance(error, MusterError):
        blame = {"traceback": error.traceback, "rank": error.rank} if isinstance(error, RankFailed) else {}
        words = {"exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
        return {"traceback": "", "rank": None} | words | blame
    return {
        "exit_code": MusterError.exit_code,
        "error": "MusterError",
        "message": f"the engine process failed: {traceback.format_exception_only(error)[-1].strip()}",
        "traceback": traceback.format_exc(),
        "rank": None,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
