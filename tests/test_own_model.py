"""The engine knows no application: one that lives in another package trains, survives a kill and reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import runs
from muster.engine.run_folder import RunFolder

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_model"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as a separate package, installed into a folder of its own."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", target, EXAMPLE], check=True, timeout=120)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")]))


def test_a_model_of_ones_own_takes_at_most_sixty_lines() -> None:
    assert len((EXAMPLE / "own_model.py").read_text().splitlines()) <= 60


def test_it_trains_resumes_after_a_kill_and_reports(installed: None, tmp_path: Path) -> None:
    command = ["muster", "run", str(EXAMPLE / "job.yaml"), "--set", f"where.runs={tmp_path / 'runs'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = runs.newest(tmp_path / "job.yaml")
    runs.wait_for(run, "checkpoint", count=2)
    process.kill()
    process.communicate()
    runs.wait_until_gone(run)
    assert run.status() == "crashed"
    resumed = subprocess.run(["muster", "resume", str(run.path)], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert RunFolder(run.path).status() == "done"
    final = [row for row in run.table("metrics").to_pylist() if row["step"] == 1500 and not row["item"]]
    assert final[-1]["name"] == "accuracy"
    assert (
        final[-1]["value"] >= 0.98
    )  # the spirals can be told apart: 2000 noisy points, 200 clean ones held out
    assert "spirals" in run.report_path.read_text()
