"""The ledger: each unit's result counts once, whatever ends when; beside a model of a few lines, and under kills."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muster.engine.pool.group_commit import GroupCommit
from muster.engine.pool.ledger import Ledger, NotActive, Unit
from muster.errors import DataError


def units(count: int) -> list[Unit]:
    return [Unit(number, {"shard": number}, samples=10 + number) for number in range(count)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        opened.add(units(3))
        yield opened


def test_a_unit_goes_from_hand_to_hand_until_a_result_is_accepted(ledger: Ledger) -> None:
    lease = ledger.grant("a", now=1.0, deadline=5.0, base_version=7)
    assert lease is not None
    assert (lease.unit, lease.attempt, lease.base_version) == (Unit(0, {"shard": 0}, 10), 1, 7)
    ledger.extend(lease.token, deadline=9.0)
    assert ledger.expire(now=8.0) == []
    assert ledger.expire(now=9.5) == [lease.token]
    with pytest.raises(
        NotActive, match="unit 0 to a has ended: expired, no sign of life before its deadline"
    ):
        ledger.accept(lease.token, content="x", samples=1, now=10.0)
    again = ledger.grant("b", now=10.0, deadline=20.0, base_version=8)
    assert again is not None
    assert (again.unit.number, again.attempt) == (0, 2)
    accepted = ledger.accept(again.token, content="x", samples=10, now=12.0, detail={"steps": 4})
    assert (accepted.number, accepted.unit, accepted.worker, accepted.base_version) == (1, 0, "b", 8)
    assert ledger.accepted() == [accepted]
    assert ledger.accepted(after=1) == []
    assert ledger.counts() == {"waiting": 2, "leased": 0, "done": 1, "aside": 0}
    with pytest.raises(NotActive, match="no lease has this token"):
        ledger.extend("guessed", deadline=99.0)


def test_of_two_copies_the_first_result_counts_and_revokes_the_other(ledger: Ledger) -> None:
    grant = {"now": 0.0, "deadline": 9.0, "base_version": 0}
    tokens = {}
    for worker in "abc":
        lease = ledger.grant(worker, **grant)
        assert lease is not None
        tokens[worker] = lease.token
    assert ledger.grant("d", **grant) is None  # nothing waits, and no copies were asked for
    copy = ledger.grant("d", **grant, copies=1)
    assert copy is not None
    assert copy.unit.number == 0
    own = ledger.grant("a", **grant, copies=1)
    assert own is not None
    assert own.unit.number == 1  # not a second time what it has in hand
    ledger.accept(copy.token, content="x", samples=1, now=1.0)
    with pytest.raises(NotActive, match="revoked, the result of d was first"):
        ledger.accept(tokens["a"], content="y", samples=1, now=1.1)
    assert [each.content for each in ledger.accepted()] == ["x"]
    assert {lease.token for lease in ledger.active()} == {tokens["b"], tokens["c"], own.token}


def test_a_unit_that_uses_up_its_attempts_is_set_aside_and_named(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", attempts=2) as ledger:
        ledger.add(units(1))
        for attempt, counts in ((1, True), (2, False), (2, True)):
            lease = ledger.grant("a", now=0.0, deadline=1.0, base_version=0)
            assert lease is not None
            assert lease.attempt == attempt
            aside = ledger.end(lease.token, "failed" if counts else "returned", now=0.5, counts=counts)
        assert aside
        assert ledger.grant("a", now=0.0, deadline=1.0, base_version=0, copies=3) is None
        assert ledger.set_aside() == units(1)
        assert ledger.counts()["aside"] == 1


def test_adding_again_changes_nothing(ledger: Ledger) -> None:
    assert ledger.add([Unit(2, {"shard": "other"}), Unit(3, {})]) == 1
    assert ledger.counts()["waiting"] == 4
    lease = [ledger.grant("a", now=0, deadline=1, base_version=0) for _ in range(3)][-1]
    assert lease is not None
    assert lease.unit.work == {"shard": 2}


def test_facts_are_kept(ledger: Ledger, tmp_path: Path) -> None:
    ledger.note("version", {"number": 3})
    ledger.note("version", {"number": 4})
    ledger.close()
    with Ledger(tmp_path / "ledger.sqlite") as again:
        assert again.noted("version") == {"number": 4}
        assert again.noted("other", 5) == 5


def test_what_is_no_ledger_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"text is no ledger \(file is not a database\)"):
        Ledger(tmp_path / "text")
    with Ledger(tmp_path / "newer") as ledger:
        ledger.note("format", 9)
    with pytest.raises(DataError, match="newer has format 9; this version reads 1"):
        Ledger(tmp_path / "newer")


class Machine(RuleBasedStateMachine):
    """Random grants, results, ends and clocks, beside a model in plain Python."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.ledger = Ledger(Path(":memory:"), attempts=3)
        self.ledger.add(units(count))
        self.now, self.attempts, self.done = 0.0, Counter[int](), dict[int, str]()
        self.aside, self.active, self.ended = set[int](), dict[str, tuple[int, str, float]](), list[str]()

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()

    @staticmethod
    def drawn(data: st.DataObject, tokens: list[str]) -> str:
        """By position: tokens themselves are random."""
        return tokens[data.draw(st.integers(0, len(tokens) - 1))]

    def leased(self, unit: int) -> list[str]:
        return [worker for number, worker, _ in self.active.values() if number == unit]

    @rule(worker=st.sampled_from("abc"), length=st.integers(1, 5), copies=st.integers(0, 2))
    def grant(self, worker: str, length: int, copies: int) -> None:
        lease = self.ledger.grant(
            worker, now=self.now, deadline=self.now + length, base_version=0, copies=copies
        )
        known = {unit.number for unit in units(4)} & set(range(self.total()))
        open_ones = known - self.done.keys() - self.aside
        free = [unit for unit in sorted(open_ones) if not self.leased(unit)]
        shared = [
            unit
            for unit in sorted(open_ones, key=lambda unit: (len(self.leased(unit)), unit))
            if 0 < len(self.leased(unit)) <= copies and worker not in self.leased(unit)
        ]
        expected = free[0] if free else shared[0] if shared and copies else None
        assert (None if lease is None else lease.unit.number) == expected
        if lease is not None:
            self.attempts[lease.unit.number] += 1
            self.active[lease.token] = (lease.unit.number, worker, self.now + length)

    def total(self) -> int:
        return sum(self.ledger.counts().values())

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        token = self.drawn(data, list(self.active))
        unit = self.active[token][0]
        self.ledger.accept(token, content=token, samples=1, now=self.now)
        self.done[unit] = token
        for other in [each for each, (number, _, _) in self.active.items() if number == unit]:
            del self.active[other]
            self.ended.append(other)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), counts=st.booleans())
    def end(self, data: st.DataObject, counts: bool) -> None:
        token = self.drawn(data, list(self.active))
        unit = self.active.pop(token)[0]
        self.attempts[unit] -= not counts
        aside = self.ledger.end(token, "failed", now=self.now, counts=counts)
        assert aside == self.set_aside(unit)
        self.ended.append(token)

    def set_aside(self, unit: int) -> bool:
        if self.leased(unit) or unit in self.done or self.attempts[unit] < 3:
            return False
        self.aside.add(unit)
        return True

    @rule(passed=st.integers(0, 3))
    def wait(self, passed: int) -> None:
        self.now += passed
        late = [token for token, (_, _, deadline) in self.active.items() if deadline < self.now]
        assert set(self.ledger.expire(now=self.now)) == set(late)
        numbers = [self.active.pop(token)[0] for token in late]
        self.ended += late
        for number in numbers:
            self.set_aside(number)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def late_results_are_refused(self, data: st.DataObject) -> None:
        token = self.drawn(data, self.ended)
        with pytest.raises(NotActive):
            self.ledger.accept(token, content="late", samples=1, now=self.now)

    @invariant()
    def the_record_is_that_of_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert {each.unit: each.content for each in self.ledger.accepted()} == self.done
        assert {lease.token for lease in self.ledger.active()} == set(self.active)
        assert {unit.number for unit in self.ledger.set_aside()} == self.aside


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---- kills, crowds and full disks --------------------------------------------------------------------------------------

