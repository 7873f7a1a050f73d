"""Flows that are killed and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from muster.errors import RunLocked
from muster.flow import CANCEL_SUCCESSORS, COMMUTATIVE, IGNORE, INOUT, engine, task, wait_on

PROGRAM = """
import os, sys, time
from pathlib import Path
import numpy as np
from muster.flow import COMMUTATIVE, INOUT, engine, task, wait_on
from helpers import scaled

ran = Path(sys.argv[2])

def note(name):
    (ran / f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()

@task
def make(number):
    time.sleep(0.01)
    note(f"make{number}")
    return np.full(3, float(number))

@task(state=INOUT)
def advance(state, change):
    time.sleep(0.01)
    note(f"advance{int(change[0])}")
    state *= 0.5
    state += scaled(change)

@task(total=COMMUTATIVE)
def add(total, change):
    time.sleep(0.005)
    note(f"add{int(change[0])}")
    total += change

@task
def look(*values):
    note("look")
    return [value.tolist() for value in values]

with engine(sys.argv[1], workers=2, run=sys.argv[3]) as flow:
    state, total = np.zeros(3), np.zeros(3)
    for number in range(COUNT):
        change = make(number)
        advance(state, change)
        add(total, change)
    print(wait_on(look(state, total)), flow.record.resumed)
"""
HELPERS = "def scaled(change):\n    return 2.0 * change\n"


def program(folder: Path, count: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ran").mkdir(exist_ok=True)
    (folder / "helpers.py").write_text(HELPERS)
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("COUNT", str(count)))
    return path


def start(path: Path, executor: str = "threads", **options: Any) -> subprocess.Popen[str]:
    folder = path.parent
    command = [sys.executable, path, executor, folder / "ran", folder / "run"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(path: Path, executor: str = "threads") -> tuple[str, int]:
    """What it printed: the values, and how many calls were on record."""
    process = start(path, executor)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    values, _, resumed = told.strip().rpartition(" ")
    return values, int(resumed)


def calls(path: Path) -> dict[str, int]:
    """How often each call ran, by what it left on the disk."""
    found: dict[str, int] = {}
    for each in (path.parent / "ran").iterdir():
        name = each.name.split("-")[0]
        found[name] = found.get(name, 0) + 1
    return found


def expected(count: int) -> str:
    """What the program computes, in plain Python."""
    state = total = 0.0
    for number in range(count):
        state = 0.5 * state + 2.0 * number
        total += number
    return str([[state] * 3, [total] * 3])


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_a_second_start_runs_nothing(executor: str, tmp_path: Path) -> None:
    path = program(tmp_path / "p", 10)
    assert finish(path, executor) == (expected(10), 0)
    assert finish(path, executor) == (expected(10), 31)
    assert set(calls(path).values()) == {1}


@pytest.mark.parametrize("seed", range(3))
def test_a_program_killed_at_random_moments_ends_exactly_and_runs_little_again(
    seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    path = program(tmp_path / "p")
    kills = 0
    while kills < 7:
        process = start(path)
        before = sum(calls(path).values())
        while process.poll() is None and sum(calls(path).values()) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.12))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    values, resumed = finish(path)
    assert kills >= 3
    assert values == expected(40)
    assert resumed > 0
    found = calls(path)
    assert len(found) == 121
    assert sum(found.values()) - 121 <= 2 * kills  # as many as there are workers, each time


def test_workers_of_ray_and_the_program_itself_are_killed(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = program(tmp_path / "p", 30)
    process = start(path, "ray", start_new_session=True)
    while sum(calls(path).values()) < 10:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(_worker_of(path), signal.SIGKILL)
    time.sleep(rng.uniform(0.1, 0.4))
    process.kill()
    process.communicate()
    before = calls(path)
    values, resumed = finish(path, "ray")
    assert values == expected(30)
    in_flight = 2 * 2  # workers, and bundles that each has been sent
    assert resumed >= len(before) - in_flight
    assert sum(calls(path).values()) - 91 <= 2 * in_flight  # two kills


def test_an_engine_that_dies_ends_the_program_with_a_sentence_and_the_next_start_goes_on(
    tmp_path: Path,
) -> None:
    path = program(tmp_path / "p", 20)
    process = start(path, "ray", start_new_session=True)
    while sum(calls(path).values()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    raylet = next(
        each for each in psutil.Process(process.pid).children(recursive=True) if each.name() == "raylet"
    )
    raylet.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "a daemon of the embedded engine" in errors
    before = calls(path)
    values, resumed = finish(path, "ray")
    assert values == expected(20)
    assert resumed >= len(before) - 4


def _worker_of(path: Path) -> int:
    newest = max((path.parent / "ran").iterdir(), key=lambda each: int(each.name.split("-")[2]))
    return int(newest.name.split("-")[1])


def test_an_edited_helper_is_noticed_and_what_does_not_use_it_is_not_run_again(tmp_path: Path) -> None:
    path = program(tmp_path / "p", 5)
    first, _ = finish(path)
    (path.parent / "helpers.py").write_text(HELPERS.replace("2.0", "3.0"))
    second, resumed = finish(path)
    assert first == expected(5) != second
    assert resumed == 10  # make and add; what follows from another state is another call
    assert {name: count for name, count in calls(path).items() if count > 1} == {
        "look": 2,
        **{f"advance{number}": 2 for number in range(5)},
    }
    (path.parent / "helpers.py").write_text("# only a comment\n" + HELPERS.replace("2.0", "3.0"))
    assert finish(path) == (second, 16)


class TestInOneProcess:
    def test_identical_calls_stay_apart(self, tmp_path: Path) -> None:
        ran: list[int] = []

        @task
        def draw() -> int:
            ran.append(1)
            return len(ran)

        for _ in range(2):
            with engine("inline", run=tmp_path):
                assert wait_on([draw(), draw(), draw()]) == [1, 2, 3]
        assert len(ran) == 3

    def test_a_failed_task_is_not_on_record_nor_is_what_was_made_of_its_defaults(
        self, tmp_path: Path
    ) -> None:
        works: list[int] = []

        @task(on_failure=IGNORE, defaults=(-1,))
        def measure() -> int:
            if not works:
                raise OSError("no connection")
            return 7

        @task
        def double(value: int) -> int:
            return 2 * value

        @task(on_failure=CANCEL_SUCCESSORS)
        def fail() -> int:
            raise OSError("each time")

        with engine("threads", workers=2, run=tmp_path):
            assert wait_on(double(double(measure()))) == -4
            with pytest.raises(OSError):
                wait_on(fail())
        works.append(1)
        with engine("threads", workers=2, run=tmp_path) as flow:
            assert wait_on(double(double(measure()))) == 28
            with pytest.raises(OSError):
                wait_on(fail())
            assert flow.record.resumed == 0

    def test_a_damaged_or_missing_result_is_made_again(self, tmp_path: Path) -> None:
        ran: list[int] = []

        @task
        def make(number: int) -> np.ndarray:
            ran.append(number)
            return np.full(1000, number)

        def run() -> list[int]:
            with engine("inline", run=tmp_path):
                return [int(wait_on(make(number)).sum()) for number in range(4)]

        sums = run()
        blobs = sorted(path for path in (tmp_path / "results").rglob("*") if path.is_file())
        assert len(blobs) == 4
        damaged = bytearray(blobs[0].read_bytes())
        damaged[-5] ^= 1
        blobs[0].chmod(0o600)
        blobs[0].write_bytes(damaged)
        blobs[1].unlink()
        ran.clear()
        assert run() == sums
        assert len(ran) == 2
        ran.clear()
        assert run() == sums
        assert not ran

    def test_changes_in_any_order_are_made_once_whatever_is_damaged(self, tmp_path: Path) -> None:
        gone: list[int] = []

        @task(total=COMMUTATIVE)
        def add(total: list[int], number: int) -> int:
            if number == 3 and not gone:
                raise OSError("the third is not there yet")
            total.append(number)
            return 10 * number

        def run(count: int) -> tuple[list[int], list[Any]]:
            with engine("inline", run=tmp_path):
                total: list[int] = []
                results = [add(total, number) for number in range(count)]
                return sorted(wait_on(total)), [each.result() for each in results]

        with pytest.raises(OSError):
            run(6)
        gone.append(1)
        assert run(6) == ([0, 1, 2, 3, 4, 5], [0, 10, 20, 30, 40, 50])
        for path in (tmp_path / "results").rglob(
            "*"
        ):  # one result at a time: states and values, small as they are
            if path.is_file():
                content = path.read_bytes()
                path.chmod(0o600)
                path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
                assert run(6) == ([0, 1, 2, 3, 4, 5], [0, 10, 20, 30, 40, 50])

    def test_arguments_without_content_are_run_each_time_and_harm_nothing(self, tmp_path: Path) -> None:
        import threading

        ran: list[str] = []

        @task
        def hold(lock: Any) -> int:
            ran.append("hold")
            return 1

        @task
        def double(value: int) -> int:
            ran.append("double")
            return 2 * value

        for _ in range(2):
            with engine("inline", run=tmp_path):
                assert wait_on(double(hold(threading.Lock())), double(4)) == (2, 8)
        assert sorted(ran) == ["double", "double", "double", "hold", "hold"]

    def test_nested_calls_are_on_record_too(self, tmp_path: Path) -> None:
        ran: list[str] = []
        fails = [1]

        @task
        def child(number: int) -> int:
            ran.append(f"child {number}")
            return number

        @task(on_failure=CANCEL_SUCCESSORS)
        def parent() -> int:
            ran.append("parent")
            total = sum(wait_on([child(1), child(2)]))
            if fails:
                raise OSError("after its children")
            return total

        with engine("threads", workers=2, run=tmp_path), pytest.raises(OSError):
            wait_on(parent())
        fails.clear()
        with engine("threads", workers=2, run=tmp_path):
            assert wait_on(parent()) == 3
        assert sorted(ran) == ["child 1", "child 2", "parent", "parent"]

    def test_versions_of_an_object_are_on_record(self, tmp_path: Path) -> None:
        ran: list[float] = []

        @task(state=INOUT)
        def advance(state: np.ndarray, by: float) -> float:
            ran.append(by)
            state += by
            return float(state[0])

        for start in (0.0, 0.0, 1.0):
            with engine("threads", workers=2, run=tmp_path):
                state = np.full(2, start)
                results = [advance(state, float(by)) for by in range(3)]
                assert wait_on(state).tolist() == [start + 3.0] * 2
                assert wait_on(results) == [start, start + 1.0, start + 3.0]
        assert sorted(ran) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]  # the third start began from another state

    def test_two_programs_cannot_work_on_one_folder(self, tmp_path: Path) -> None:
        with engine("inline", run=tmp_path), pytest.raises(RunLocked), engine("inline", run=tmp_path):
            pass
