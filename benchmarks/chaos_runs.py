"""Runs that get killed: starting one, finding its processes, killing one of them at a chosen moment, resuming.

What a run is asked for (its processes, events, checksum) is what the kill tests of the suite ask: `tests/engine/runs.py`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from muster.engine.processes import mark_of
from muster.engine.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
APPLICATIONS = ROOT / "tests" / "applications"
sys.path += [str(ROOT / "tests"), str(APPLICATIONS)]

from engine import runs  # noqa: E402 - found through the path above

MUSTER = str(Path(sys.executable).with_name("muster"))
GONE_WITHIN_S = 30.0

VICTIMS = ("rank", "supervisor", "engine", "raylet", "gcs_server")


def environment() -> dict[str, str]:
    """The environment of a run: that of this process, with the applications of the tests."""
    path = os.pathsep.join(filter(None, [str(APPLICATIONS), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path}


class MusterCommand:
    """A `muster` command under way, as a person would have started it.

    Arguments:
        arguments: of the command.
        log: file for what it prints.
    """

    def __init__(self, *arguments: str, log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [MUSTER, *arguments],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.log = log

    def finish(self, timeout_s: float = 600.0) -> None:
        """Waits for a good end.

        Raises:
            RuntimeError: it ended with another code than 0; carries the end of what it printed.
        """
        if self.process.wait(timeout_s) != 0:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"muster ended with code {self.process.returncode}:\n{words}")


def victims_of(run: RunFolder, victim: str, supervisor: int) -> list[int]:
    """The process ids that a victim's name stands for, in order of process id."""
    if victim == "supervisor":
        return [supervisor]
    found = []
    for pid in runs.processes_of(run):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:  # it ended while we looked
            continue
        name = os.path.basename(words[0])
        if (
            (victim in ("raylet", "gcs_server") and name == victim.encode())
            or (victim == "rank" and words[0].startswith(b"ray::_RankActor"))
            or (victim == "engine" and b"muster.training.attempt" in words)
        ):
            found.append(pid)
    return sorted(found)


def left_behind(run: RunFolder, supervisor: subprocess.Popen[bytes]) -> set[int]:
    """Everything alive of a run: what it marked, its supervisor, and its warden, which has the mark as an argument."""
    alive = set(runs.processes_of(run))
    if supervisor.poll() is None:
        alive.add(supervisor.pid)
    needle = mark_of(run.path).encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if needle in Path(f"/proc/{entry}/cmdline").read_bytes():
                    alive.add(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return alive


def drafts(run: RunFolder) -> list[Path]:
    """Checkpoints being written: hidden folders that have not been given their name yet."""
    return [path for path in run.checkpoints.glob(".step-*") if not path.name.endswith(".old")]


@dataclass(frozen=True)
class Kill:
    """What is known of one kill.

    Arguments:
        run: the run.
        victim: what was killed.
        moment_s: how long after the first checkpoint.
        writing: the step of the checkpoint that was being written when the victim had got its signal, or None.
        step: the last step that was done then, by the records and the pace of the steps before.
        gone_s: how long until no process of the run was left, or None if some were after 30 s.
        status: of the run after that.
    """

    run: RunFolder
    victim: str
    moment_s: float
    writing: int | None
    step: int
    gone_s: float | None
    status: str


class TooLate(Exception):
    """The run was over, or the write finished, before the kill."""


def kill_one(
    job: Path, settings: list[str], victim: str, *, after_s: float | None, rng: random.Random
) -> Kill:
    """Starts a run and kills one of its processes after its first checkpoint.

    Arguments:
        job: the job file, in a folder of its own.
        settings: as `--set` takes them.
        victim: one of `VICTIMS`.
        after_s: how long after the first checkpoint; None: as soon as the next one is being written.
        rng: chooses among several victims.

    Raises:
        TooLate: see there; nothing is left of the run.
    """
    options = [word for setting in [*settings, "how.max_restarts=0"] for word in ("--set", setting)]
    command = MusterCommand("run", str(job), "--quiet", *options, log=job.parent / "muster.log")
    run: RunFolder | None = None
    try:
        run = runs.newest(job)
        runs.wait_for(run, "checkpoint")
        first = time.monotonic()
        pids = victims_of(run, victim, command.process.pid)
        if not pids:
            raise TooLate
        pid = rng.choice(pids)
        if after_s is None:
            _await_write(run, command)
        else:
            time.sleep(max(0.0, first + after_s - time.monotonic()))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            raise TooLate from None
        killed, killed_at, moment_s = time.monotonic(), run.now(), time.monotonic() - first
        writing = [int(path.name.rpartition("-")[2]) for path in drafts(run)]
        if after_s is None and not writing:
            raise TooLate
        gone_s = _await_end(run, command, killed)
        if command.process.poll() == 0:
            raise TooLate
        step = max([_last_step(run, killed_at), *writing])
        return Kill(run, victim, moment_s, max(writing, default=None), step, gone_s, run.status())
    finally:
        _end(command, run)


def _await_write(run: RunFolder, command: MusterCommand) -> None:
    while not drafts(run):
        if command.process.poll() is not None:
            raise TooLate
        time.sleep(0.001)


def _await_end(run: RunFolder, command: MusterCommand, killed: float) -> float | None:
    """Seconds until no process of the run was left; None after 30 s."""
    while time.monotonic() < killed + GONE_WITHIN_S:
        if not left_behind(run, command.process):
            return time.monotonic() - killed
        time.sleep(0.05)
    return None


def _end(command: MusterCommand, run: RunFolder | None) -> None:
    """Ends a run that is still going; its warden then reaps what it started, which is waited for."""
    if command.process.poll() is None:
        command.process.kill()
        command.process.wait()
        if run is not None:
            _await_end(run, command, time.monotonic())


def _last_step(run: RunFolder, at: float) -> int:
    """The last step that rank 0 had done at a moment of the run-wide clock.

    A killed rank takes up to a second of rows with it that were not in their file yet; those steps are counted by the
    pace of the ones before, which errs upwards (a stall for a checkpoint would have been longer).
    """
    rows = [row for row in run.table("steps").to_pylist() if row["rank"] == 0]
    last = max(rows, key=lambda row: row["step"])
    walls = sorted(row["wall"] - row["stall"] for row in rows)
    pace = walls[len(walls) // 2]
    return last["step"] + max(0, int((at - last["start"] - last["wall"]) / pace))


def weights_digest(run: RunFolder) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of the trained model, in order of name.

    Not of the file: safetensors writes the entries of its header's metadata in an order that changes from run to run.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run.model_path).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def resume(kill: Kill, log: Path) -> int:
    """Resumes a killed run to its end; returns the step at which it took up.

    Raises:
        RuntimeError: it did not end well.
    """
    MusterCommand("resume", str(kill.run.path), "--quiet", log=log).finish()
    resumed = [event["detail"]["step"] for event in kill.run.events() if event["kind"] == "resumed"]
    return resumed[-1] if resumed else 0