WRITER = """
import sys, threading
from pathlib import Path
from muster.engine.pool.ledger import Ledger, Unit
ledger = Ledger(Path(sys.argv[1]))
ledger.add([Unit(number, {}) for number in range(100_000)])
lock = threading.Lock()
def work(name):
    while True:
        lease = ledger.grant(name, now=0.0, deadline=1e9, base_version=0)
        with lock:
            print("leased", lease.token, lease.unit.number, flush=True)
        ledger.accept(lease.token, content=lease.token, samples=1, now=1.0)
        with lock:
            print("accepted", lease.token, lease.unit.number, flush=True)
print("ready", flush=True)
for number in range(8):
    threading.Thread(target=work, args=(f"worker {number}",)).start()
"""


@pytest.mark.kill
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged_and_doubles_nothing(tmp_path: Path) -> None:
    path, told = tmp_path / "ledger.sqlite", dict[int, str]()
    draws = random.Random(5)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            if line.endswith("\n"):
                what, token, unit = line.split()
                if what == "accepted":
                    assert int(unit) not in told  # never acknowledged twice
                    told[int(unit)] = token
        process.wait()
        with Ledger(path) as ledger:
            on_record = {each.unit: each.content for each in ledger.accepted()}
            assert on_record.items() >= told.items()
            in_flight = {lease.unit.number for lease in ledger.active()}
            assert len(in_flight) <= 8  # a thread each
            assert not in_flight & on_record.keys()
            assert len(ledger.expire(now=2e9)) == len(in_flight)
    assert len(told) > 100


