"""``muster pool``: what the ledger says on a terminal, in JSON, and of a model that somebody has changed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from muster.federated import LocalTraining, simulate

MUSTER = str(Path(sys.executable).with_name("muster"))


def muster(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MUSTER, "pool", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    generator = np.random.default_rng(0)
    parties: list[Any] = [
        (generator.normal(size=(n, 4)).astype("f4"), np.arange(n) % 2) for n in (10, 20, 30)
    ]
    parties[1] = (parties[1][0][:, :3], parties[1][1])  # fails, five times in every round
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    simulate(
        lambda: model, parties, "fedadam", rounds=3, local=LocalTraining(batch=8), quorum=0.5, folder=folder
    )
    return folder


def test_the_status_counts_what_happened(pool: Path) -> None:
    done = muster("status", str(pool))
    assert done.returncode == 0, done.stderr
    assert "6 of 9 done, 0 leased, 0 waiting" in done.stdout
    assert "3: 1, 4, 7" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    found = json.loads(muster("status", str(pool), "--json").stdout)
    assert found["units"] == {"waiting": 0, "leased": 0, "done": 6, "aside": 3}
    (worker,) = found["workers"]
    assert (worker["accepted"], worker["failed"], worker["samples"]) == (6, 15, 3 * 40)
    assert worker["pid"] == os.getpid()
    assert found["evidence"]["counts"] == {"short": 3}
    assert found["about"]["rule"] == "fedadam"


def test_a_replay_comes_to_the_same_bits_and_notices_when_it_does_not(pool: Path, tmp_path: Path) -> None:
    done = muster("replay", str(pool))
    assert done.returncode == 0, done.stderr
    assert "6 accepted updates, merged by fedadam: version 3" in done.stdout
    assert "the same, bit for bit" in done.stdout
    forged = tmp_path / "forged"
    subprocess.run(["cp", "-r", pool, forged], check=True)
    connection = sqlite3.connect(forged / "ledger.sqlite")
    connection.execute("UPDATE accepted SET samples = 1000 WHERE number = 2")
    connection.commit()
    connection.close()
    done = muster("replay", str(forged), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["matches_record"] is False


def test_another_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for verb in ("status", "replay"):
        done = muster(verb, str(tmp_path))
        assert done.returncode == 2
        assert "is not the folder of a pool: it has no ledger.sqlite" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
