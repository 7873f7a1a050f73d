"""A job whose input looks ahead trains on the same samples, in the same order, with the same draws; with fewer reads."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from muster_test_applications import Files

from engine import runs
from muster.engine.gang import Engine
from muster.engine.run_folder import RunFolder
from muster.errors import JobError
from muster.pillars.io.access_order import StepOrder
from muster.spec import load_job
from muster.training.order import GlobalOrder

SAMPLES = 50
HOW = "steps: 40, batch: 7, checkpoint_every: 1h"  # 280 uses: five epochs and a half, whose ends are within steps


def write_job(folder: Path, loader: str, how: str = HOW, name: str = "samples") -> Path:
    folder.mkdir(exist_ok=True)
    if not (folder / name).exists():
        Files.made(folder / name, SAMPLES)
    what = f"app: tests.filed, seed: 3, folder: {folder / name}"
    return runs.write_job(folder, what, f"{how}, input: {loader}", "engine: local")


@pytest.mark.parametrize(("samples", "batch"), [(50, 7), (16, 16), (5, 12), (64, 8)])
@pytest.mark.parametrize(("ranks", "micro"), [(1, 3), (2, 2), (3, 5)])
def test_stretches_of_steps_are_the_order_of_the_gang(
    samples: int, batch: int, ranks: int, micro: int
) -> None:
    """Against the gang's own order, step by step; from the beginning and from a step in the middle."""
    steps = 23
    order = StepOrder(samples, ranks, seed=5, batch=batch, micro_batch=micro, steps=steps)
    expected = GlobalOrder(samples, batch, seed=5)
    for first in (0, 9):
        for rank in range(ranks):
            found = []
            stretch, position = order.place_of(first)
            for one in range(stretch, order.stretches):
                begin = position if one == stretch else 0
                keys = zip(order.epochs_of(one, rank, begin), order.share(one, rank, begin), strict=True)
                keys, begun = list(keys), 0
                for end in order.batch_ends(one, rank, begin):
                    found.append(keys[begun:end])
                    begun = end
            shares = [expected.share(step, rank, ranks) for step in range(first, steps)]
            wanted = [share[k : k + micro] for share in shares for k in range(0, len(share), micro)]
            assert found == wanted


