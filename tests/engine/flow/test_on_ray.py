"""What is particular to tasks in processes of Ray: bundles, large values, and workers that die."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from engine.flow import programs
from muster.engine.flow.ray_worker import LARGE
from muster.errors import TaskRefused, TaskTimeout, WorkerLost
from muster.flow import (
    CANCEL_SUCCESSORS,
    COMMUTATIVE,
    INOUT,
    barrier,
    cancel_wanted,
    engine,
    group,
    retry,
    task,
    wait_on,
)


@pytest.fixture(scope="module")
def flow(ray_engine: Any) -> Iterator[Any]:
    with engine("ray", workers=2, on=ray_engine) as flow:
        yield flow


@task
def add(one: Any, other: Any) -> Any:
    return one + other


@task
def process(_: Any = None) -> int:
    return os.getpid()


@task(state=INOUT)
def advance(state: Any, step: Any) -> None:
    state += step


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs.steps)
def test_random_programs_give_what_plain_python_gives(flow: Any, program: list[programs.Step]) -> None:
    expected, boxes = programs.run(program, programs.PLAIN)
    results, found = programs.run(program, programs.TASKS)
    assert results == expected
    assert [box.digest() for box in found] == [box.digest() for box in boxes]


def test_tasks_run_in_other_processes_and_many_small_ones_in_few_messages(flow: Any) -> None:
    before = flow.executor.messages
    pids = set(wait_on([process(each) for each in range(1000)]))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert flow.executor.messages - before <= 200


def test_large_values_stay_in_the_store_and_are_read_only(flow: Any) -> None:
    @task
    def make(count: int) -> np.ndarray:
        return np.arange(count, dtype=np.float64)

    @task
    def look(values: np.ndarray) -> tuple[bool, float]:
        return values.flags.writeable, float(values.sum())

    count = LARGE  # of 8 bytes each
    for _ in range(3):  # found to be large the first time, sent so from then on
        values = make(count)
        advance(values, 1.0)
        assert wait_on(look(values)) == (False, count * (count - 1) / 2 + count)
        assert values.result()[:2].tolist() == [0.0, 1.0]
        assert wait_on(values)[:2].tolist() == [1.0, 2.0]
        assert not wait_on(values).flags.writeable


def test_several_large_values_of_one_task_are_told_apart(flow: Any) -> None:
    @task(returns=2, state=INOUT)
    def split(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state *= 2.0
        return state[:LARGE] + 1.0, state[LARGE:] - 1.0

    for _ in range(2):
        state = np.ones(2 * LARGE)
        low, high = split(state)
        sums = [add(each, 0.0) for each in (low, high, state)]
        assert [float(wait_on(each).mean()) for each in sums] == [3.0, 1.0, 2.0]


def test_an_exception_keeps_its_type_its_lineage_and_where_it_was_raised(flow: Any) -> None:
    @task(on_failure=CANCEL_SUCCESSORS)
    def fail_over_there(value: int) -> int:
        return value // 0

    with pytest.raises(ZeroDivisionError) as raised:
        wait_on(add(fail_over_there(1), 1))
    assert "fail_over_there" in raised.value.__notes__[0]
    assert "→" not in raised.value.__notes__[0].partition("needed by")[0]
    assert "in fail_over_there" in str(raised.value.__cause__)


def test_what_cannot_be_sent_fails_that_task_alone_with_a_sentence(flow: Any) -> None:
    @task(on_failure=CANCEL_SUCCESSORS)
    def look(value: Any) -> Any:
        return value

    bad, good = look(threading.Lock()), look(3)
    assert wait_on(good) == 3
    with pytest.raises(TaskRefused, match=r"an argument of task \d+ look cannot be sent to another process"):
        wait_on(bad)
    with pytest.raises(TaskRefused, match="inside an object"):
        wait_on(look(_Holder(good)))


class _Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def test_a_killed_worker_costs_its_bundle_one_more_run_and_nothing_else(flow: Any, tmp_path: Path) -> None:
    @task(total=COMMUTATIVE)
    def note(total: list[int], number: int) -> None:
        total.append(number)

    @task
    def work(number: int) -> int:
        with open(tmp_path / f"{number}-{os.getpid()}-{time.monotonic_ns()}", "w"):
            time.sleep(0.02)
        return number

    total: list[int] = []
    for number in range(60):
        note(total, work(number))
    kills = 0
    while kills < 3:
        time.sleep(0.15)
        pids = {int(path.name.split("-")[1]) for path in tmp_path.iterdir()}
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists() and _is_worker(pid)]
        if alive:
            os.kill(alive[0], signal.SIGKILL)
            kills += 1
    assert sorted(wait_on(total)) == list(range(60))
    runs = len(list(tmp_path.iterdir()))
    assert 60 <= runs <= 60 + 2 * kills


def _is_worker(pid: int) -> bool:
    try:
        return "FlowWorker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_task_that_kills_its_worker_again_and_again_has_failed(flow: Any) -> None:
    @task(on_failure=CANCEL_SUCCESSORS)
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerLost, match=r"task \d+ die lost its worker 3 times"):
        wait_on(die())
    assert wait_on(add(1, 2)) == 3


def test_a_task_that_does_not_end_in_its_time_is_killed(flow: Any) -> None:
    @task(timeout_s=0.3, on_failure=CANCEL_SUCCESSORS)
    def sleep() -> None:
        time.sleep(600)

    with pytest.raises(TaskTimeout, match=r"is not done after its timeout_s of 0\.3 s"):
        wait_on(sleep())
    assert wait_on(add(1, 2)) == 3


def test_a_cancelled_task_is_asked_to_end_and_killed_after_its_grace(flow: Any, tmp_path: Path) -> None:
    @task
    def polite(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        while not cancel_wanted():
            time.sleep(0.01)
        Path(path + ".ended").touch()

    @task
    def deaf(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        time.sleep(600)

    with group("both") as both:
        futures = [polite(str(tmp_path / "polite")), deaf(str(tmp_path / "deaf"))]
    for name in ("polite", "deaf"):
        while not (tmp_path / name).exists() or not (tmp_path / name).read_text():
            time.sleep(0.01)
    pid = int((tmp_path / "deaf").read_text())
    after = add(futures[1], 1)
    others = [add(each, 0) for each in range(20)]
    both.cancel(grace_s=0.5)
    for future in [*futures, after]:
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(60)
    assert (tmp_path / "polite.ended").exists()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
    assert wait_on(others) == list(range(20))


def test_attempts_are_made_in_other_processes_too(flow: Any, tmp_path: Path) -> None:
    @task(on_failure=retry(3, backoff_s=0.01, on=OSError))
    def unsteady(folder: str) -> int:
        tries = len(list(Path(folder).iterdir()))
        (Path(folder) / str(tries)).touch()
        if tries < 2:
            raise OSError("again")
        return tries

    assert wait_on(unsteady(str(tmp_path))) == 2


def test_a_task_has_as_many_threads_as_cores(flow: Any) -> None:
    @task(cores=2)
    def wide() -> str:
        return os.environ["OMP_NUM_THREADS"]

    @task
    def narrow() -> str:
        return os.environ["OMP_NUM_THREADS"]

    assert wait_on(wide(), narrow()) == ("2", "1")
    barrier()
