"""Real runs in processes of their own, for tests that kill them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from muster.engine.gang import Engine, Limits, Supervision
from muster.engine.processes import mark_of, marked_processes
from muster.engine.run_folder import RunFolder
from muster.spec import dump_job, load_job

_RUN = "import sys, muster; muster.run(sys.argv[1], sys.argv[2:], progress=False)"
_RESUME = """
import sys
from muster._run import resume
from muster.engine.run_folder import RunFolder
from muster.spec import dump_job, load_job
resume(RunFolder(sys.argv[1]), progress=False)
"""


def write_job(folder: Path, what: str, how: str, where: str) -> Path:
    """A job file whose runs are made in ``folder/runs``."""
    path = folder / "job.yaml"
    path.write_text(
        f"name: t\nwhat: {{{what}}}\nhow: {{shape: gang, {how}}}\nwhere: {{runs: {folder / 'runs'}, {where}}}\n"
    )
    return path


def start(job: Path, *settings: str) -> subprocess.Popen[bytes]:
    """Starts ``muster.run`` on a job in a process of its own."""
    return _python(_RUN, str(job), *settings)


def resume(run: RunFolder) -> None:
    """Resumes a run in a process of its own and waits for its end."""
    process = _python(_RESUME, str(run.path))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


def finish(job: Path, *settings: str) -> RunFolder:
    """Runs a job to its end."""
    process = start(job, *settings)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    return newest(job)


def train_here(engine: Engine, job: Path, run: RunFolder | None = None, **limits: Any) -> RunFolder:
    """Trains a job on an engine that is running already: no supervisor, no report, a fraction of the time.

    Arguments:
        engine: a started engine.
        job: the job file.
        run: a run to go on with; by default a new one is made.
        limits: of the gang, over those of the job.
    """
    from muster.training.synchronous import train

    parsed = load_job(job, environ={})
    if run is None:
        run = RunFolder.create(
            parsed.where.runs, "t", app="", steps=parsed.how.steps, job_yaml=dump_job(parsed), environment={}
        )
    ranks = parsed.how.ranks
    chosen = {"ranks": ranks, "min_ranks": ranks, "max_ranks": ranks, "hang_timeout_s": 60.0} | limits
    Supervision(engine.launcher(), Limits(**chosen), run=run).supervise(train)
    return run


def newest(job: Path, wait_s: float = 300.0) -> RunFolder:
    """The newest run of a job; waits until there is one."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        runs = RunFolder.list(job.parent / "runs")
        if runs:
            return runs[-1]
        time.sleep(0.05)
    raise TimeoutError("no run folder was made")


def wait_for(run: RunFolder, kind: str, count: int = 1, wait_s: float = 300.0) -> None:
    """Waits until a run has that many events of a kind."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if sum(event["kind"] == kind for event in run.events()) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} {kind} events; got {[event['kind'] for event in run.events()]}")


def digest(run: RunFolder) -> str:
    """Checksum of the trained weights."""
    return hashlib.sha256(run.model_path.read_bytes()).hexdigest()


def processes_of(run: RunFolder) -> dict[int, str]:
    """Everything alive that the run has started: process id and command."""
    return {pid: _command(pid) for pid in marked_processes(mark_of(run.path))}


def process_named(run: RunFolder, word: str) -> int:
    """The process of a run whose command contains a word; the last one started if there are several."""
    found = [pid for pid, command in processes_of(run).items() if word in command]
    assert found, f"no {word} among {processes_of(run)}"
    return max(found)


def wait_until_gone(run: RunFolder, wait_s: float = 30.0) -> float:
    """Waits until no process of a run is left; returns how long that took (s)."""
    began = time.monotonic()
    while time.monotonic() < began + wait_s:
        if not processes_of(run):
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"still alive after {wait_s} s: {processes_of(run)}")


def steps_redone(run: RunFolder) -> int:
    """How many steps of rank 0 were done more than once."""
    steps = [row["step"] for row in run.table("steps").to_pylist() if row["rank"] == 0]
    return len(steps) - len(set(steps))


def manifest(checkpoint: Path) -> dict[str, object]:
    return json.loads((checkpoint / "manifest.json").read_text())


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""
