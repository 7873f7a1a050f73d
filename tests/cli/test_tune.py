"""`muster tune` refuses what cannot be before anything starts, and its JSON is documented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import runs
from muster.engine.processes import marked_processes
from muster.engine.run_folder import RunFolder
from muster.spec import load_job
from muster.tuning._intervals import median_interval
from muster.tuning._levers import Bf16, Proposal
from muster.tuning._measured import StepTimes
from muster.tuning._verdict import Verdict
from muster.tuning.tune import Tried, Tuning

Muster = Callable[..., Any]

HOW = "steps: 900, batch: 8, ranks: 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--budget", "ten"],
            "--budget: found 'ten'; expected a duration with its unit (h, m, s or ms), such as 30s or 5m",
        ),
        (["--steps", "1"], "--steps: found 1; expected at least 2"),
        (["--pairs", "2"], "--pairs: found 2; expected at least 3"),
        (["-o", "nowhere/job.yaml"], "-o: there is no folder nowhere; name a file in one that exists"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_anything_starts(
    muster: Muster, tmp_path: Path, arguments: list[str], message: str
) -> None:
    job = runs.write_job(tmp_path, "app: tests.network", HOW, "engine: local")
    result = muster("tune", job, *arguments)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_a_wrong_job_is_refused_with_its_line(muster: Muster, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, "app: tests.network", HOW.replace("batch: 8", "batch: 1"), "engine: local")
    result = muster("tune", job)
    assert result.exit_code == 2
    assert f"{job}:3: how.batch: " in result.stderr


def test_a_budget_that_is_spent_at_once_leaves_all_untried_and_writes_nothing(
    muster: Muster, tmp_path: Path
) -> None:
    job = runs.write_job(
        tmp_path, "app: tests.network", HOW.replace("ranks: 2", "ranks: 1"), "engine: embedded"
    )
    result = muster("tune", job, "--budget", "1ms", "--steps", "2", "--set", "where.engine=local")
    assert result.exit_code == 0, result.stderr
    assert "not tried" in result.stdout
    assert "no change is surely faster; nothing is written" in result.stdout
    assert [path.name for path in tmp_path.glob("*.yaml")] == ["job.yaml"]
    folder = next((tmp_path / "runs").iterdir())
    assert [run.status() for run in RunFolder.list(folder / "trials")] == ["done"]
    assert (folder / "tune.html").is_file()
    assert not any(marked_processes(run.id) for run in RunFolder.list(folder / "trials"))


def test_the_json_has_the_documented_keys(tmp_path: Path) -> None:
    job = load_job(runs.write_job(tmp_path, "app: tests.network", HOW, "engine: local"))
    times = StepTimes(
        2, 20, 100.0, 0.08, {"io": 0.02, "compute": 0.06}, 0.0, {"io": 0.02, "compute": 0.06}, (0.5, 0)
    )
    limit = Verdict("compute", 0.75, "Compute limits this job.")
    tried = Tried(Proposal(Bf16(), "bf16", "why"), "fp32", "kept", median_interval([1.2, 1.3, 1.4]))
    answer = Tuning(
        job=job,
        folder=tmp_path,
        before=times,
        after=times,
        limit_before=limit,
        limit_after=limit,
        tried=(tried,),
        gain=tried.ratio,
        tuned=tmp_path / "job.tuned.yaml",
        seconds=60.0,
    ).as_json()
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    keys = [*answer, *answer["before"], *answer["gain"], *answer["proposals"][0]]
    assert [key for key in keys if f"`{key}`" not in page] == []
    assert answer["gain"] == {"median": 1.3, "low": 1.2, "high": 1.4, "count": 3}
