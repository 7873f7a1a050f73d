"""A kill at any moment of a run with compressed gradients or planned buckets resumes to the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine import runs
from muster.engine.gang import Engine
from muster.engine.run_folder import RunFolder
from muster.spec import dump_job, load_job

WHAT = "app: tests.network, seed: 3, width: 96, delay_ms: 0"
SLOWER = WHAT.replace("delay_ms: 0", "delay_ms: 8")
HOW = "ranks: 2, steps: 36, batch: 8, checkpoint_every: 6 steps, hang_timeout: 120s"
SMALL = "buckets: 0.0003"  # MiB: five buckets
METHODS = {
    "topk": f"compression: topk, density: 0.02, {SMALL}",
    "oktopk": f"compression: oktopk, density: 0.02, {SMALL}",
    "powersgd": f"compression: powersgd, rank: 2, {SMALL}",
}


def write_job(folder: Path, what: str, communication: str) -> Path:
    folder.mkdir(exist_ok=True)
    return runs.write_job(folder, what, f"{HOW}, communication: {{{communication}}}", "engine: local")


def kill_supervisor(process: subprocess.Popen[bytes], run: RunFolder) -> None:
    process.kill()
    process.communicate(timeout=300)
    runs.wait_until_gone(run)
    assert run.status() == "crashed"


@pytest.mark.kill
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_rank_and_then_a_killed_supervisor_change_no_bit(
    method: str, local_engine: Engine, tmp_path: Path
) -> None:
    """What was not sent yet, thresholds and factors are in the checkpoint: without them the bits would differ."""
    undisturbed = runs.train_here(local_engine, write_job(tmp_path / "whole", WHAT, METHODS[method]))
    rows = undisturbed.table("collectives").to_pylist()
    assert {row["kind"] for row in rows} == {method}
    assert {row["bucket"] for row in rows} >= {0, 1, 2}

    process = runs.start(job := write_job(tmp_path / "killed", SLOWER, METHODS[method]))
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    time.sleep(0.2)
    os.kill(runs.process_named(run, "forkserver"), signal.SIGKILL)  # the youngest such process is a rank
    runs.wait_for(run, "restart")
    runs.wait_for(run, "resumed")
    runs.wait_for(run, "checkpoint", count=3)
    kill_supervisor(process, run)
    runs.resume(run)
    kinds = [event["kind"] for event in run.events()]
    assert "rank_lost" in kinds
    assert kinds.count("resumed") == 2
    assert runs.digest(run) == runs.digest(undisturbed)


@pytest.mark.kill
def test_planned_buckets_are_those_of_the_first_start_whenever_the_kill_comes(
    local_engine: Engine, tmp_path: Path
) -> None:
    """Killed the moment the choice is on the disk; compared with a run that was given that choice."""
    communication = "compression: auto, lossy: true, buckets: auto"
    process = runs.start(job := write_job(tmp_path / "killed", SLOWER, communication))
    run = runs.newest(job)
    record, deadline = run.path / "communication.json", time.monotonic() + 60
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_supervisor(process, run)
    chosen = record.read_bytes()
    assert not list(run.checkpoints.glob("step-*"))
    assert not run.table("steps").to_pylist()  # before the first counted step

    runs.resume(run)
    assert record.read_bytes() == chosen

    job = write_job(tmp_path / "whole", WHAT, communication)
    parsed = load_job(job, environ={})
    twin = RunFolder.create(
        parsed.where.runs, "t", app="", steps=36, job_yaml=dump_job(parsed), environment={}
    )
    shutil.copy(record, twin.path / record.name)
    runs.train_here(local_engine, job, twin)
    assert "communication" not in [event["kind"] for event in twin.events()]
    assert runs.digest(run) == runs.digest(twin)
