"""The journal: what was committed outlives a kill, what failed is not found, and why a task ran is told in words."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.pool import conftest as disks
from muster.engine.flow.journal import FORMAT, Entry, Journal, Key, Occurrences, Output
from muster.errors import CannotStore, DataError, RefusedInput

small_disk = disks.small_disk


def entry(task: int = 1, *, code: str = "c1", x: str = "1", occurrence: int = 0, **others: object) -> Entry:
    key = Key(code, (("x", x), ("mesh", "m")), "python 3.11", occurrence)
    known = {"outputs": (Output(f"{task:040x}", "d" * 40, 100),), "function": "tasks.simulate"}
    return Entry(key=key, task=task, **(known | {"label": f"simulate {task}"} | others))  # type: ignore[arg-type]


FULL = entry(
    7, cache="resumed", worker="w1", attempt=3, submitted=1.0, ready=1.5, start=2.0, end=4.0, io=0.25, compute=1.5,
    comm=0.125, idle=0.125, reason="its blob was damaged", remember_across_runs=True,
    parts={"tasks.simulate": "a", "Python": "3.11"},
)  # fmt: skip


def test_an_entry_comes_back_as_it_was_also_after_a_start(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.commit([FULL, entry(8, x="2")])
        assert journal.find(FULL.key) == FULL
        assert journal.find(replace(FULL.key, occurrence=1)) is None
    with Journal(tmp_path) as journal:
        found = journal.find(FULL.key)
        assert found == FULL
        assert (found.parts, found.session, journal.session) == (FULL.parts, 1, 2)
        assert [each.task for each in journal.entries()] == [7, 8]
        assert list(journal.entries(session=2)) == []
    with pytest.raises(RuntimeError, match="the journal is closed"):
        journal.find(FULL.key)


@pytest.mark.parametrize("other", [
    Key("c2", (("x", "1"),), "e", 0), Key("c", (("x", "2"),), "e", 0), Key("c", (("y", "1"),), "e", 0),
    Key("c", (("x", "1"),), "f", 0), Key("c", (("x", "1"),), "e", 1), Key("c", (), "e", 0),
    Key("c", (("x", "1"), ("x", "1")), "e", 0),
])  # fmt: skip
def test_each_part_of_a_key_counts(other: Key) -> None:
    key = Key("c", (("x", "1"),), "e", 0)
    assert key.name != other.name
    assert key.name == Key("c", (("x", "1"),), "e", 0).name
    assert (key.call == other.call) == (other.occurrence == 1)


def test_identical_calls_stay_apart_and_meet_again_in_their_order(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        first = Occurrences()
        for task in range(3):
            key = first.key("c", (("seed", "same"),))
            journal.commit([replace(entry(task), key=key)])
        journal.commit([replace(entry(3), key=first.key("c", (("seed", "other"),)))])
    with Journal(tmp_path) as journal:
        again = Occurrences()
        found = [journal.find(again.key("c", (("seed", "same"),))) for _ in range(4)]
        assert [each.task if each else None for each in found] == [0, 1, 2, None]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "timed out"])
def test_what_is_not_done_is_never_found(tmp_path: Path, outcome: str) -> None:
    failed = entry(outcome=outcome, outputs=(), remember_across_runs=True)
    with Journal(tmp_path) as journal:
        journal.commit([failed])
        assert journal.find(failed.key) is None
        assert journal.find_across_runs(failed.key) is None
        done = entry(attempt=2)
        journal.commit([done])
        assert journal.find(failed.key) == done
        journal.commit([failed])  # a later failure does not hide what was done
        assert journal.find(failed.key) == done


def test_only_what_is_to_be_remembered_is_found_whatever_its_number(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.commit([entry(1), entry(2, x="2", remember_across_runs=True)])
        assert journal.find_across_runs(entry(occurrence=9).key) is None
        found = journal.find_across_runs(entry(x="2", occurrence=9).key)
        assert found is not None
        assert found.task == 2
        assert journal.find_across_runs(entry(x="2", code="edited").key) is None


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(sqlite3.ProgrammingError):
            journal.commit([entry(1), replace(entry(2), worker=object())])  # type: ignore[arg-type]
        assert list(journal.entries()) == []
        journal.commit([entry(number) for number in range(2500)])
        assert [each.task for each in journal.entries()] == list(range(2500))


def test_many_threads_commit_and_find(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:

        def work(worker: int) -> None:
            for number in range(50):
                made = entry(100 * worker + number, x=f"{worker}.{number}")
                journal.commit([made])
                assert journal.find(made.key) == made

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(journal.entries())) == 200


def test_a_run_that_is_going_on_can_be_looked_at(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.commit([entry(1)])
        with Journal(tmp_path, read_only=True) as looking:
            assert [each.task for each in looking.entries()] == [1]
            journal.commit([entry(2, x="2")])
            assert [each.task for each in looking.entries()] == [1, 2]
            assert looking.session == 1
            with pytest.raises(CannotStore, match="readonly"):
                looking.commit([entry(3)])
    with pytest.raises(DataError, match="there is no journal at"):
        Journal(tmp_path / "elsewhere", read_only=True)
    assert not (tmp_path / "elsewhere").exists()


# ---- why ---------------------------------------------------------------------------------------------------------------

BEFORE = {"tasks.simulate": "s", "helper tasks._flux": "f", "package numpy": "2.0"}


@pytest.mark.parametrize(
    ("earlier", "now", "why"),
    [
        ([], entry(), "ran: no earlier result"),
        ([entry(parts=BEFORE)], entry(cache="resumed", parts=BEFORE), "resumed: done in start 1 of this run"),
        (
            [entry(parts=BEFORE)],
            entry(code="c2", parts=BEFORE | {"helper tasks._flux": "g"}),
            "ran again: helper tasks._flux changed",
        ),
        (
            [entry(parts=BEFORE)],
            entry(code="c2", parts=BEFORE | {"package numpy": "2.1", "helper tasks._new": "n"}),
            "ran again: package numpy changed from 2.0 to 2.1; helper tasks._new is used now",
        ),
        ([entry(parts=BEFORE)], entry(code="c2", parts=BEFORE), "ran again: its code changed"),
        ([entry()], entry(x="2"), "ran again: argument x changed"),
        (
            [entry()],
            replace(entry(), key=replace(entry().key, environment="python 3.12")),
            "ran again: the environment changed",
        ),
        ([entry(outcome="failed")], entry(), "ran again: it was failed before"),
        ([entry()], entry(), "ran again: its stored result was missing or damaged"),
        ([entry()], entry(reason="its blob was damaged"), "ran again: its blob was damaged"),
        ([entry(5)], entry(6, occurrence=1), "ran: no earlier result"),
        ([entry(5, function="tasks.other", code="c0")], entry(5), "ran: no earlier result"),
        (
            [entry(4, remember_across_runs=True)],
            entry(9, occurrence=3, cache="reused"),
            "reused from task 4 simulate 4, start 1",
        ),
        ([], entry(cache="reused", reason="run ocean-1, task 12"), "reused from run ocean-1, task 12"),
    ],
)
def test_why_a_task_ran_is_told_in_words(tmp_path: Path, earlier: list[Entry], now: Entry, why: str) -> None:
    with Journal(tmp_path) as journal:
        journal.commit(earlier)
    with Journal(tmp_path) as journal:
        journal.commit([now])
    with Journal(tmp_path, read_only=True) as journal:
        assert journal.why(now.task) == why
        assert journal.why(str(now.task)) == why
        assert journal.why(now.label) == why
        assert journal.why("tasks.simulate") == why
        with pytest.raises(
            RefusedInput, match=r"no task 99 in .*; give its number, its label or its function"
        ):
            journal.why(99)


# ---- kills, damage and full disks --------------------------------------------------------------------------------------


def commit_for_ever(folder: Path, start: int, told: Connection) -> None:
    journal = Journal(folder)
    for group in itertools.count():
        keys = [Key("c", (("x", f"{start}.{group}.{k}"),)) for k in range(3)]
        journal.commit([Entry(key, 3 * group + k, "f") for k, key in enumerate(keys)])
        told.send(group)


@pytest.mark.kill
def test_a_kill_at_any_moment_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    rng, processes = random.Random(5), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "muster.engine.flow.file_versions"])
    for start in range(12):
        heard, told = processes.Pipe(duplex=False)
        process = processes.Process(target=commit_for_ever, args=(tmp_path, start, told))
        process.start()
        told.close()
        time.sleep(rng.uniform(0.0, 0.08))  # some are killed while they make the file, or open it
        process.kill()
        process.join()
        committed = []
        with contextlib.suppress(EOFError):
            while True:
                committed.append(heard.recv())
        with Journal(tmp_path) as journal:
            for group in committed:
                for k in range(3):
                    assert journal.find(Key("c", (("x", f"{start}.{group}.{k}"),))) is not None
            counted = Counter(each.task // 3 for each in journal.entries(session=journal.session - 1))
            assert set(counted.values()) <= {3}  # no half of a commit


def test_a_journal_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE facts SET value = ? WHERE name = 'format'", (str(FORMAT + 6),))
    with pytest.raises(DataError) as refused:
        Journal(tmp_path)
    assert str(refused.value) == (
        f"{path} has format 7 and this version of Muster reads 1; use a newer Muster, or another folder"
    )


def filled(folder: Path) -> Path:
    with Journal(folder) as journal:
        journal.commit([entry(number, x=str(number)) for number in range(400)])
    return folder / "journal.sqlite"


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9])
def test_a_truncated_journal_is_told_in_a_sentence(tmp_path: Path, share: float) -> None:
    path = filled(tmp_path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(
        DataError, match=r"(is damaged|is empty|is no journal).*(restore|name another)"
    ) as refused:
        Journal(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_journal_with_wrong_bytes_is_told_in_a_sentence_or_reads_as_it_was(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole, rng = path.read_bytes(), random.Random(3)
    told: list[str] = []
    for _ in range(25):
        content = bytearray(whole)
        start = rng.randrange(len(content) - 200)
        content[start : start + 200] = rng.randbytes(200)
        path.write_bytes(content)
        try:
            with Journal(tmp_path) as journal:
                for found in journal.entries():
                    journal.find(found.key)
                journal.why("tasks.simulate")
        except RefusedInput as error:
            told.append(str(error))
        for left in ("-wal", "-shm"):
            path.with_name(path.name + left).unlink(missing_ok=True)
    assert len(told) > 8
    assert all("\n" not in each for each in told)


def test_another_database_or_file_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(DataError, match="is no journal of Muster"):
        Journal(tmp_path)
    path.write_text("something else altogether\n" * 100)
    with pytest.raises(DataError, match="file is not a database"):
        Journal(tmp_path)


def test_a_journal_that_was_removed_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Its log may still be there, after a kill; SQLite would apply it to whatever has the name next."""
    code = (
        "import os, sys; from pathlib import Path; from muster.engine.flow.journal import *\n"
        "journal = Journal(Path(sys.argv[1])); journal.commit([Entry(Key('c', ()), 1, 'f')]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "journal.sqlite-wal").stat().st_size > 0
    (tmp_path / "journal.sqlite").unlink()
    with Journal(tmp_path) as journal:
        assert list(journal.entries()) == []
        assert journal.session == 1


def test_a_full_disk_is_told_and_what_was_committed_is_still_there(small_disk: Path) -> None:
    def fill(journal: Journal) -> None:
        for number in range(10_000):
            journal.commit([entry(number, x=str(number), label="x" * 200_000)])
            kept.append(number)

    kept: list[int] = []
    with Journal(small_disk / "run") as journal:
        with pytest.raises(CannotStore, match=r"the journal cannot be written to .*run: .*make room"):
            fill(journal)
        assert len(kept) > 5
        assert [each.task for each in journal.entries()] == kept
    with Journal(small_disk / "run", read_only=True) as journal:
        assert journal.find(entry(x=str(kept[-1])).key) is not None
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(CannotStore, match="the journal cannot be written to"):
        Journal(small_disk / "another")


def test_a_commit_costs_well_under_a_millisecond_and_a_find_under_a_tenth(tmp_path: Path) -> None:
    """Medians, so that a busy machine's pauses do not count; ten times as much would be the 10 % of a task of 10 ms."""
    with Journal(tmp_path) as journal:
        commits, finds = [], []
        for number in range(300):
            made = entry(number, x=str(number))
            began = time.perf_counter()
            journal.commit([made])
            middle = time.perf_counter()
            journal.find(made.key)
            commits.append(middle - began)
            finds.append(time.perf_counter() - middle)
    assert sorted(commits)[150] < 1e-3
    assert sorted(finds)[150] < 4e-4  # 100 µs on a machine with nothing else to do
