"""`ls`, `show`, `doctor`, `schema`, `init` and the help say what they should, to people and to programs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muster.cli.command_line import app
from muster.engine.run_folder import RunFolder
from muster.errors import Preempted, RankFailed
from muster.spec import machine

Muster = Callable[..., Any]


def test_show_sums_each_ranks_pillars_over_the_surviving_lineage(muster: Muster, finished: RunFolder) -> None:
    summary = json.loads(muster("show", "last", "--json").stdout)
    # 4 steps of 1 s each survive; the third was done twice and counts once
    assert summary["pillars"]["0"] == pytest.approx(
        {"io": 0.4, "compute": 2, "comm": 1, "idle": 0.6, "wall": 4}
    )
    assert summary["pillars"]["1"] == pytest.approx(
        {"io": 0.8, "compute": 2, "comm": 1, "idle": 0.2, "wall": 4}
    )


def test_show_gives_the_documented_keys(muster: Muster, finished: RunFolder) -> None:
    summary = json.loads(muster("show", finished.id, "--json").stdout)
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [key for key in summary if f"`{key}`" not in page] == []
    assert summary["metrics"] == {"psnr_y": 31.5, "psnr_y_bicubic": 30.0}
    assert summary["initial_metrics"] == {"psnr_y": 30.0, "psnr_y_bicubic": 30.0}
    assert (summary["status"], summary["step"], summary["steps"], summary["restarts"]) == ("done", 4, 4, 1)
    assert [one["step"] for one in summary["checkpoints"]] == [2, 4]
    assert summary["paths"]["run"] == str(finished.path)
    assert summary["paths"]["model"] is None


def test_show_draws_a_bar_per_rank(muster: Muster, finished: RunFolder) -> None:
    result = muster("show", finished.path)
    assert result.exit_code == 0
    bars = [[line.count(shade) for shade in "▒█▓░"] for line in result.stdout.splitlines() if "██" in line]
    assert [sum(bar) for bar in bars] == [60, 60]  # 60 cells for 4 s: io, compute, comm, idle
    assert bars == [pytest.approx([6, 30, 15, 9], abs=1), pytest.approx([12, 30, 15, 3], abs=1)]
    assert "31.5" in result.stdout


def test_ls_lists_runs_oldest_first(muster: Muster, finished: RunFolder) -> None:
    rows = json.loads(muster("ls", "--json").stdout)
    assert [row["id"] for row in rows] == [finished.id]
    assert (rows[0]["status"], rows[0]["step"], rows[0]["path"]) == ("done", 4, str(finished.path))
    assert finished.id in muster("ls").stdout


def test_a_run_whose_process_is_gone_is_shown_as_crashed(muster: Muster, finished: RunFolder) -> None:
    finished.update(status="running")
    assert json.loads(muster("show", "last", "--json").stdout)["status"] == "crashed"
    with finished.lock():
        assert json.loads(muster("ls", "--json").stdout)[0]["status"] == "running"


def test_runs_are_looked_for_where_the_environment_says(
    muster: Muster, finished: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert json.loads(muster("ls", "--json").stdout) == []
    rows = json.loads(muster("ls", "--json", environ={"MUSTER_SET_WHERE__RUNS": "elsewhere"}).stdout)
    assert len(rows) == 1


@pytest.mark.parametrize("verb", ["show", "report", "resume"])
def test_a_run_that_does_not_exist_is_refused(verb: str, muster: Muster) -> None:
    result = muster(verb, "nothing")
    assert result.exit_code == 2
    assert result.stderr == "error: no run named 'nothing' in runs/; `muster ls` lists the runs\n"


def test_upscale_refuses_a_run_without_a_model(muster: Muster, finished: RunFolder) -> None:
    result = muster("upscale", "last", "photo.jpg", "-o", "big.png")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_init_prints_a_job_that_check_accepts(muster: Muster, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(muster("init", "superres").stdout)
    assert muster("check", "my.yaml").exit_code == 0


def test_schema_prints_json(muster: Muster) -> None:
    assert json.loads(muster("schema").stdout)["required"] == ["what", "how"]


def test_doctor_measures_this_machine(muster: Muster, tmp_path: Path) -> None:
    result = muster("doctor", "--json")
    answer = json.loads(result.stdout)
    checks = {check["name"]: check for check in answer["checks"]}
    assert {check["verdict"] for check in checks.values()} <= {"ok", "warn", "fail"}
    assert all(check["mend"] for check in checks.values() if check["verdict"] != "ok")
    assert checks["cores"]["measured"]["usable"] <= len(os.sched_getaffinity(0))
    assert checks["open files"]["measured"]["soft"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert checks["/dev/shm"]["measured"]["total_bytes"] == shutil.disk_usage("/dev/shm").total
    assert checks["runs folder"]["measured"]["folder"] == str(tmp_path)
    assert 0 < checks["runs folder"]["measured"]["fsync_s"] < 60
    assert 0 < checks["loopback"]["measured"]["round_trip_s"] < 1
    assert 0 < checks["clock"]["measured"]["resolution_s"] < 1e-3
    assert result.exit_code == (0 if answer["ok"] else 1)


def test_doctor_sees_what_is_wrong(muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        result = muster("doctor", "--json", environ={"RAY_ADDRESS": "elsewhere:6379"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["open files"]["verdict"] == "fail"
    assert "ulimit -n" in checks["open files"]["mend"]
    assert checks["temporary folder"]["verdict"] == "fail"
    assert "TMPDIR" in checks["temporary folder"]["mend"]
    assert "RAY_ADDRESS" in checks["environment"]["found"]


def test_the_longest_socket_name_that_doctor_lets_pass_can_be_bound() -> None:
    """The kernel's limit that the check knows, from the kernel itself."""
    for length, possible in ((107, True), (108, False)):
        path = f"/tmp/{'s' * (length - len('/tmp/'))}"
        with socket.socket(socket.AF_UNIX) as server:
            if possible:
                server.bind(path)
                os.unlink(path)
            else:
                with pytest.raises(OSError, match="too long"):
                    server.bind(path)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to take one away")
