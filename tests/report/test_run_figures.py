"""Restarts, collectives, metrics and the summary, on tables written out by hand and on a generated run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muster.engine.records import SCHEMAS, TableWriter, read_table
from muster.engine.run_folder import RunFolder
from muster.report import summary
from muster.report._collectives import bucket_costs
from muster.report._columns import Columns, columns
from muster.report._metrics import metrics
from muster.report._restarts import attempt_costs, elapsed
from muster.report._timeline import evenly_chosen, pack


def table(folder: Path, name: str, *rows: dict[str, object]) -> Columns:
    writer = TableWriter(folder, name, "rank-00000")
    for row in rows:
        writer.append(**row)
    writer.close()
    return columns(read_table(folder, name))


def test_steps_done_again_and_the_time_between_attempts_are_the_cost_of_a_restart(tmp_path: Path) -> None:
    # Attempt 0 does steps 1..4 of 1 s from second 10 on; attempt 1 begins with step 3 at second 20.
    steps = table(
        tmp_path,
        "steps",
        *(
            {"attempt": 0, "rank": rank, "world_size": 2, "step": step, "start": 9.0 + step, "wall": 1.0}
            for step in (1, 2, 3, 4)
            for rank in (0, 1)
        ),
        *(
            {"attempt": 1, "rank": 0, "world_size": 1, "step": step, "start": 14.0 + 2 * step, "wall": 2.0}
            for step in (3, 4, 5)
        ),
    )
    events = [
        {"time": 14.5, "kind": "rank_lost"},
        {"time": 15.0, "kind": "shrunk"},
        {"time": 15.1, "kind": "restart"},
    ]
    first, second = attempt_costs(steps, events)
    assert (first.first_step, first.last_step, first.gap_before_s, first.causes) == (1, 4, 10.0, ())
    assert (first.redone_steps, first.redone_s) == (2, 2.0)
    assert (second.world_size, second.gap_before_s, second.redone_steps) == (1, 6.0, 0)
    assert second.causes == ("rank_lost", "shrunk")
    cut = elapsed((first, second), last_record=30.0)
    assert (cut.start_up, cut.steps, cut.redone, cut.between_attempts, cut.after) == (
        10.0,
        8.0,
        2.0,
        6.0,
        4.0,
    )
    assert cut.total == cut.start_up + cut.steps + cut.redone + cut.between_attempts + cut.after == 30.0


def test_a_bucket_s_time_in_flight_begins_when_the_last_rank_enters(tmp_path: Path) -> None:
    common = {"attempt": 0, "kind": "all_reduce", "group": "world", "bucket": 0, "bytes": 4_000_000}
    data = table(
        tmp_path,
        "collectives",
        *(
            {**common, "rank": rank, "step": step, "enter": enter, "last_enter": 1.5, "end": 1.502}
            for step in (1, 2)
            for rank, enter in ((0, 1.0), (1, 1.5))
        ),
    )
    (bucket,) = bucket_costs(data)
    assert (bucket.bytes, bucket.count) == (4_000_000, 2)
    assert bucket.in_flight_s == pytest.approx(0.002)
    assert bucket.wait_s == pytest.approx(0.25)  # the median of 0.5, 0, 0.5, 0
    assert bucket.bytes_per_s == pytest.approx(2e9)


def test_a_metric_meets_those_that_extend_its_name_and_the_last_attempt_counts(tmp_path: Path) -> None:
    def row(attempt: int, step: int, name: str, value: float | None, item: str = "") -> dict[str, object]:
        return {"attempt": attempt, "step": step, "time": 1.0, "name": name, "value": value, "item": item}

    data = table(
        tmp_path,
        "metrics",
        row(0, 0, "psnr_y", 30.0),
        row(0, 0, "psnr_y_bicubic", 30.5),
        row(1, 10, "psnr_y", 33.0),
        row(0, 10, "psnr_y", 99.0),
        row(1, 10, "psnr_y_bicubic", 30.5),
        row(1, 10, "psnr_y_gain", 2.5),
        row(1, 10, "loss", 0.5),
        row(1, 20, "loss", None),
        row(0, 0, "psnr_y", 20.0, item="a"),
    )
    loss, mean, item, gain = metrics(data)
    assert (loss.name, loss.untrained, loss.gain, loss.last) == ("loss", None, None, 0.5)
    assert (mean.steps, mean.values, mean.gain) == ((0, 10), (30.0, 33.0), 3.0)
    assert [(other.name, other.last) for other in mean.baselines] == [("psnr_y_bicubic", 30.5)]
    assert (gain.name, gain.last, gain.baselines) == ("psnr_y_gain", 2.5, ())
    assert (item.item, item.last, item.gain) == ("a", 20.0, None)


def test_overlapping_collectives_are_drawn_in_rows_of_their_own() -> None:
    start, end = np.array([0.0, 1.0, 2.0, 2.5]), np.array([2.0, 3.0, 2.6, 4.0])
    assert pack(start, end).tolist() == [0, 1, 0, 2]
    assert evenly_chosen(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_chosen(101, 3).tolist() == [0, 50, 100]


def test_the_summary_of_a_run_agrees_with_its_tables(finished_run: RunFolder) -> None:
    figures = summary(finished_run)
    kept: dict[tuple[int, int], dict[str, float]] = {}
    for row in sorted(finished_run.table("steps").to_pylist(), key=lambda row: row["attempt"]):
        kept[row["rank"], row["step"]] = row
    assert (figures.status, figures.step, figures.restarts, figures.seed) == ("done", 300, 1, 7)
    assert figures.samples == 300 * 2 * 8
    for rank in figures.ranks:
        mine = [row for (number, _), row in kept.items() if number == rank.rank]
        assert len(mine) == 300
        assert rank.compute == pytest.approx(sum(row["compute"] for row in mine))
        assert rank.io + rank.compute + rank.comm + rank.idle == pytest.approx(rank.wall)
    assert figures.attempts[0].redone_steps == 20
    assert figures.attempts[1].gap_before_s == pytest.approx(3.5)
    assert figures.attempts[1].causes == ("rank_lost",)
    assert {metric.name: metric.gain for metric in figures.metrics}["psnr_y"] == pytest.approx(
        1.3 * (1 - np.exp(-3)) + 0.1
    )
    assert [bucket.count for bucket in figures.buckets] == [300, 300]


def test_a_run_without_any_record_has_a_summary(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "empty", app="none", steps=5, job_yaml=": not yaml [", environment={})
    figures = summary(run)
    assert (figures.status, figures.step, figures.samples_per_s, figures.loss) == ("crashed", 0, None, None)
    assert (figures.seed, figures.shares, figures.metrics, figures.buckets) == (None, {}, (), ())
    assert all(run.table(name).num_rows == 0 for name in SCHEMAS)


def test_a_running_run_is_read_while_it_writes(new_run: Callable[..., RunFolder]) -> None:
    run = new_run(status="running", close=False, killed_at=None, steps=20)
    with run.lock():
        assert summary(run).status == "running"
    assert summary(run).status == "crashed"
    assert summary(run).step == 20
