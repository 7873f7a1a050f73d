"""What programs of tasks mean, on every executor."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from engine.flow import programs
from muster.errors import TaskRefused, TaskTimeout
from muster.flow import (
    CANCEL_SUCCESSORS,
    COMMUTATIVE,
    IGNORE,
    IN_DELETE,
    INOUT,
    Collection,
    File,
    as_completed,
    barrier,
    cancel_wanted,
    engine,
    group,
    retry,
    stop_when,
    task,
    wait_on,
)

EXECUTORS = ["inline", "threads"]


@pytest.fixture(params=EXECUTORS)
def flow(request: pytest.FixtureRequest) -> Iterator[Any]:
    with engine(request.param, workers=2) as flow:
        yield flow


@pytest.fixture
def threads() -> Iterator[Any]:
    with engine("threads", workers=2) as flow:
        yield flow


@task
def add(one: float, other: float) -> float:
    return one + other


@task(state=INOUT)
def advance(state: Any, step: Any) -> None:
    state += step


@task
def total(values: Any) -> float:
    return float(np.sum(values))


@pytest.mark.parametrize("executor", EXECUTORS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=programs.steps)
def test_random_programs_give_what_plain_python_gives(executor: str, program: list[programs.Step]) -> None:
    expected, boxes = programs.run(program, programs.PLAIN)
    with engine(executor, workers=3):
        results, found = programs.run(program, programs.TASKS)
    assert results == expected
    assert [box.digest() for box in found] == [box.digest() for box in boxes]


def test_a_task_keeps_its_name_and_returns_a_future(flow: Any) -> None:
    assert add.__name__ == "add"
    future = add(1, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert concurrent.futures.wait([future], timeout=60).done == {future}
    assert next(concurrent.futures.as_completed([add(future, 4)], timeout=60)).result() == 7
    assert wait_on(future, 5, [future, {"a": future}], (future,)) == (3, 5, [3, {"a": 3}], (3,))


def test_the_callers_object_never_changes_and_stands_for_its_newest_version(flow: Any) -> None:
    state = np.zeros(3)
    before = total(state)
    advance(state, 1.0)
    between = total(state)
    advance(state, 2.0)
    assert (wait_on(before), wait_on(between), wait_on(total(state))) == (0.0, 3.0, 9.0)
    assert state.tolist() == [0.0, 0.0, 0.0]
    assert wait_on(state).tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        wait_on(state)[0] = 1.0


def test_a_future_can_be_changed_like_an_object(flow: Any) -> None:
    @task
    def zeros(count: int) -> np.ndarray:
        return np.zeros(count)

    state = zeros(2)
    advance(state, 1.0)
    advance(state, 1.0)
    assert wait_on(state).tolist() == [2.0, 2.0]
    assert state.result().tolist() == [0.0, 0.0]  # what its own task returned


def test_one_object_passed_twice_is_one_object_in_the_task(flow: Any) -> None:
    @task(one=INOUT)
    def fill(one: list[int], other: list[int]) -> int:
        one.append(1)
        return len(other)

    values: list[int] = []
    assert wait_on(fill(values, values)) == 1  # as in plain Python
    assert wait_on(fill(values, [values])) == 1
    assert wait_on(values) == [1, 1]


def test_elements_of_a_collection_are_data_of_their_own(flow: Any) -> None:
    @task(blocks=Collection(INOUT))
    def scale(blocks: Any, factor: float) -> None:
        for block in blocks.values() if isinstance(blocks, dict) else blocks:
            for each in block if isinstance(block, list) else [block]:
                each *= factor

    blocks = [np.ones(2), np.ones(3), np.ones(4)]
    scale(blocks[:2], 5.0)
    advance(blocks[2], 1.0)
    scale({"a": blocks[2], "b": [blocks[0]]}, 2.0)
    assert [wait_on(total(block)) for block in blocks] == [20.0, 15.0, 16.0]
    assert wait_on(total(wait_on(blocks)[0])) == 20.0


def test_commutative_tasks_run_one_at_a_time_in_the_order_they_are_ready(threads: Any) -> None:
    order: list[int] = []
    at_once: list[int] = []
    busy = threading.Lock()

    @task
    def after(seconds: float, number: int) -> int:
        time.sleep(seconds)
        return number

    @task(state=COMMUTATIVE)
    def merge(state: list[int], number: int) -> None:
        at_once.append(busy.acquire(blocking=False))
        time.sleep(0.01)
        order.append(number)
        state.append(number)
        busy.release()

    state: list[int] = []
    merge(state, after(0.4, 1))
    merge(state, after(0.0, 2))
    merge(state, after(0.0, 3))
    assert sorted(wait_on(state)) == [1, 2, 3]
    assert order[-1] == 1  # the first in the program was ready last
    assert all(at_once)


def test_two_chains_on_different_objects_do_not_wait_for_each_other(threads: Any) -> None:
    meeting = threading.Barrier(2, timeout=60)

    @task(state=INOUT)
    def meet(state: list[int], step: int) -> None:
        meeting.wait()  # passes only if the other chain is at the same step at the same time
        state.append(step)

    one: list[int] = []
    other: list[int] = []
    for step in range(5):
        meet(one, step)
        meet(other, step)
    assert wait_on(one, other) == ([0, 1, 2, 3, 4],) * 2


def test_a_reader_of_an_old_version_does_not_hold_up_the_next_one(threads: Any) -> None:
    changed = threading.Event()

    @task
    def read(state: np.ndarray) -> float:
        assert changed.wait(60)  # until the version after it exists
        return float(state[0])

    @task(state=INOUT)
    def change(state: np.ndarray) -> None:
        state[0] = 7.0
        changed.set()

    state = np.zeros(1)
    old = read(state)
    change(state)
    assert wait_on(state)[0] == 7.0
    assert wait_on(old) == 0.0


def test_parents_that_wait_for_their_children_do_not_starve_them(threads: Any) -> None:
    @task
    def child(number: int) -> int:
        return number * number

    @task
    def parent(number: int) -> int:
        return sum(wait_on([child(number + each) for each in range(4)]))

    results = [parent(0), parent(10), parent(20)]
    assert wait_on(results) == [14, 534, 1854]


def test_a_task_that_waits_for_itself_is_told_so(flow: Any) -> None:
    held: list[Any] = []
    ready = threading.Event()

    @task
    def wait_for_own_future() -> Any:
        ready.wait(5)
        return wait_on(held[0] if held else flow_future_of_self())

    def flow_future_of_self() -> Any:
        from muster.engine.flow.session import running_node

        node = running_node()
        assert node is not None
        return node.returned[0]

    future = wait_for_own_future() if not flow.executor.concurrent else None
    if future is None:
        future = wait_for_own_future()
        held.append(future)
    ready.set()
    with pytest.raises(TaskRefused, match="waits for"):
        wait_on(future)


class TestAliases:
    def test_views_of_an_array_that_a_task_changes_are_refused(self, flow: Any) -> None:
        array = np.zeros(10)
        advance(array[2:5], 1.0)
        with pytest.raises(TaskRefused, match=r"values of total\(\) shares memory with state of advance\(\)"):
            total(array)
        with pytest.raises(TaskRefused, match="shares memory"):
            advance(array[4:8], 1.0)
        assert wait_on(total(array[5:].copy())) == 0.0
        assert wait_on(total(np.ones(3))) == 3.0

    def test_a_view_of_an_array_that_a_task_changed_is_refused(self, flow: Any) -> None:
        array = np.zeros(10)
        advance(array, 1.0)
        with pytest.raises(TaskRefused, match="shares memory"):
            total(array[:5])
        assert wait_on(total(wait_on(array)[:5])) == 5.0

    def test_a_whole_of_which_a_task_changed_a_part_is_refused(self, flow: Any) -> None:
        whole = SimpleNamespace(b=np.zeros(2), c=SimpleNamespace(d=[1]))

        @task
        def look(whole: Any) -> Any:
            return whole

        advance(whole.b, 1.0)
        with pytest.raises(TaskRefused, match=r"whole of look\(\) contains the state of advance\(\)"):
            look(whole)

        @task(values=INOUT)
        def extend(values: list[int]) -> None:
            values.append(2)

        extend(whole.c.d)
        with pytest.raises(TaskRefused, match="contains"):
            look(whole.c)
        # In lists, tuples and dicts it is found and replaced.
        assert wait_on(look([whole.c.d, {"x": whole.b}]))[0] == [1, 2]

    def test_a_part_of_what_a_task_changed_is_refused(self, flow: Any) -> None:
        whole = SimpleNamespace(b=np.zeros(2), items=[[1], [2]])

        @task(whole=INOUT)
        def change(whole: Any) -> None:
            whole.b += 1.0

        change(whole)
        for part in (whole.b, whole.items, whole.items[0]):
            with pytest.raises(TaskRefused, match="part of whole of change"):
                total(part)
        with pytest.raises(TaskRefused, match="shares memory"):
            total(whole.b[:1])
        assert wait_on(total(wait_on(whole).b)) == 2.0

    def test_tensors_that_share_storage_are_refused(self, flow: Any) -> None:
        import torch

        @task(values=INOUT)
        def double(values: Any) -> None:
            values *= 2

        values = torch.ones(4)
        double(values)
        with pytest.raises(TaskRefused, match="shares memory"):
            double(values[:2])
        assert wait_on(values).tolist() == [2.0] * 4
        assert values.tolist() == [1.0] * 4

    def test_what_cannot_change_is_refused(self, flow: Any) -> None:
        for value in (5, 2.0, "text", b"bytes", (1, 2), None, frozenset([1]), np.float64(3)):
            with pytest.raises(TaskRefused, match="cannot change"):
                advance(value, 1)

    def test_what_was_deleted_is_no_more(self, flow: Any) -> None:
        @task(values=IN_DELETE)
        def last(values: Any) -> float:
            return float(np.sum(values))

        values, made = np.ones(3), add(1, 2)
        assert wait_on(last(values), last(made)) == (3.0, 3.0)
        for gone in (values, made):
            with pytest.raises(TaskRefused, match="no more"):
                total(gone)
            with pytest.raises(TaskRefused, match="no more"):
                wait_on(gone)

    def test_addresses_of_objects_that_are_gone_are_not_confused(self, flow: Any) -> None:
        for step in range(300):
            state = np.zeros(4)
            advance(state, float(step))
            assert wait_on(total(np.zeros(4))) == 0.0
            assert wait_on(total(state)) == 4.0 * step
            del state
        assert len(flow.data._by_id) < 200


class TestFailures:
    def test_the_original_exception_is_raised_with_its_lineage(self, flow: Any) -> None:
        error = ZeroDivisionError("the original")

        @task(on_failure=CANCEL_SUCCESSORS)
        def fail() -> float:
            raise error

        needed = add(add(fail(), 1), 2)
        with pytest.raises(ZeroDivisionError) as raised:
            wait_on(needed)
        assert raised.value is error
        assert raised.value.__notes__ == ["raised in task 1 fail; needed by task 2 add → task 3 add"]

    def test_successors_are_cancelled_through_a_diamond_of_depth_five_and_nothing_else(
        self, flow: Any
    ) -> None:
        ran: list[tuple[int, int]] = []

        @task(on_failure=CANCEL_SUCCESSORS)
        def begin(fails: bool) -> int:
            if fails:
                raise OSError("no")
            return 1

        @task
        def join(level: int, place: int, *values: int) -> int:
            ran.append((level, place))
            return sum(values)

        def diamond(fails: bool) -> tuple[Any, list[Any]]:
            made = [level := [begin(fails)]]
            for depth in range(1, 6):
                level = [join(depth, place, *level) for place in range(3)]
                made.append(level)
            return join(6, 0, *level), [each for level in made for each in level]

        broken, parts = diamond(True)
        whole, _ = diamond(False)
        assert wait_on(whole) == 3**5
        assert len(ran) == 16
        with pytest.raises(OSError, match="no"):
            wait_on(broken)
        assert all(isinstance(each.exception(), OSError) for each in parts)

    def test_a_failure_stops_the_flow_until_the_program_has_seen_it(self, flow: Any) -> None:
        @task
        def fail() -> None:
            raise KeyError("stop")

        failed = fail()
        with pytest.raises(KeyError):
            barrier()
        assert wait_on(add(1, 1)) == 2
        with pytest.raises(KeyError):
            wait_on(failed)

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_a_failure_that_nobody_saw_is_raised_at_the_end(self, executor: str) -> None:
        @task
        def fail() -> None:
            raise KeyError("unseen")

        with pytest.raises(KeyError, match="unseen"), engine(executor, workers=1):
            fail()

    def test_ignored_failures_give_the_defaults_and_leave_versions_as_they_were(self, flow: Any) -> None:
        @task(state=INOUT, returns=2, on_failure=IGNORE, defaults=(-1, [0]))
        def half(state: np.ndarray) -> Any:
            state += 1.0
            raise RuntimeError("after half of the work")

        state = np.zeros(2)
        advance(state, 1.0)
        number, values = half(state)
        assert wait_on(number, values) == (-1, [0])
        assert wait_on(state).tolist() == [1.0, 1.0]

    def test_ignoring_without_defaults_is_refused(self) -> None:
        with pytest.raises(TaskRefused, match=r"needs defaults=\(...\), one for each of the 2 values"):
            task(returns=2, on_failure=IGNORE)(lambda: None)

    def test_attempts_are_counted_and_wait_twice_as_long_each_time(self, flow: Any) -> None:
        times: list[float] = []

        @task(state=INOUT, on_failure=retry(3, backoff_s=0.1, on=OSError))
        def unsteady(state: list[int]) -> int:
            times.append(time.monotonic())
            state.append(len(times))
            if len(times) < 4:
                raise OSError("again")
            return len(times)

        state = [0]
        assert wait_on(unsteady(state)) == 4
        assert wait_on(state) == [0, 4]  # each attempt begins with what the first one began with
        gaps = np.diff(times)
        assert gaps[0] >= 0.1
        assert gaps[1] >= 0.2
        assert gaps[2] >= 0.4

    def test_only_the_named_exceptions_are_tried_again(self, flow: Any) -> None:
        calls: list[int] = []

        @task(on_failure=retry(5, on=OSError, then=CANCEL_SUCCESSORS))
        def fail(error: type[Exception]) -> None:
            calls.append(1)
            raise error

        with pytest.raises(ValueError):
            wait_on(fail(ValueError))
        assert len(calls) == 1
        with pytest.raises(OSError):
            wait_on(fail(OSError))
        assert len(calls) == 7

    def test_a_wrong_number_of_values_is_a_failure(self, flow: Any) -> None:
        @task(returns=2, on_failure=CANCEL_SUCCESSORS)
        def three() -> tuple[int, ...]:
            return 1, 2, 3

        with pytest.raises(TypeError, match=r"returned 3 values; @task\(returns=2\) promises 2"):
            wait_on(three()[0])

    def test_a_task_that_takes_too_long_has_failed(self, flow: Any) -> None:
        @task(timeout_s=0.05, on_failure=CANCEL_SUCCESSORS)
        def slow() -> bool:
            while not cancel_wanted():
                time.sleep(0.01)
            return True

        with pytest.raises(TaskTimeout, match=r"timeout_s is 0\.05"):
            wait_on(slow())


class TestGroups:
    def test_a_group_is_waited_for(self, flow: Any) -> None:
        done: list[int] = []

        @task
        def note(number: int) -> None:
            time.sleep(0.05)
            done.append(number)

        with group("notes") as notes:
            for number in range(4):
                note(number)
        notes.barrier()
        assert sorted(done) == [0, 1, 2, 3]

    def test_a_cancelled_group_takes_what_needs_it_along_and_nothing_else(self, threads: Any) -> None:
        gate, started = threading.Event(), threading.Event()

        @task
        def hold() -> str:
            started.set()
            gate.wait(60)
            return "stopped" if cancel_wanted() else "ran"

        other = add(1, 1)
        with group("held") as held:
            first = hold()
            second = add(first, 1)
        outside = add(second, 1)
        assert started.wait(60)
        held.cancel()
        gate.set()
        assert wait_on(other) == 2
        for each in (first, second, outside):
            with pytest.raises(concurrent.futures.CancelledError):
                each.result(60)

    def test_what_was_cancelled_has_not_changed_its_data(self, threads: Any) -> None:
        gate = threading.Event()

        @task
        def wait() -> float:
            gate.wait(60)
            return 1.0

        state = np.zeros(1)
        advance(state, 5.0)
        with group("late") as late:
            for _ in range(3):
                advance(state, wait())
        late.cancel()
        gate.set()
        assert wait_on(state)[0] == 5.0
        advance(state, 1.0)
        assert wait_on(state)[0] == 6.0

    def test_speculation_stops_with_the_first_result_that_is_enough(self, flow: Any) -> None:
        ran: list[int] = []

        @task(state=INOUT)
        def halve(state: np.ndarray) -> float:
            state /= 2.0
            ran.append(1)
            time.sleep(0.002)
            return float(state[0])

        state = np.ones(1)
        with stop_when(lambda value: value < 0.01) as until:
            for _ in range(500):
                if until.watch(halve(state)):
                    break
        assert until.stopped
        assert until.index == 6
        assert until.result == 2.0**-7
        barrier()
        assert len(ran) < 500
        assert wait_on(state)[0] <= 2.0**-7

    def test_completed_tasks_come_first(self, threads: Any) -> None:
        @task
        def after(seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        futures = [after(0.5), after(0.01)]
        assert [each.result() for each in as_completed(futures)] == [0.01, 0.5]


class TestRefusals:
    def test_declarations_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(TaskRefused, match="has no parameter 'stat'; it has state, step"):
            task(stat=INOUT)(lambda state, step: None)
        with pytest.raises(TaskRefused, match="should be a direction such as INOUT"):
            task(state="INOUT")(lambda state: None)  # type: ignore[call-overload]
        with pytest.raises(TaskRefused, match=r"File\(IN_DELETE\) does not exist"):
            File(IN_DELETE)
        with pytest.raises(TaskRefused, match="no such executor"), engine("gpu"):  # type: ignore[arg-type]
            pass

    def test_more_cores_than_there_are_are_refused(self, threads: Any) -> None:
        with pytest.raises(TaskRefused, match="wants 3 cores, and there are 2"):
            task(cores=3)(lambda: None)()

    def test_cores_can_follow_from_arguments_that_tasks_make(self, threads: Any) -> None:
        at_once: list[int] = []
        running: list[int] = []

        @task(cores=lambda wide: wide)
        def work(wide: int) -> int:
            running.append(1)
            at_once.append(len(running))
            time.sleep(0.05)
            running.pop()
            return wide

        assert wait_on([work(add(1, 1)) for _ in range(3)]) == [2, 2, 2]
        assert max(at_once) == 1

    def test_a_flow_that_has_ended_takes_no_more(self) -> None:
        with engine("threads", workers=1) as flow:
            pass
        with pytest.raises(TaskRefused, match="after its flow had ended"):
            flow.submit(add, (1, 2), {})


def test_a_hundred_thousand_tasks_are_small() -> None:
    import gc
    import tracemalloc

    gate = threading.Event()

    @task
    def wait() -> int:
        gate.wait(60)
        return 0

    @task
    def count(before: int) -> int:
        return before + 1

    with engine("threads", workers=1):
        first = wait()
        gc.collect()
        tracemalloc.start()
        futures = [count(first) for _ in range(20_000)]
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gate.set()
        assert wait_on(futures[-1]) == 1
    assert taken / 20_000 <= 1024