def test_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_help_lists_every_verb_with_examples_and_exit_codes(muster: Muster) -> None:
    text = muster("--help").stdout
    for verb in ("run", "check", "init", "schema", "ls", "show", "report", "resume", "upscale", "doctor"):
        assert f" {verb} " in text
        assert "Example: muster" in muster(verb, "--help").stdout
    for code in ("0 done", "1 failed", "2 input refused", "4 engine lost", "75 preempted", "130 stopped"):
        assert code in text
    assert muster("--version").stdout.startswith("muster 0.")


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from muster.cli.command_line import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print([name for name in ("torch", "ray", "pyarrow", "numpy", "pydantic", "ruamel.yaml") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_error_raised_on_purpose_is_one_message_and_its_exit_code(muster: Muster) -> None:
    def preempted() -> None:
        raise Preempted("stopped by SIGTERM [at step 7]")

    def failed() -> None:
        raise RankFailed(
            "rank 1 raised ValueError", rank=1, traceback="Traceback of [rank 1]\nValueError: x\n"
        )

    def defect() -> None:
        raise ZeroDivisionError("a defect")

    before = list(app.registered_commands)
    try:
        for function in (preempted, failed, defect):
            app.command()(function)
        result = muster("preempted")
        assert (result.exit_code, result.stderr) == (75, "error: stopped by SIGTERM [at step 7]\n")
        result = muster("failed")
        assert result.exit_code == 1
        assert result.stderr == "Traceback of [rank 1]\nValueError: x\nerror: rank 1 raised ValueError\n"
        assert isinstance(muster("defect").exception, ZeroDivisionError)
    finally:
        app.registered_commands[:] = before


def test_the_reference_page_is_that_of_the_models() -> None:
    script = Path(__file__).parents[2] / "scripts" / "generate_docs.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
