"""`muster profile`: its figures are those of the run folder it leaves, and what limits a job is found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import runs
from muster.engine.run_folder import RunFolder
from report.browser import opened

Muster = Callable[..., Any]

STEPS = 8


def profiled(folder: Path, what: str, how: str) -> dict[str, Any]:
    """What ``muster profile --json`` prints, of a job of two ranks."""
    job = runs.write_job(folder, what, f"steps: 900, batch: 8, ranks: 2, {how}", "engine: local")
    command = ["muster", "profile", str(job), "--steps", str(STEPS), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def waiting_for_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job whose samples take 10 ms each to make, four per rank and step, in the rank itself."""
    return profiled(
        tmp_path_factory.mktemp("io"), "app: tests.network, width: 700, delay_ms: 10", "loader_workers: 0"
    )


def test_the_json_has_the_documented_keys(waiting_for_data: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    found = waiting_for_data
    keys = [*found, *found["input"], *found["collectives"][0], *found["link"], *found["verdict"]]
    assert [key for key in keys if f"`{key}`" not in page] == []
    assert found["roofline"] is None or [key for key in found["roofline"] if f"`{key}`" not in page] == []


def test_exposed_and_waited_times_sum_to_the_columns_of_the_run(waiting_for_data: dict[str, Any]) -> None:
    found = waiting_for_data
    run = RunFolder(found["run"])
    rows = [row for row in run.table("steps").to_pylist() if 5 < row["step"] <= 5 + STEPS]
    assert len(rows) == 2 * STEPS
    classes = found["collectives"]
    per_rank = {name: sum(row[name] for row in rows) / 2 for name in ("comm", "idle", "stall", "comm_hidden")}
    assert sum(each["exposed_s"] for each in classes) == pytest.approx(per_rank["comm"], abs=1e-9)
    waited = per_rank["idle"] - per_rank["stall"]
    assert sum(each["waited_s"] for each in classes) == pytest.approx(waited, abs=1e-9)
    # the clock sees the loop go on a moment after the last collective ended; hidden time is short by as much
    assert sum(each["hidden_s"] for each in classes) == pytest.approx(
        per_rank["comm_hidden"], abs=2e-3 * STEPS
    )


def test_messages_are_the_bytes_of_the_models_gradients(waiting_for_data: dict[str, Any]) -> None:
    parameters = 8 * 700 + 700 + 700 * 700 + 700 + 700 + 1
    classes = waiting_for_data["collectives"]
    assert sum(each["bytes"] for each in classes) == 4 * parameters * STEPS
    assert sum(each["count"] for each in classes) % STEPS == 0
    for each in classes:
        mean = each["bytes"] / each["count"]
        assert each["low"] < mean <= (each["high"] or np.inf)


def test_a_job_that_waits_for_its_samples_is_limited_by_io(waiting_for_data: dict[str, Any]) -> None:
    found = waiting_for_data
    assert found["verdict"]["pillar"] == "io"
    assert "how.loader_workers" in found["verdict"]["sentence"]
    assert found["input"]["wait_s"] >= 0.04  # four samples of 10 ms
    assert found["input"]["loader_samples_per_s"] <= 2 / 0.010  # two ranks, one sample at a time each
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert sum(found["pillars_s"].values()) <= found["step_s"] * 1.001


def test_the_run_is_a_run_of_its_own_with_a_page(waiting_for_data: dict[str, Any]) -> None:
    run = RunFolder(waiting_for_data["run"])
    assert run.status() == "done"
    assert [each.id for each in RunFolder.list(run.path.parent)] == [run.id]
    with opened(Path(waiting_for_data["page"]), width=1000) as view:
        seen = view.look()
        assert seen["canvases"]
        assert seen["scroll_width"] <= seen["width"]
        assert view.console == []
        assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []
        assert waiting_for_data["verdict"]["sentence"] in view.run("document.body.textContent")


def test_one_rank_has_no_link_and_no_collectives(tmp_path: Path) -> None:
    job = runs.write_job(
        tmp_path, "app: tests.network, width: 300", "steps: 900, batch: 64, ranks: 1", "engine: local"
    )
    result = subprocess.run(
        ["muster", "profile", str(job), "--steps", "5"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert "5 steps of " in result.stdout
    assert "on 1 rank: " in result.stdout
    assert "all_reduce" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "error: --steps: found 1; expected at least 2 steps to measure\n"),
        (
            ["--set", "how.batch=1"],
            "error: --set: how.batch: a batch of 1 leaves some of 2 ranks without a sample; "
            "set how.batch to at least 2, or fewer how.ranks\n",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    muster: Muster, tmp_path: Path, arguments: list[str], message: str
) -> None:
    job = runs.write_job(tmp_path, "app: tests.network", "steps: 900, batch: 8, ranks: 2", "engine: local")
    result = muster("profile", job, *arguments)
    assert (result.exit_code, result.stderr) == (2, message)
    assert not (tmp_path / "runs").exists()
