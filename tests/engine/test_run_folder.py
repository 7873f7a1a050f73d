"""Run folders: records survive torn lines and cut-off closings; a lock dies with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from muster.engine import records
from muster.engine.run_folder import RunFolder
from muster.errors import RunLocked, RunNotFound


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(
        tmp_path, "my job!", app="a", steps=3, job_yaml="name: x\n", environment={"cores": 2}
    )


def write(run: RunFolder, *steps: int, attempt: int = 0, rank: int = 0) -> None:
    writer = records.TableWriter(run.tables, "steps", f"rank-{rank:05d}")
    for step in steps:
        writer.append(attempt=attempt, rank=rank, step=step, loss=float(step))
    writer.close()


def steps(run: RunFolder) -> list[int]:
    return sorted(run.table("steps").column("step").to_pylist())


def test_a_name_becomes_a_folder_and_is_found_by_path_name_and_last(run: RunFolder, tmp_path: Path) -> None:
    assert run.id.startswith("my-job-")
    for name in (str(run.path), run.id, run.id[:8], "last"):
        assert RunFolder.find(name, tmp_path).path == run.path
    with pytest.raises(RunNotFound, match="no run named 'other'"):
        RunFolder.find("other", tmp_path)


def test_a_column_that_is_not_documented_is_refused(run: RunFolder) -> None:
    writer = records.TableWriter(run.tables, "steps", "rank-00000")
    with pytest.raises(KeyError, match="surprise"):
        writer.append(step=1, surprise=2)


def test_a_torn_line_is_dropped_and_the_next_writer_starts_clean(run: RunFolder) -> None:
    write(run, 1, 2)
    path = run.tables / "steps" / "rank-00000.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert steps(run) == [1, 2]
    write(run, 3)
    assert steps(run) == [1, 2, 3]


def test_closing_keeps_every_row_and_later_rows_join(run: RunFolder) -> None:
    write(run, 1, 2)
    write(run, 1, 2, rank=1)
    records.close_tables(run.tables)
    assert not list(run.tables.glob("*/*.jsonl"))
    write(run, 3)
    assert steps(run) == [1, 1, 2, 2, 3]
    records.close_tables(run.tables)
    assert steps(run) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("cut_after", ["draft", "moved", "placed"])
def test_a_closing_that_was_cut_short_neither_loses_nor_doubles_rows(run: RunFolder, cut_after: str) -> None:
    write(run, 1, 2)
    records.close_tables(run.tables)
    write(run, 3)
    # The steps of close_tables one by one, as far as the kill let them.
    import pyarrow.parquet as pq

    pq.write_table(run.table("steps"), run.tables / ".steps.parquet.tmp")
    if cut_after != "draft":
        (run.tables / "steps").rename(run.tables / ".steps.spent")
    if cut_after == "placed":
        (run.tables / ".steps.parquet.tmp").rename(run.tables / "steps.parquet")
    records.recover_tables(run.tables)
    assert steps(run) == [1, 2, 3]
    assert not list(run.tables.glob(".*"))


def test_a_run_closed_before_a_column_was_added_can_be_read(run: RunFolder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"attempt": [0], "step": [7]}), run.tables / "steps.parquet")
    assert run.table("steps").to_pylist()[0] | {"step": 7, "loss": None} == run.table("steps").to_pylist()[0]


def test_the_surviving_lineage_has_each_step_once_on_the_ranks_that_did_it_last() -> None:
    rows = [{"attempt": 0, "rank": rank, "step": step} for step in (1, 2, 3) for rank in (0, 1)]
    rows += [{"attempt": 1, "rank": 0, "step": step} for step in (3, 4)]  # restarted with one rank
    kept = records.surviving(rows)
    assert [(row["attempt"], row["rank"], row["step"]) for row in kept] == [
        (0, 0, 1), (0, 1, 1), (0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 0, 4),
    ]  # fmt: skip


def test_a_lock_names_its_holder_and_ends_with_it(run: RunFolder) -> None:
    code = (
        "import sys, time; from muster.engine.run_folder import RunFolder\n"
        "lock = RunFolder(sys.argv[1]).lock(); print('locked', flush=True); time.sleep(300)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert run.status() == "running"
    with pytest.raises(RunLocked, match=f"process {holder.pid} on"):
        run.lock()
    holder.kill()
    holder.wait()
    assert run.status() == "crashed"
    run.lock().release()


def test_a_damaged_folder_does_not_hide_the_others(run: RunFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert [found.id for found in RunFolder.list(tmp_path)] == [run.id]
