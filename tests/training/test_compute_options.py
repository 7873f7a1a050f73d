"""What `how` says about computing, in whole runs: results, records, kills and resumes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from engine import runs
from muster.engine.gang import Engine
from muster.engine.run_folder import RunFolder
from muster.errors import JobError
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.spec import dump_job, load_job

NETWORK = "app: tests.network, seed: 3, width: 32"
EXACT = NETWORK + ", dropout: 0.0"  # dropout draws other numbers in other dtypes
HOW = "steps: 12, batch: 12, optimizer: {lr: 0.001}, checkpoint_every: 1h"

Train = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_engine: Engine) -> Train:
    """Trains a job of 12 steps, once for each set of arguments."""

    @functools.cache
    def train(what: str, extra: str, ranks: int = 2) -> RunFolder:
        folder = tmp_path_factory.mktemp("run")
        job = runs.write_job(folder, what, f"{HOW}, ranks: {ranks}, {extra}", "engine: local")
        return runs.train_here(local_engine, job)

    return train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A super-resolution job on five small pictures, two of them held out: a model of convolutions in residual blocks."""
    folder, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        (folder / part).mkdir()
        for number in range(count):
            pixels = draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(folder / part / f"{number}.png")
    data = f"data: {folder / 'train'}, evaluation: {folder / 'test'}"
    return f"app: vision.superres, {data}, patch: 16, patches_per_photograph: 8, seed: 4"


def losses(run: RunFolder) -> np.ndarray:
    rows = run.table("steps").sort_by("step").to_pylist()
    return np.array([row["loss"] for row in rows if row["rank"] == 0])


def checkpointed(run: RunFolder, tmp_path: Path) -> dict:
    """The newest checkpoint of a run as one dictionary."""
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    dcp_to_torch_save(newest, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=False)


# ---- the same result by other means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["channels_last: true", "activation_checkpointing: true", "micro_batch: 2"])
def test_memory_format_checkpointing_and_accumulation_change_no_result_in_float64(
    trained: Train, photos: str, extra: str
) -> None:
    plain, other = (
        trained(photos, "precision: fp64"),
        trained(photos, f"precision: fp64, {extra}"),
    )
    assert len(set(losses(plain))) == 12
    np.testing.assert_allclose(losses(other), losses(plain), rtol=1e-9)
    ours, theirs = load_file(other.model_path), load_file(plain.model_path)
    for name, weights in theirs.items():
        np.testing.assert_allclose(ours[name], weights, rtol=1e-6, atol=1e-9)
    if extra == "activation_checkpointing: true":
        assert runs.digest(plain) == runs.digest(other)  # to the bit


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_what_fp32_does(trained: Train, precision: str) -> None:
    exact, mixed = trained(EXACT, "precision: fp32"), trained(EXACT, f"precision: {precision}")
    overflows = [event for event in mixed.events() if event["kind"] == "overflow"]
    assert len(overflows) <= 4
    np.testing.assert_allclose(losses(mixed), losses(exact), rtol=0.05)
    assert not np.array_equal(losses(mixed), losses(exact))
    assert load_file(mixed.model_path)["0.weight"].dtype == np.float32


def test_a_model_without_blocks_is_refused_in_a_sentence(local_engine: Engine, tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, NETWORK, f"{HOW}, activation_checkpointing: true", "engine: local")
    with pytest.raises(JobError, match=r"how\.activation_checkpointing: the model has no nn\.Sequential"):
        runs.train_here(local_engine, job)


# ---- the moving average -----------------------------------------------------------------------------------------------


def test_the_exported_weights_are_the_average_that_numpy_computes(
    tmp_path: Path, local_engine: Engine
) -> None:
    """The gradient of `tests.counting` is known: with SGD the weights of step k are -k for a batch of all samples."""
    what = "app: tests.counting, samples: 16"
    how = (
        "steps: 9, batch: 16, optimizer: {name: sgd, lr: 16}, checkpoint_every: 1h, ema_decay: 0.75, ranks: 2"
    )
    run = runs.train_here(local_engine, runs.write_job(tmp_path, what, how, "engine: local"))
    average = -1.0
    for step in range(2, 10):
        average = 0.75 * average + 0.25 * -step
    np.testing.assert_allclose(load_file(run.model_path)["uses"], [average] * 16, rtol=1e-6)
    state = checkpointed(run, tmp_path)
    assert state["model"]["uses"].tolist() == [-9.0] * 16  # the training goes on from the last weights
    assert state["ema"]["n_averaged"] == 9


def test_the_average_is_what_is_evaluated(trained: Train) -> None:
    plain, slow = trained(NETWORK, "evaluate_every: 1"), trained(NETWORK, "evaluate_every: 1, ema_decay: 0.9")

    def closeness(run: RunFolder) -> list[float]:
        rows = run.table("metrics").sort_by("step").to_pylist()
        return [row["value"] for row in rows if not row["item"]]

    assert np.array_equal(losses(plain), losses(slow))  # the training does not notice
    assert closeness(plain)[:2] == closeness(slow)[:2]  # untrained, and after the first update
    assert closeness(plain)[2:] != closeness(slow)[2:]
    assert runs.digest(plain) != runs.digest(slow)


# ---- kills and resumes ------------------------------------------------------------------------------------------------

