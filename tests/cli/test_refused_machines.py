"""A job that this machine or its data cannot carry is refused by `check` before anything starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muster.errors import UnsupportedPlatform
from muster.spec import machine, platform_check

Muster = Callable[..., Any]


@pytest.fixture
def job(valid: str, tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(valid)
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (128, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused_in_a_sentence(platform: str) -> None:
    with pytest.raises(
        UnsupportedPlatform, match=r"^Muster runs on Linux only, and this is (macOS|Windows); use"
    ):
        platform_check(platform)


def test_a_valid_job_is_ok(job: Path, muster: Muster) -> None:
    result = muster("check", job)
    assert (result.exit_code, result.stdout) == (
        0,
        "ok: superres (vision.superres), 600 steps on 2 ranks, engine embedded\n",
    )


def test_more_ranks_than_cores_are_a_warning(job: Path, muster: Muster) -> None:
    ranks = machine.cores() + 1
    result = muster("check", job, "--set", f"how.ranks={ranks}", "--set", "how.batch=999")
    assert result.exit_code == 0
    assert f"warning: {ranks} ranks share {machine.cores()} core" in result.stderr
    answer = json.loads(
        muster("check", job, "--set", f"how.ranks={ranks}", "--set", "how.batch=999", "--json").stdout
    )
    assert answer["ok"] is True
    assert len(answer["warnings"]) == 1
    assert answer["job"]["how"]["ranks"] == ranks


@pytest.mark.skipif(machine.nvidia_gpus() > 0, reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(job: Path, muster: Muster) -> None:
    result = muster("check", job, "--set", "where.device=cuda")
    assert result.exit_code == 2
    assert (
        "--set: where.device: this machine shows no NVIDIA GPU; set where.device to cpu or auto"
        in result.stderr
    )


def test_a_cluster_that_does_not_answer_is_refused(job: Path, muster: Muster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    text = job.read_text().replace("engine: embedded", f"engine: cluster\n  address: 127.0.0.1:{port}")
    job.write_text(text)
    result = muster("check", job)
    assert result.exit_code == 2
    assert f"{job}:20: where.address: no cluster answers at 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("where.cpus_per_rank=4096", "where.cpus_per_rank: 2 ranks with 4096 cores each do not fit"),
        ("where.memory_per_rank=4000TB", "where.memory_per_rank: 2 ranks with 4000TB each need more"),
        ("where.runs=my.yaml", "my.yaml is not a folder; name a folder for the runs"),
    ],
)
def test_more_than_the_machine_has_is_refused(setting: str, message: str, job: Path, muster: Muster) -> None:
    result = muster("check", job, "--set", setting)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_folder_is_refused_at_its_line(job: Path, muster: Muster) -> None:
    job.write_text(job.read_text().replace("sample-photos", "no/such/folder"))
    result = muster("check", job)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {job}:7: what.data: ")
    assert "no/such/folder does not exist; give a folder of JPEG, PNG or WebP photographs" in result.stderr


def test_a_folder_without_photographs_is_refused(job: Path, muster: Muster, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    job.write_text(job.read_text().replace("sample-photos", "empty"))
    result = muster("check", job)
    assert result.exit_code == 2
    assert f"{job}:7: what.data: " in result.stderr
    assert "holds no photograph" in result.stderr


def test_an_unreadable_photograph_is_named(job: Path, muster: Muster, photographs: Path) -> None:
    (photographs / "broken.jpg").write_bytes(b"no picture at all")
    job.write_text(job.read_text().replace("sample-photos", "photographs"))
    result = muster("check", job)
    assert result.exit_code == 2
    assert "broken.jpg" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_patch_larger_than_the_smallest_photograph_is_refused(
    job: Path, muster: Muster, photographs: Path
) -> None:
    job.write_text(job.read_text().replace("data: sample-photos", "data: photographs\n  patch: 130"))
    result = muster("check", job)
    assert result.exit_code == 2
    assert f"{job}:8: what.patch: a patch of 130 pixels does not fit" in result.stderr
    assert "use at most 128" in result.stderr


def test_a_refusal_as_json_has_its_parts(job: Path, muster: Muster) -> None:
    job.write_text(job.read_text().replace("ranks: 2", "rnaks: 2", 1))
    result = muster("check", job, "--json")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    error = answer["error"]
    assert (error["kind"], error["line"], error["key"]) == ("JobError", 11, "how.rnaks")
    assert (error["source"], error["mend"]) == (str(job), "did you mean ranks?")
