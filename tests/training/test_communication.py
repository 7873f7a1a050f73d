"""What `how.communication` does to whole runs: records, conservation, other world sizes, a choice made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from engine import runs
from muster.engine.gang import Engine
from muster.engine.run_folder import RunFolder
from muster.errors import DataError

NETWORK = "app: tests.network, seed: 3, width: 96, dropout: 0.0"
SHAPES = {
    "0.weight": (96, 8),
    "0.bias": (96,),
    "3.weight": (96, 96),
    "3.bias": (96,),
    "5.weight": (1, 96),
    "5.bias": (1,),
}
HOW = "steps: 8, batch: 12, optimizer: {lr: 0.001}, checkpoint_every: 1h, ranks: 2"
EACH_ITS_OWN = "buckets: 0.000001"  # MiB: a bucket is full with its first gradient


def train(
    engine: Engine, folder: Path, communication: str, what: str = NETWORK, how: str = HOW, **more: Any
) -> RunFolder:
    folder.mkdir(exist_ok=True)
    job = runs.write_job(folder, what, f"{how}, communication: {{{communication}}}", "engine: local")
    return runs.train_here(engine, job, **more)


def losses(run: RunFolder) -> np.ndarray:
    rows = run.table("steps").sort_by("step").to_pylist()
    return np.array([row["loss"] for row in rows if row["rank"] == 0])


def elements(names: Sequence[str]) -> int:
    return sum(int(np.prod(SHAPES[name])) for name in names)


# ---- what is exchanged ------------------------------------------------------------------------------------------------


def test_sending_every_element_is_training_without_compression(local_engine: Engine, tmp_path: Path) -> None:
    """At density 1 top-k is a dense exchange in other clothes, and at rank 64 of 8 columns PowerSGD sends all as it is."""
    double = HOW + ", precision: fp64"
    dense = losses(train(local_engine, tmp_path / "dense", "", how=double))
    for name, method in {
        "a": "compression: topk, density: 1",
        "b": "compression: oktopk, density: 1",
        "c": f"compression: powersgd, rank: 64, {EACH_ITS_OWN}",
    }.items():
        run = train(local_engine, tmp_path / name, method, how=double)
        np.testing.assert_allclose(losses(run), dense, rtol=1e-9)
    assert len(set(dense)) == 8


@pytest.mark.parametrize("method", ["bf16", "fp16", "int8"])
def test_rounded_gradients_learn_what_exact_ones_do(
    method: str, local_engine: Engine, tmp_path: Path
) -> None:
    exact = losses(train(local_engine, tmp_path / "exact", ""))
    rounded = losses(train(local_engine, tmp_path / "rounded", f"compression: {method}, {EACH_ITS_OWN}"))
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert not np.array_equal(rounded, exact)


def test_the_records_have_each_bucket_its_kind_and_what_was_sent_for_it(
    local_engine: Engine, tmp_path: Path
) -> None:
    """Two ranks: an all-reduce of n bytes sends n, bf16 half of that, top-k 8 bytes for each pair of index and value."""
    expected = {
        "none": ("all_reduce", lambda numel: 4 * numel),
        "bf16": ("bf16", lambda numel: 2 * numel),
        "topk, density: 0.25": ("topk", lambda numel: 8 * max(1, round(0.25 * numel))),
    }
    for name, (kind, sent) in expected.items():
        run = train(local_engine, tmp_path / kind, f"compression: {name}, {EACH_ITS_OWN}")
        rows = run.table("collectives").to_pylist()
        assert {row["kind"] for row in rows} == {kind}
        assert {row["bucket"] for row in rows} == set(range(6))
        for row in rows:
            assert row["wire_bytes"] == sent(row["bytes"] // 4)
            assert row["enter"] <= row["last_enter"] <= row["end"] + 1e-3
        per_step = sum(row["bytes"] for row in rows) / (2 * 8)
        assert per_step == 4 * elements(list(SHAPES))
        steps = run.table("steps").to_pylist()
        for row in steps:
            assert row["io"] + row["compute"] + row["comm"] + row["idle"] == pytest.approx(
                row["wall"], abs=1e-6
            )
        assert any(row["comm"] > 0 for row in steps)
        names = {span["name"] for span in run.table("spans").to_pylist() if span["lane"] == "comm"}
        assert f"{kind} 5" in names


# ---- what is not sent is kept -----------------------------------------------------------------------------------------

COUNTING = "app: tests.counting, samples: 64"


def counted(steps: int) -> str:
    return f"steps: {steps}, batch: 16, optimizer: {{name: sgd, lr: 16}}, checkpoint_every: 1h, ranks: 2"


def unsent(run: RunFolder, tmp_path: Path) -> np.ndarray:
    """The mean over ranks of what the newest checkpoint says has not been sent."""
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    dcp_to_torch_save(newest, tmp_path / "state.pt")
    ranks = torch.load(tmp_path / "state.pt", weights_only=False)["exchange"].values()
    kept = [state.get("parameters", {}).get("uses", {}).get("residual", torch.zeros(64)) for state in ranks]
    return torch.stack(kept).mean(0).numpy()


@pytest.mark.parametrize("method", ["topk, density: 0.1", "oktopk, density: 0.1"])
def test_nothing_of_a_gradient_is_lost_when_the_world_size_changes_from_2_to_1_to_2(
    method: str, local_engine: Engine, tmp_path: Path
) -> None:
    """The weights count the uses of each sample: what is applied and what is still to be sent is what was computed."""
    run = train(local_engine, tmp_path / "run", f"compression: {method}", COUNTING, counted(8))
    before = unsent(run, tmp_path)
    assert np.count_nonzero(before) > 10
    np.testing.assert_array_equal(load_file(run.model_path)["uses"] - 16 * before, np.full(64, -2.0))
    for steps, ranks in ((12, 1), (20, 2)):
        longer = train_longer(run, local_engine, tmp_path, f"compression: {method}", steps, ranks)
        after = unsent(longer, tmp_path)
        assert (np.count_nonzero(after) > 0) == (ranks == 2)  # one rank has nobody to owe anything
        np.testing.assert_array_equal(load_file(run.model_path)["uses"] - 16 * after, np.full(64, -steps / 4))
    assert [row["kind"] for row in run.table("collectives").to_pylist() if row["step"] == 12] == [
        "all_reduce"
    ]


def train_longer(
    run: RunFolder, engine: Engine, tmp_path: Path, communication: str, steps: int, ranks: int
) -> RunFolder:
    job = runs.write_job(
        tmp_path, COUNTING, f"{counted(steps)}, communication: {{{communication}}}", "engine: local"
    )
    (run.path / "job.yaml").write_text(job.read_text())
    return runs.train_here(engine, job, run, ranks=ranks, min_ranks=ranks, max_ranks=ranks)


def test_what_three_ranks_have_not_sent_two_ranks_send(local_engine: Engine, tmp_path: Path) -> None:
    three = counted(8).replace("ranks: 2", "ranks: 3")
    run = train(local_engine, tmp_path / "run", "compression: topk, density: 0.1", COUNTING, three)
    train_longer(run, local_engine, tmp_path, "compression: topk, density: 0.1", 16, 2)
    applied = load_file(run.model_path)["uses"] - 16 * unsent(run, tmp_path)
    np.testing.assert_allclose(applied, np.full(64, -4.0), rtol=1e-5)


# ---- a choice by measurements is made once ----------------------------------------------------------------------------


def choices(run: RunFolder) -> list[dict[str, Any]]:
    content = json.loads((run.path / "communication.json").read_text())
    assert content["format"] == 1
    return content["choices"]


@pytest.mark.parametrize(
    "communication", ["buckets: auto", "compression: auto", "compression: topk, buckets: auto"]
)
def test_a_choice_is_on_record_with_what_it_rests_on(
    communication: str, local_engine: Engine, tmp_path: Path
) -> None:
    run = train(local_engine, tmp_path / "run", communication)
    (choice,) = choices(run)
    assert (choice["world_size"], choice["attempt"]) == (2, 0)
    names = [name for bucket in choice["buckets"] for name in bucket["parameters"]]
    assert sorted(names) == sorted(SHAPES)
    assert names == choice["profile"]["names"]
    assert [bucket["bytes"] for bucket in choice["buckets"]] == [
        4 * elements(bucket["parameters"]) for bucket in choice["buckets"]
    ]
    ready = choice["profile"]["ready_s"]
    assert ready == sorted(ready)
    assert 0 < choice["profile"]["forward_s"] < ready[-1] <= choice["profile"]["step_s"]
    ends = [bucket["predicted"]["end_s"] for bucket in choice["buckets"]]
    assert ends == sorted(ends)
    assert choice["link"]["world_size"] == 2
    assert min(choice["link"]["curves"]["all_reduce"]["seconds"]) > 0
    (winner,) = [one for one in choice["candidates"] if one["name"] == choice["chosen"]]
    assert winner["predicted_s"] >= choice["profile"]["backward_s"] * 0.999
    (event,) = [event for event in run.events() if event["kind"] == "communication"]
    assert event["detail"]["chosen"] == choice["chosen"]
    assert event["detail"]["buckets"] == len(choice["buckets"])
    rows = run.table("collectives").to_pylist()
    assert {row["bucket"] for row in rows} == set(range(len(choice["buckets"])))
    kinds = {"none": "all_reduce"}
    for row in rows:
        bucket = choice["buckets"][row["bucket"]]
        assert row["bytes"] == bucket["bytes"]
        assert row["kind"] == kinds.get(bucket["compressor"], bucket["compressor"])


def with_a_choice(run: RunFolder, compressors: Sequence[str]) -> bytes:
    """Puts a choice of ours in the place of the one that was measured: as many buckets as there are compressors."""
    path = run.path / "communication.json"
    content = json.loads(path.read_text())
    names = content["choices"][0]["profile"]["names"]
    pieces = [list(piece) for piece in np.array_split(names, len(compressors))]
    content["choices"][0]["buckets"] = [
        {"compressor": compressor, "parameters": piece}
        for compressor, piece in zip(compressors, pieces, strict=True)
    ]
    path.write_text(json.dumps(content))
    return path.read_bytes()


def test_a_later_start_takes_the_choice_from_the_run_and_another_world_size_makes_its_own(
    local_engine: Engine, tmp_path: Path
) -> None:
    communication = "compression: auto, lossy: true, buckets: auto"
    run = train(local_engine, tmp_path / "run", communication)
    ours = with_a_choice(run, ["none", "topk", "bf16"])

    def go_on(steps: int, ranks: int) -> list[dict[str, Any]]:
        how = f"{HOW.replace('steps: 8', f'steps: {steps}')}, communication: {{{communication}}}"
        job = runs.write_job(tmp_path, NETWORK, how, "engine: local")
        (run.path / "job.yaml").write_text(job.read_text())
        runs.train_here(local_engine, job, run, ranks=ranks, min_ranks=ranks, max_ranks=ranks)
        rows = run.table("collectives").sort_by("bucket").to_pylist()
        return [row for row in rows if row["step"] == steps and row["rank"] == 0]

    taken = go_on(10, 2)
    assert [row["kind"] for row in taken] == ["all_reduce", "topk", "bf16"]
    assert (run.path / "communication.json").read_bytes() == ours
    go_on(12, 3)
    assert [choice["world_size"] for choice in choices(run)] == [2, 3]
    again = go_on(14, 2)
    assert [(row["kind"], row["bytes"]) for row in again] == [(row["kind"], row["bytes"]) for row in taken]
    assert [event["kind"] for event in run.events()].count("communication") == 2


def test_a_damaged_record_is_refused_by_name(local_engine: Engine, tmp_path: Path) -> None:
    run = train(local_engine, tmp_path / "run", "buckets: auto")
    path = run.path / "communication.json"
    path.write_bytes(path.read_bytes()[:-40])
    job = tmp_path / "run" / "job.yaml"
    with pytest.raises(
        DataError, match=r"communication\.json cannot be read .* remove it to have the buckets chosen anew"
    ):
        runs.train_here(local_engine, job, run)
    with_parameters = json.loads(path.with_name("run.json").read_text())  # the run folder itself is as it was
    assert with_parameters["format"] == 1