def test_many_threads_count_as_one_would(tmp_path: Path) -> None:
    with GroupCommit(tmp_path / "db", "CREATE TABLE IF NOT EXISTS t (v INTEGER)") as commits:

        def insert(worker: int) -> None:
            for value in range(50):
                commits.call(lambda c, v=1000 * worker + value: c.execute("INSERT INTO t VALUES (?)", (v,)))

        threads = [threading.Thread(target=insert, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        values = commits.call(lambda c: [row[0] for row in c.execute("SELECT v FROM t")])
    assert sorted(values) == [1000 * worker + value for worker in range(8) for value in range(50)]


def test_work_that_raises_leaves_no_trace_and_disturbs_no_other(tmp_path: Path) -> None:
    with GroupCommit(tmp_path / "db", "CREATE TABLE IF NOT EXISTS t (v INTEGER)") as commits:
        gate = threading.Event()

        def half(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError

        blocker = commits.submit(lambda c: gate.wait())  # so that the following share a transaction
        before = commits.submit(lambda c: c.execute("INSERT INTO t VALUES (0)").rowcount)
        failing = commits.submit(half)
        after = commits.submit(lambda c: c.execute("INSERT INTO t VALUES (2)").rowcount)
        gate.set()
        assert blocker.result()
        assert (before.result(), after.result()) == (1, 1)
        with pytest.raises(ZeroDivisionError):
            failing.result()
        assert commits.call(lambda c: c.execute("SELECT v FROM t ORDER BY v").fetchall()) == [(0,), (2,)]
    with pytest.raises(RuntimeError, match="closed"):
        commits.submit(lambda c: None)


def test_a_full_disk_refuses_what_it_cannot_hold_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with Ledger(small_disk / "ledger.sqlite") as ledger:
        ledger.add(units(50))
        leases = [ledger.grant("a", now=0, deadline=9, base_version=0) for _ in range(50)]
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        taken, told = [], list[str]()
        for lease in leases:
            assert lease is not None
            try:
                ledger.accept(lease.token, content="x" * 4000, samples=1, now=1)
                taken.append(lease.unit.number)
            except sqlite3.OperationalError as error:
                told.append(str(error))
        assert told
        assert all("full" in each for each in told)
        assert [each.unit for each in ledger.accepted()] == taken
        ballast.unlink()
        for lease in leases:
            assert lease is not None
            if lease.unit.number not in taken:
                ledger.accept(lease.token, content="x", samples=1, now=2)
        assert ledger.counts()["done"] == 50


def test_a_log_that_grows_while_it_is_read_was_not_altered(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, durable=False) as writer, Ledger(path) as reader:
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                writer.testify("refused", "w", "numbers that are none", now=0.0)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            seen = [len(reader.evidence()) for _ in range(200)]
        finally:
            stop.set()
            thread.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