@pytest.mark.parametrize(
    ("ranks", "extra"),
    [
        (1, ""),
        (2, ", micro_batch: 2"),
        (3, ", loader_workers: 1"),
    ],
)
def test_looking_ahead_changes_no_bit_and_reads_each_sample_once(
    local_engine: Engine, tmp_path: Path, ranks: int, extra: str
) -> None:
    how = f"{HOW}, ranks: {ranks}{extra}"
    plain = runs.train_here(local_engine, write_job(tmp_path, "{loader: plain}", how, "plainly"))
    ahead = runs.train_here(local_engine, write_job(tmp_path / "ahead", "{loader: auto}", how))
    assert runs.digest(ahead) == runs.digest(plain)
    store = Files(str(tmp_path / "ahead" / "samples"))
    micro = 2 if ranks == 2 else -(-7 // ranks)
    reads = Counter(store.reads())
    assert set(reads) == set(range(SAMPLES))
    assert sum(reads.values()) <= SAMPLES + ranks * micro  # the warm-up reads a micro-batch on each rank
    (event,) = [event["detail"] for event in ahead.events() if event["kind"] == "input"]
    assert event["planned_store_reads"] == event["store_reads"] == SAMPLES
    assert event["samples"] == 40 * 7
    assert not [event for event in plain.events() if event["kind"] == "input"]


def test_what_fits_nowhere_is_read_again_and_trained_on_all_the_same(
    local_engine: Engine, tmp_path: Path
) -> None:
    """Memory for ten samples on each of two ranks, disk for five more: half of the fifty are read in each epoch."""
    how = f"{HOW}, ranks: 2"
    small = f"{{memory: 320B, disk: 160B, folder: {tmp_path}, cache: stored}}"
    plain = runs.train_here(local_engine, write_job(tmp_path, "{loader: plain}", how, "plainly"))
    ahead = runs.train_here(local_engine, write_job(tmp_path / "ahead", small, how))
    assert runs.digest(ahead) == runs.digest(plain)
    (event,) = [event["detail"] for event in ahead.events() if event["kind"] == "input"]
    assert event["store_reads"] == event["planned_store_reads"]
    uses = Counter(
        key.index
        for step in range(40)
        for key in GlobalOrder(SAMPLES, 7, seed=3).share(step, 0, 1)
    )  # fmt: skip
    kept_best = 30 + sum(sorted(uses.values())[: SAMPLES - 30])  # if those are kept that are used most often
    assert kept_best <= event["store_reads"] <= 1.05 * kept_best
    assert event["from_disk"] > 0


@pytest.mark.kill
def test_a_killed_rank_and_then_a_killed_supervisor_change_no_bit(
    local_engine: Engine, tmp_path: Path
) -> None:
    how = (
        "steps: 2000, batch: 8, ranks: 2, loader_workers: 1, checkpoint_every: 150 steps, hang_timeout: 120s"
    )
    whole = runs.train_here(local_engine, write_job(tmp_path / "whole", "{loader: plain}", how))
    process = runs.start(job := write_job(tmp_path / "killed", "{loader: look-ahead}", how))
    run = runs.newest(job)
    runs.wait_for(run, "checkpoint")
    os.kill(runs.process_named(run, "forkserver"), signal.SIGKILL)
    runs.wait_for(run, "restart")
    runs.wait_for(run, "resumed")
    runs.wait_for(run, "checkpoint", count=4)
    process.kill()
    process.communicate(timeout=300)
    runs.wait_until_gone(run)
    assert run.status() == "crashed"
    runs.resume(run)
    assert [event["kind"] for event in run.events()].count("resumed") == 2
    assert runs.digest(run) == runs.digest(whole)


def test_a_change_of_world_size_deals_the_rest_to_the_new_ranks(local_engine: Engine, tmp_path: Path) -> None:
    """Two ranks, then three, then one, as the order of the gang has it: every read is of the samples that are left."""
    how = "steps: 10, batch: 12, checkpoint_every: 1h, ranks: 2"
    job = write_job(tmp_path, "{cache: stored, memory: 1B}", how)  # nothing is kept, so every use is a read
    log = tmp_path / "reads"
    run = runs.train_here(local_engine, job)
    used = [key.index for step in range(10) for key in GlobalOrder(SAMPLES, 12, seed=3).share(step, 0, 1)]
    warm = lambda first, ranks: [  # noqa: E731
        key.index
        for rank in range(ranks)
        for key in GlobalOrder(SAMPLES, 12, seed=3).share(first, rank, ranks)
    ]
    assert Counter(map(int, log.read_text().split())) == Counter(used + warm(0, 2))
    for ranks, steps, first in ((3, 17, 10), (1, 29, 17)):
        log.unlink()
        longer = write_job(
            tmp_path, "{cache: stored, memory: 1B}", how.replace("steps: 10", f"steps: {steps}")
        )
        (run.path / "job.yaml").write_text(longer.read_text())
        runs.train_here(local_engine, longer, run, ranks=ranks, min_ranks=ranks, max_ranks=ranks)
        order = GlobalOrder(SAMPLES, 12, seed=3)
        used = [key.index for step in range(first, steps) for key in order.share(step, 0, 1)]
        assert Counter(map(int, log.read_text().split())) == Counter(used + warm(first, ranks))


def test_options_that_go_with_no_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"how\.input\.memory: the plain loader keeps nothing; .*look-ahead"):
        load_job(write_job(tmp_path, "{loader: plain, memory: 1GB}"))
    with pytest.raises(JobError, match=r"how\.input\.folder: a folder without an amount; set disk too"):
        load_job(write_job(tmp_path, "{folder: /scratch}"))


def test_a_store_that_is_gone_ends_the_run_with_one_sentence(local_engine: Engine, tmp_path: Path) -> None:
    job = write_job(tmp_path, "{}", f"{HOW}, ranks: 2, max_restarts: 0")
    shutil.move(tmp_path / "samples" / "00007", tmp_path / "elsewhere")
    (tmp_path / "samples" / "00007").symlink_to(tmp_path / "elsewhere")
    process = runs.start(job)
    run: RunFolder = runs.newest(job)
    deadline = time.monotonic() + 300
    while not (tmp_path / "reads").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.unlink(tmp_path / "elsewhere")
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert run.status() == "failed"
    assert b"sample 7" in told
