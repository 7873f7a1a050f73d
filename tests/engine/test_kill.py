"""A kill at any moment loses nothing that was saved, leaves nothing behind, and a resume ends at the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import runs
from muster.engine.run_folder import RunFolder

WHAT = "app: tests.network, seed: 3, delay_ms: 2, width: 700"
SLOWER = WHAT.replace("delay_ms: 2", "delay_ms: 20")
HOW = "ranks: 3, steps: 90, batch: 12, checkpoint_every: 15 steps, hang_timeout: 120s, evaluate_every: 40"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checksum of the weights of a run that nothing disturbed; three ranks and two buckets, so order of summation matters."""
    job = runs.write_job(tmp_path_factory.mktemp("undisturbed"), WHAT, HOW, "engine: local")
    run = runs.finish(job)
    assert {row["bucket"] for row in run.table("collectives").to_pylist()} >= {0, 1}
    return runs.digest(run)


def muster(*arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command line in a process of its own."""
    return subprocess.Popen(["muster", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed(job: Path, victim: str, rng: random.Random) -> RunFolder:
    """A run of which one process was killed at a random moment after its first checkpoint; nothing of it is left."""
    process = runs.start(job, "how.max_restarts=0")
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    time.sleep(rng.uniform(0.0, 0.6))
    os.kill(process.pid if victim == "supervisor" else runs.process_named(run, victim), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    runs.wait_until_gone(run)
    return run


@pytest.mark.kill
@pytest.mark.parametrize("victim", ["_RankActor", "supervisor", "raylet", "gcs_server"])
def test_resume_after_a_kill_ends_at_the_same_bits(victim: str, undisturbed: str, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    run = killed(job, victim, random.Random(victim))
    assert run.status() == ("crashed" if victim == "supervisor" else "failed")
    runs.resume(run)
    assert run.status() == "done"
    assert runs.digest(run) == undisturbed
    assert runs.steps_redone(run) <= 15 + 1  # one interval, and the step under way


@pytest.mark.kill
def test_a_lost_engine_is_replaced_without_being_asked(undisturbed: str, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    process = runs.start(job)
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    os.kill(runs.process_named(run, "raylet"), signal.SIGKILL)
    process.communicate(timeout=120)
    assert (process.returncode, run.status()) == (0, "done")
    assert run.state()["restarts"] == 1
    assert runs.digest(run) == undisturbed


@pytest.mark.kill
@pytest.mark.parametrize("after_s", [0.5, 2.0])
def test_a_preemption_while_the_engine_starts_is_no_loss_of_the_engine(
    after_s: float, tmp_path: Path
) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    process = runs.start(job)
    run = runs.newest(job)
    while not (run.path / "logs" / "engine.log").exists():
        time.sleep(0.02)
    time.sleep(after_s)
    process.terminate()
    process.communicate(timeout=300)
    assert run.status() == "preempted"
    assert run.state()["restarts"] == 0
    runs.wait_until_gone(run)


@pytest.mark.kill
def test_a_killed_rank_is_restarted_without_being_asked(undisturbed: str, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, SLOWER, HOW, "engine: local")
    process = runs.start(job)
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    os.kill(runs.process_named(run, "forkserver"), signal.SIGKILL)  # the youngest such process is a rank
    process.communicate(timeout=120)
    assert (process.returncode, run.status()) == (0, "done")
    kinds = [event["kind"] for event in run.events()]
    assert "rank_lost" in kinds
    assert "restart" in kinds
    assert runs.digest(run) == undisturbed


def test_sigterm_saves_and_exits_with_its_code(undisturbed: str, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, SLOWER, HOW.replace("15 steps", "1h"), "engine: local")
    process = muster("run", str(job))
    run = runs.newest(job)
    runs.wait_for(run, "first_step")
    process.terminate()
    process.communicate(timeout=300)
    assert (process.returncode, run.status()) == (75, "preempted")
    runs.resume(run)
    assert runs.digest(run) == undisturbed
    assert runs.steps_redone(run) == 0


def test_ctrl_c_saves_and_stops_and_twice_stops_at_once(undisturbed: str, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, SLOWER, HOW.replace("15 steps", "1h"), "engine: local")
    process = muster("run", str(job))
    run = runs.newest(job)
    runs.wait_for(run, "first_step")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert (process.returncode, run.status()) == (130, "stopped")
    second = muster("resume", str(run.path))
    runs.wait_for(run, "first_step", count=2)
    second.send_signal(signal.SIGINT)
    time.sleep(0.05)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=300)
    assert second.returncode != 0
    runs.wait_until_gone(run)
    runs.resume(run)
    assert runs.digest(run) == undisturbed


def test_a_run_that_is_worked_on_cannot_be_resumed(tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, SLOWER, HOW, "engine: local")
    process = runs.start(job)
    run = runs.newest(job)
    runs.wait_for(run, "first_step")
    second = subprocess.run(["muster", "resume", str(run.path)], capture_output=True, text=True, check=False)
    process.kill()
    process.communicate()
    runs.wait_until_gone(run)
    assert second.returncode == 2
    assert f"process {process.pid} on" in second.stderr


# ---- damaged checkpoints ----


@pytest.fixture
def half_done(tmp_path: Path) -> RunFolder:
    """A run killed after its second checkpoint, so that it has two."""
    job = runs.write_job(tmp_path, SLOWER, HOW, "engine: local")
    process = runs.start(job, "how.max_restarts=0")
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint", count=2)
    process.kill()
    process.communicate()
    runs.wait_until_gone(run)
    return run


def checkpoints(run: RunFolder) -> list[Path]:
    return sorted(run.checkpoints.glob("step-*"))


def test_a_flipped_bit_falls_back_to_the_checkpoint_before_and_names_the_file(
    half_done: RunFolder, undisturbed: str
) -> None:
    damaged = next(checkpoints(half_done)[-1].glob("*.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    runs.resume(half_done)
    refused = [event for event in half_done.events() if event["kind"] == "checkpoint_refused"]
    assert str(damaged) in refused[0]["detail"]["what"]
    assert "falling back" in (half_done.path / "logs" / "rank-00000.log").read_text()
    assert runs.digest(half_done) == undisturbed


def test_when_no_checkpoint_is_intact_the_run_ends_with_its_own_code(half_done: RunFolder) -> None:
    for checkpoint in checkpoints(half_done):
        (checkpoint / "manifest.json").write_text("{")
    ended = subprocess.run(
        ["muster", "resume", str(half_done.path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 5
    assert "is intact" in ended.stderr


def test_a_write_that_was_cut_short_is_not_a_checkpoint(half_done: RunFolder, undisturbed: str) -> None:
    newest = checkpoints(half_done)[-1]
    shutil.copytree(newest, newest.with_name(".step-00000085"))
    runs.resume(half_done)
    resumed = [event["detail"]["step"] for event in half_done.events() if event["kind"] == "resumed"]
    assert resumed == [runs.manifest(newest)["step"]] if newest.exists() else resumed
    assert runs.digest(half_done) == undisturbed
    assert not list(half_done.checkpoints.glob(".step*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, nearly full after one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_keeps_the_old_checkpoint_and_the_training_goes_on(
    small_disk: Path, undisturbed: str
) -> None:
    job = runs.write_job(small_disk, WHAT, HOW, "engine: local")
    process = runs.start(job, "how.keep_checkpoints=1", "how.steps=90")
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    ballast = small_disk / "ballast"
    deadline = time.monotonic() + 300.0
    with ballast.open("ab", buffering=0) as file:
        # Again and again, since a checkpoint under way when the disk is filled makes room when it replaces its elder.
        while not any(event["kind"] == "checkpoint_failed" for event in run.events()):
            assert time.monotonic() < deadline
            file.write(b"\0" * max(0, shutil.disk_usage(small_disk).free - 1_000_000))
            time.sleep(0.02)
    kept = checkpoints(run)
    assert kept
    process.kill()
    process.communicate()
    runs.wait_until_gone(run)
    ballast.unlink()
    runs.resume(run)
    failed = [event["detail"] for event in run.events() if event["kind"] == "checkpoint_failed"]
    assert "No space left" in failed[0]["why"]
    assert runs.digest(run) == undisturbed