STATEFUL = {
    "ema": "ema_decay: 0.9",
    "fp16": "precision: fp16",
    "channels last, all together": "channels_last: true, activation_checkpointing: true, ema_decay: 0.5, precision: fp16",
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_run_that_goes_on_ends_at_the_same_bits(
    kind: str, trained: Train, photos: str, tmp_path: Path, local_engine: Engine
) -> None:
    what = photos if "channels" in kind else NETWORK
    whole = trained(what, STATEFUL[kind])
    how = f"{HOW}, ranks: 2, {STATEFUL[kind]}"
    half = runs.write_job(tmp_path, what, how.replace("steps: 12", "steps: 7"), "engine: local")
    run = runs.train_here(local_engine, half)
    (run.path / "job.yaml").write_text(
        dump_job(load_job(runs.write_job(tmp_path, what, how, "engine: local"), environ={}))
    )
    runs.train_here(local_engine, half, run)
    assert [event["kind"] for event in run.events()].count("resumed") == 1
    assert runs.digest(run) == runs.digest(whole)


@pytest.mark.kill
def test_a_killed_rank_does_not_change_a_bit_of_average_and_scale(tmp_path: Path) -> None:
    import os
    import signal

    what = NETWORK + ", delay_ms: 10"
    how = "steps: 30, batch: 12, checkpoint_every: 5 steps, ranks: 2, precision: fp16, ema_decay: 0.9"
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = runs.finish(runs.write_job(tmp_path / "a", what.replace("10", "0"), how, "engine: local"))
    process = runs.start(job := runs.write_job(tmp_path / "b", what, how, "engine: local"))
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    ranks = sorted(pid for pid, command in runs.processes_of(run).items() if "forkserver" in command)
    os.kill(ranks[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert "restart" in [event["kind"] for event in run.events()]
    assert runs.digest(run) == runs.digest(whole)


def test_average_and_scale_survive_a_change_of_world_size(tmp_path: Path, local_engine: Engine) -> None:
    what = "app: tests.counting, samples: 16"
    how = (
        "steps: 6, batch: 16, optimizer: {name: sgd, lr: 16}, checkpoint_every: 1h, "
        "ema_decay: 0.5, precision: fp16, ranks: 2"
    )
    run = runs.train_here(local_engine, runs.write_job(tmp_path, what, how, "engine: local"))
    longer = runs.write_job(tmp_path, what, how.replace("steps: 6", "steps: 10"), "engine: local")
    (run.path / "job.yaml").write_text(longer.read_text())
    runs.train_here(local_engine, longer, run, ranks=3, min_ranks=3, max_ranks=3)
    done = 10 - sum(event["kind"] == "overflow" for event in run.events())
    average = -1.0
    for step in range(2, done + 1):
        average = 0.5 * average + 0.5 * -step
    np.testing.assert_allclose(load_file(run.model_path)["uses"], [average] * 16, rtol=1e-6)
    state = checkpointed(run, tmp_path)
    assert state["ema"]["n_averaged"] == done
    assert state["scaler"]["scale"] == 65536.0 * 0.5 ** (10 - done)


# ---- compiling --------------------------------------------------------------------------------------------------------


def train_without_compiler(job: Path, engine: Engine, tmp_path: Path) -> RunFolder:
    environment = {
        "CXX": str(tmp_path / "no-such-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    return runs.train_here(engine, job, environment=environment)


def test_a_missing_compiler_is_an_event_for_auto_and_a_sentence_for_on(
    tmp_path: Path, local_engine: Engine
) -> None:
    how = "steps: 2, batch: 12, checkpoint_every: 1h, ranks: 2"
    job = runs.write_job(tmp_path, NETWORK, f"{how}, compile: auto", "engine: local")
    run = train_without_compiler(job, local_engine, tmp_path)
    (event,) = [event for event in run.events() if event["kind"] == "compile"]
    assert event["detail"]["kept"] is False
    assert "no C++ compiler" in event["detail"]["why"]
    assert not RooflineRecord.read(run.path).compiled  # type: ignore[union-attr]
    job = runs.write_job(tmp_path, NETWORK, f"{how}, compile: on", "engine: local")
    with pytest.raises(JobError, match=r"how\.compile: torch\.compile fails here: .*no C\+\+ compiler"):
        train_without_compiler(job, local_engine, tmp_path)


def test_what_was_decided_once_is_done_again_on_a_resume(tmp_path: Path, local_engine: Engine) -> None:
    how = "steps: 2, batch: 12, checkpoint_every: 1h, ranks: 2, compile: auto"
    job = runs.write_job(tmp_path, NETWORK, how, "engine: local")
    run = train_without_compiler(job, local_engine, tmp_path)
    (run.path / "job.yaml").write_text(
        dump_job(
            load_job(
                runs.write_job(tmp_path, NETWORK, how.replace("steps: 2", "steps: 4"), "engine: local"),
                environ={},
            )
        )
    )
    runs.train_here(local_engine, job, run)  # there is a compiler now; trying it would take its time
    kinds = [event["kind"] for event in run.events()]
    assert (kinds.count("compile"), kinds.count("resumed")) == (1, 1)


# ---- the roofline -----------------------------------------------------------------------------------------------------


def test_a_run_records_its_peaks_and_where_its_steps_stand(trained: Train, photos: str) -> None:
    run = trained(photos, "precision: fp32")
    record = RooflineRecord.read(run.path)
    assert record is not None
    assert (record.world_size, record.device, len(record.peaks)) == (2, "cpu", 2)
    assert {peaks.precision for peaks in record.peaks} == {"fp32"}
    weights = sum(array.nbytes for array in load_file(run.model_path).values())
    assert record.bytes_per_update > 7 * weights  # Adam reads w, g, m and v and writes w, m and v at least
    rows = run.table("steps").to_pylist()
    found = record.placement(rows)
    assert found is not None
    flops, seconds = (
        np.median([row[name] for row in rows if row["step"] > 1]) for name in ("flops", "compute")
    )
    assert found.flops_per_s == pytest.approx(flops / seconds, rel=0.5)
    assert found.bound in ("compute", "memory", "overhead")
