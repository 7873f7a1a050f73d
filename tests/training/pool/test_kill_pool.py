"""A pool's run whose workers, coordinator and supervisor are killed for real; every sample still counts once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine import runs
from muster.engine.run_folder import RunFolder
from muster.training.pool.account import lives, pool_folder

MUSTER = str(Path(sys.executable).with_name("muster"))


@pytest.mark.kill
def test_kills_of_workers_coordinator_and_supervisor_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: t\n"
        "what: {app: tests.counting, samples: 240}\n"
        "how: {shape: pool, workers: 2, rule: downpour, epochs: 3, lease: 24, pace: 60, local: {batch: 4, lr: 4},\n"
        "  price: {per_hour: 0.03, on_demand: 0.1},\n"
        "  chaos: {kill_every: 20s, join: 100ms, extra: 1, extra_every: 500ms, corrupt: 0.1, slow: [2], seed: 3201}}\n"
        f"where: {{runs: {tmp_path / 'runs'}}}\n"
    )
    # By this seed worker 0 lives for 2.3 s, and those that are needed besides for more than 20 s.
    process = runs.start(path)
    run = runs.newest(path)
    accepted(run, 4)
    os.kill(runs.process_named(run, "ray::_Coordinating"), signal.SIGKILL)
    accepted(run, 10)
    process.kill()
    process.wait()
    runs.wait_until_gone(run)
    before = status(run)
    assert before["status"] == "crashed"
    assert {worker["state"] for worker in before["workers"]} <= {"left", "killed", "lost"}
    runs.resume(run)

    # Downpour adds what a worker has done, and the counting application's weights count the uses of each sample.
    uses = load_file(run.model_path)["uses"]
    np.testing.assert_array_equal(uses, np.full(240, -3.0, np.float32))
    done = subprocess.run(
        [MUSTER, "pool", "replay", str(run.path), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["matches_record"] is True
    after = status(run)
    assert after["units"]["waiting"] == after["units"]["leased"] == after["units"]["aside"] == 0
    assert after["killed"] >= 1
    assert sum(worker["samples"] for worker in after["workers"]) == 3 * 240
    assert after["cost"]["cost"] > 0
    killed = [life for life in lives(run) if life.state in ("killed", "lost")]
    assert all(life.pid is not None and not Path(f"/proc/{life.pid}").exists() for life in killed)
    names = [life.worker for life in lives(run)]
    assert len(set(names)) == len(names) > 3
    rows = run.table("leases").to_pylist()
    assert len({row["lease"] for row in rows}) == len(rows)
    assert sum(row["samples"] for row in rows) == 3 * 240
    assert all(row["ended"] >= row["granted"] >= row["start"] for row in rows)


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "stopped")])
def test_a_pool_without_an_engine_hands_in_what_it_has_when_it_is_told_to_go(
    tmp_path: Path, number: signal.Signals, ended: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: t\n"
        "what: {app: tests.counting, samples: 240}\n"
        "how: {shape: pool, workers: 1, rule: downpour, epochs: 3, lease: 60, pace: 60, local: {batch: 4, lr: 4}}\n"
        f"where: {{engine: local, runs: {tmp_path / 'runs'}}}\n"
    )
    process = runs.start(path)
    run = runs.newest(path)
    accepted(run, 2)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert run.status() == ended
    before = status(run)
    assert before["units"]["leased"] == 0
    # Two leases of 60, and a part of the third.
    assert sum(worker["samples"] for worker in before["workers"]) > 120
    runs.resume(run)
    uses = load_file(run.model_path)["uses"]
    np.testing.assert_array_equal(uses, np.full(240, -3.0, np.float32))


def accepted(run: RunFolder, count: int) -> None:
    """Waits until so many results are on the ledger."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (pool_folder(run) / "ledger.sqlite").is_file() and status(run)["units"]["done"] >= count:
            return
        time.sleep(0.2)
    raise TimeoutError(f"no {count} results were accepted")


def status(run: RunFolder) -> dict[str, Any]:
    done = subprocess.run(
        [MUSTER, "pool", "status", str(run.path), "--json"], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
