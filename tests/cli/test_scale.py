"""`muster scale`: refuses what cannot be before anything starts, goes on after a kill, says what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import runs
from muster.engine.processes import mark_of
from muster.engine.run_folder import RunFolder
from muster.spec.machine import cores
from report.browser import opened

Muster = Callable[..., Any]

WHAT = "app: tests.network, width: 32"
HOW = "steps: 1000, batch: 8, ranks: 2, schedule: {warmup: 100}, checkpoint_every: 1 steps"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--ranks", "1,two"],
            "--ranks: found '1,two'; expected different whole numbers from 1, such as 1,2,4",
        ),
        (["--ranks", "0,1"], "--ranks: found '0,1'; expected different whole numbers from 1, such as 1,2,4"),
        (["--ranks", "2,2"], "--ranks: found '2,2'; expected different whole numbers from 1, such as 1,2,4"),
        (["--ranks", "1", "--steps", "1"], "--steps: found 1; expected at least 2 steps to measure"),
        (["--ranks", "1", "--repeats", "0"], "--repeats: found 0; expected at least 1"),
        (
            ["--ranks", "1,9", "--strong"],
            "--ranks: 9 ranks cannot share how.batch (8), which strong scaling keeps; expected at most 8, or --weak",
        ),
        (
            ["--ranks", "1", "--set", "how.batch=9"],
            "--weak: how.batch (9) is no multiple of how.ranks (2), so no batch per rank can be kept; "
            "set how.batch to 8",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_anything_starts(
    muster: Muster, tmp_path: Path, arguments: list[str], message: str
) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: local")
    result = muster("scale", job, *arguments)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_ranks_that_the_machine_cannot_have_are_refused_with_the_line_of_the_job(
    muster: Muster, tmp_path: Path
) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded, memory_per_rank: 1000TB")
    result = muster("scale", job, "--ranks", "1,2")
    assert result.exit_code == 2
    assert f"{job}:4: where.memory_per_rank: " in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_something_else_is_left_alone(muster: Muster, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: local")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    result = muster("scale", job, "--ranks", "1", "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "no study's folder and not empty" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.fixture(scope="module")
def killed_and_continued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, set[str], Any]]:
    """A study at 1 and 2 ranks, killed in its third measurement and started again: folder, runs before, what it printed."""
    folder = tmp_path_factory.mktemp("study")
    job = runs.write_job(folder, WHAT, HOW, "engine: local")
    study = folder / "study"
    command = [
        "muster",
        "scale",
        str(job),
        "--ranks",
        "1,2",
        "--both",
        "--steps",
        "6",
        "--repeats",
        "1",
        "--json",
    ]
    command += ["-o", str(study)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(done := _done(study)) < 2:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert again.returncode == 0, again.stderr
    return study, done, again


def _done(study: Path) -> set[str]:
    return {run.id for run in RunFolder.list(study / "points") if run.state()["status"] == "done"}


def test_a_killed_study_goes_on_from_what_it_has_measured(
    killed_and_continued: tuple[Path, set[str], Any],
) -> None:
    study, before, again = killed_and_continued
    after = _done(study)
    assert before < after
    assert len(before) == 2
    assert (
        len(after) == 3
    )  # one rank with 4 and with 8 samples, two ranks with 8: weak and strong share the last
    assert len(RunFolder.list(study / "points")) == 3  # what was cut short is gone
    assert "2 of 3 measurements are on record" in again.stderr
    for run in RunFolder.list(study / "points"):
        assert runs.processes_of(run) == {}
        assert not (Path("/tmp") / f"muster-{mark_of(run.path)}").exists()


def test_the_json_has_the_documented_keys_and_numbers_that_follow_from_the_tables(
    killed_and_continued: tuple[Path, set[str], Any],
) -> None:
    study, _, again = killed_and_continued
    answer = json.loads(again.stdout)
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    keys = [*answer, *answer["studies"][0], *answer["studies"][0]["points"][0]]
    assert [key for key in keys if f"`{key}`" not in page] == []
    weak, strong = answer["studies"]
    assert [(one["ranks"], one["batch"]) for one in weak["points"]] == [(1, 4), (2, 8)]
    assert [(one["ranks"], one["batch"]) for one in strong["points"]] == [(1, 8), (2, 8)]
    assert weak["points"][1]["samples_per_s"] == strong["points"][1]["samples_per_s"]
    assert answer["threads_per_rank"] == max(1, cores() // 2)
    for one in (weak, strong):
        first, last = one["points"]
        ratio = last["samples_per_s"]["median"] / first["samples_per_s"]["median"]
        assert last["speed_up"]["median"] == pytest.approx(ratio)
        assert last["efficiency"]["median"] == pytest.approx(ratio / 2)
        assert sum(last["shares"].values()) == pytest.approx(1)
    runs_of = {run.state()["name"]: run for run in RunFolder.list(study / "points")}
    rows = [row for row in runs_of["r1-b4-1"].table("steps").to_pylist() if 5 < row["step"] <= 11]
    expected = 6 * 4 / sum(row["wall"] - row["stall"] for row in rows)
    assert weak["points"][0]["samples_per_s"]["median"] == pytest.approx(expected)


def test_nothing_but_steps_is_timed(killed_and_continued: tuple[Path, set[str], Any]) -> None:
    for run in RunFolder.list(killed_and_continued[0] / "points"):
        rows = [row for row in run.table("steps").to_pylist() if 5 < row["step"] <= 11]
        assert {row["stall"] for row in rows} == {0.0}  # the job asks for a checkpoint after every step
        assert not any(run.checkpoints.iterdir())


def test_a_study_of_other_settings_does_not_mix_with_it(
    muster: Muster, killed_and_continued: tuple[Path, set[str], Any]
) -> None:
    study, _, _ = killed_and_continued
    result = muster("scale", study.parent / "job.yaml", "--ranks", "1,2", "--steps", "7", "-o", study)
    assert result.exit_code == 2
    assert "holds a study of another job or other settings" in result.stderr


def test_a_study_on_record_is_printed_without_measuring(
    muster: Muster, killed_and_continued: tuple[Path, set[str], Any]
) -> None:
    study, _, again = killed_and_continued
    before = _done(study)
    result = muster(
        "scale", study.parent / "job.yaml", "--ranks", "1,2", "--steps", 6, "--repeats", 1, "--strong", "-o", study
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "strong scaling: the global batch is kept" in result.stdout
    sentence = json.loads(again.stdout)["studies"][1]["sentence"]
    assert sentence in result.stdout
    assert _done(study) == before


def test_the_page_stands_alone_and_draws_its_plots(
    killed_and_continued: tuple[Path, set[str], Any],
) -> None:
    page = killed_and_continued[0] / "scale.html"
    with opened(page, width=1000) as view:
        seen = view.look()
        assert len(seen["canvases"]) >= 2  # a pair for each kind of scaling that was asked for last
        assert seen["scroll_width"] <= seen["width"]
        assert view.console == []
        assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.skipif(os.cpu_count() == 1, reason="every rank contends on one core")
def test_ranks_beyond_the_cores_are_said_to_contend(muster: Muster, tmp_path: Path) -> None:
    from muster.tuning import scale

    job = runs.write_job(tmp_path, WHAT, HOW, "engine: local")
    settings = [f"how.batch={2 * (cores() + 1)}"]
    plan = scale.plan(str(job), settings, ranks=[1, cores() + 1], modes=["weak"], steps=5, repeats=1)
    assert any("contend" in note for note in plan.notes)
    assert plan.threads == 1
    plan = scale.plan(str(job), settings, ranks=[1, cores()], modes=["weak"], steps=5, repeats=1)
    assert not any("contend" in note for note in plan.notes)
