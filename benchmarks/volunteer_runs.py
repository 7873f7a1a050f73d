"""Volunteer runs as a user starts them: a job file, `muster run`, and what is killed meanwhile from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_runs import MusterCommand, runs
from volunteer_accounts import Accounts

from muster.engine.run_folder import RunFolder
from muster.training.pool.account import pool_folder

MUSTER = str(Path(sys.executable).with_name("muster"))
_COORDINATOR = b"ray::_Coordinating"


@dataclass(frozen=True)
class Job:
    """A volunteer job.

    Arguments:
        what: of the job file, without the seed.
        samples: of its training data.
        workers: processes.
        pace: samples a second of each.
        passes: over the data, for rules of arrivals.
        rounds: instead of passes, for rules of rounds.
        lease: samples of one.
        how: further keys.
        chaos: of the job file.
    """

    what: dict[str, Any]
    samples: int
    workers: int
    pace: float
    passes: int | None
    lease: int
    rounds: int | None = None
    how: dict[str, Any] = field(default_factory=dict)
    chaos: dict[str, Any] = field(default_factory=dict)

    def described(self, folder: Path, seed: int) -> dict[str, Any]:
        """As a job file; YAML has JSON in it."""
        length = {"epochs": self.passes} if self.rounds is None else {"rounds": self.rounds}
        return {
            "name": "volunteers",
            "what": {**self.what, "seed": seed},
            "how": {
                "shape": "pool",
                "workers": self.workers,
                "pace": self.pace,
                "lease": self.lease,
                **length,
                **self.how,
                "chaos": {**self.chaos, "seed": seed},
            },
            "where": {"engine": "embedded", "runs": str(folder / "runs")},
        }


@dataclass(frozen=True)
class Done:
    """A run that is over.

    Arguments:
        run: its folder.
        accounts: its books.
        accuracy: on the held-out data, in percent, at its end.
        killed: times of kills of the coordinator, seconds since 1970.
        started: when the command was, seconds since 1970.
    """

    run: RunFolder
    accounts: Accounts
    accuracy: float
    killed: list[float]
    started: float

    @property
    def pool(self) -> Path:
        """The folder of the pool."""
        return pool_folder(self.run)

    @property
    def pool_started(self) -> float:
        """When its engine was there and workers were asked for, seconds since 1970."""
        (started,) = [event["time"] for event in self.run.events() if event["kind"] == "pool_started"][:1]
        return float(self.run.state()["epoch_unix_s"] + started)

    @property
    def losses(self) -> list[float]:
        """When workers were lost, seconds since 1970, in order; not those that left when they were told to."""
        return sorted(_gone(self.run, ("killed", "worker_lost")).values())


def carried_out(
    job: Job,
    folder: Path,
    seed: int,
    meanwhile: Callable[[RunFolder, subprocess.Popen[bytes]], list[float]] | None = None,
    timeout_s: float = 3600.0,
) -> Done:
    """Runs a job to its end.

    Arguments:
        job: what.
        folder: a new one, for everything of it.
        seed: of the job and its disturbances.
        meanwhile: is called while it runs, and returns times of kills.
        timeout_s: for the run.

    Raises:
        RuntimeError: it did not end well; carries the end of what it printed.
    """
    folder.mkdir(parents=True)
    path = folder / "job.yaml"
    path.write_text(json.dumps(job.described(folder, seed), indent=1))
    started = time.time()
    command = MusterCommand("run", str(path), "--quiet", log=folder / "muster.log")
    killed: list[float] = []
    try:
        if meanwhile is not None:
            killed = meanwhile(runs.newest(path, 120.0), command.process)
        command.finish(timeout_s)
    finally:
        if command.process.poll() is None:
            command.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(60)
            command.process.kill()
    run = runs.newest(path)
    accuracy = [
        row for row in run.table("metrics").to_pylist() if row["name"] == "accuracy" and not row["item"]
    ]
    last = max(accuracy, key=lambda row: row["step"])
    return Done(run, Accounts.of(pool_folder(run), _gone(run)), 100 * last["value"], killed, started)


def _gone(run: RunFolder, kinds: Sequence[str] = ("killed", "worker_lost", "left")) -> dict[str, float]:
    """When each worker was gone, seconds since 1970; the first that was heard of it counts."""
    epoch = run.state()["epoch_unix_s"]
    gone: dict[str, float] = {}
    for event in run.events():
        if event["kind"] in kinds:
            gone.setdefault(event["detail"]["worker"], epoch + event["time"])
    return gone


# ---- killing from outside ----------------------------------------------------------------------------------


def coordinator_of(run: RunFolder) -> int | None:
    """Process id of the coordinator; None while there is none."""
    for pid in runs.processes_of(run):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_COORDINATOR):
                return pid
    return None


def replay(folder: Path) -> dict[str, Any]:
    """What `muster pool replay` says of a pool."""
    words = [MUSTER, "pool", "replay", str(folder), "--json"]
    found = subprocess.run(words, capture_output=True, check=False)  # ends with 1 where the model is another
    told: dict[str, Any] = json.loads(found.stdout)
    return told


def kill(pid: int) -> bool:
    """SIGKILL; False if the process was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
