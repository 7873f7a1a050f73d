"""A pool on Ray: workers and the coordinator are killed for real, and nothing is lost, doubled or changed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import muster.merge
import muster.trust
from muster.engine import gang
from muster.engine.pool.chaos import Disturbance
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import replayed
from muster.engine.pool.ledger import Ledger
from muster.engine.pool.ray_pool import RayPool, ray_pool
from muster.engine.pool.rules import BelowQuorum, Rules
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.engine.ray_engine import Session
from muster.errors import MusterError

MODEL = {"w": np.zeros(1000)}


class Rounds:
    """Six units in each of some rounds."""

    def __init__(self, count: int) -> None:
        self.count = count

    def units(self, number: int) -> list[tuple[dict[str, int], int]]:
        return [({"round": number, "place": place}, 3) for place in range(6)]


def coordinator(
    folder: Path,
    count: int,
    told: object = None,
    merged: object = None,
    trust: muster.trust.Replication | None = None,
) -> Coordinator:
    options = {"trust": trust} | ({} if told is None else {"told": told, "merged": merged})
    return Coordinator(
        folder,
        model=MODEL,
        fold=muster.merge.get("fedadam"),
        rounds=Rounds(count),
        rules=Rules(silence_s=20),
        **options,  # type: ignore[arg-type]
    )


def slowly(task: Task) -> Outcome:
    """Some arithmetic that takes a while, and the same every time."""
    time.sleep(0.03)
    generator = np.random.default_rng([task.work["round"], task.work["place"]])
    return Outcome({"w": task.model["w"] + generator.normal(size=1000)}, task.samples)


def dies(task: Task) -> Outcome:
    """Takes its process with it on one unit."""
    if task.work["place"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return slowly(task)


@pytest.fixture
def session(ray_engine: gang.Engine) -> Session:
    assert ray_engine.session is not None
    return ray_engine.session


@pytest.mark.kill
def test_workers_and_coordinators_that_are_killed_change_nothing(session: Session, tmp_path: Path) -> None:
    with coordinator(tmp_path / "straight", 12) as pool:
        Worker(pool, "a", slowly).run()
        straight = pool.wait(0)
    events: list[tuple[str, str, str]] = []
    build = partial(coordinator, tmp_path / "killed", 12)
    with ray_pool(
        session,
        lambda told, merged: build(told=told, merged=merged),
        slowly,
        workers=2,
        told=lambda *event: events.append(event),
    ) as ray:
        seen = []
        for version in ray.versions():
            seen.append(version.number)
            if version.number in (2, 7):
                kill_a_worker(ray)
            if version.number in (4, 9):
                os.kill(pid_of(ray, ray.coordinator), signal.SIGKILL)
        final = ray.newest()
    assert sum(kind == "worker_lost" for kind, _, _ in events) == 2
    assert seen == list(range(13))
    assert final.number == 12
    np.testing.assert_array_equal(final.model["w"], straight.model["w"])
    again = replayed(tmp_path / "killed", muster.merge.get("fedadam"))
    np.testing.assert_array_equal(again.model["w"], straight.model["w"])
    with Ledger(tmp_path / "killed" / "ledger.sqlite") as ledger:
        assert sorted(each.unit for each in ledger.accepted()) == list(range(72))


def kill_a_worker(ray: RayPool) -> None:
    """One of those that live: whoever was killed before may not be missed yet."""
    for pid in ray.pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError("no worker lives")


def pid_of(ray: RayPool, actor: Any) -> int:
    """Of an actor that may be about to be started again."""
    while True:
        with contextlib.suppress(ray._ray.exceptions.ActorUnavailableError):
            return int(ray._ray.get(actor.pid.remote()))
        time.sleep(0.1)


class Switch:
    """Machines that are there while a test wants them."""

    notice_s = 0.0

    def __init__(self, machines: int) -> None:
        self.machines = machines

    def at(self, time_s: float) -> int:
        return self.machines


@pytest.mark.kill
def test_workers_go_with_their_machines_and_come_back_with_them(session: Session, tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    machines = Switch(1)
    with ray_pool(
        session,
        lambda told, merged: coordinator(tmp_path, 12, told, merged),
        slowly,
        workers=2,
        told=lambda kind, who, detail: events.append((kind, who)),
        disturbance=Disturbance(presence=machines),
    ) as ray:
        versions = ray.versions()
        while next(versions).number < 3:
            assert {who for _, who in events} <= {"worker 0"}  # there is no machine for another
        machines.machines = 0
        while ray.pids:
            ray.news()
        before = ray.accepted
        for _ in range(5):
            assert ray.news().accepted == before
        machines.machines = 2
        final = [*versions, ray.newest()][-1]
    assert final.number == 12
    joined = [who for kind, who in events if kind == "joined"]
    assert [who for kind, who in events if kind == "killed"] == ["worker 0"]
    assert "worker 0" in joined
    assert set(joined[1:]) <= {"worker 1", "worker 0.1"}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert sum(each.samples for each in ledger.accepted()) == 12 * 6 * 3


@pytest.mark.kill
def test_a_unit_that_kills_its_workers_is_named_and_not_retried_for_ever(
    session: Session, tmp_path: Path
) -> None:
    with (
        ray_pool(
            session,
            lambda told, merged: coordinator(tmp_path, 1, told, merged),
            dies,
            workers=2,
        ) as ray,
        pytest.raises(BelowQuorum, match="1 of 6 units were set aside after 5 attempts each: 2"),
    ):
        list(ray.versions())


class Unloadable:
    """Work that no other process can load."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("no_such_module_anywhere",)


def test_workers_that_cannot_start_end_the_pool_with_the_reason(session: Session, tmp_path: Path) -> None:
    with (
        ray_pool(
            session,
            lambda told, merged: coordinator(tmp_path, 1, told, merged),
            Unloadable(),  # type: ignore[arg-type]
            workers=2,
        ) as ray,
        pytest.raises(
            MusterError,
            match=r"10 workers have died one after the other without a result; .*no_such_module_anywhere",
        ),
    ):
        list(ray.versions())


def lies_sometimes(task: Task) -> Outcome:
    """The worker at place 1 lies about one unit in each round; the others are honest."""
    outcome = slowly(task)
    if task.slot == 1 and task.work["place"] == 3:
        return Outcome({"w": task.model["w"] - 1}, task.samples)
    return outcome


def test_a_liar_is_caught_its_place_is_given_up_and_the_model_is_the_honest_one(
    tmp_path: Path, session: Session
) -> None:
    events: list[tuple[str, str, str]] = []

    def build(told: Any, merged: Any) -> Coordinator:
        return coordinator(tmp_path / "pool", 12, told, merged, muster.trust.Replication(1.0))

    with ray_pool(
        session, build, lies_sometimes, workers=3, told=lambda *event: events.append(event)
    ) as pool:
        for _ in pool.versions():
            pass
        final = pool.newest()
    honest = coordinator(tmp_path / "honest", 12)
    Worker(honest, "alone", slowly).run()
    np.testing.assert_array_equal(final.model["w"], honest.wait(0).model["w"])
    honest.close()
    assert [who for kind, who, _ in events if kind == "lie"] == ["worker 1"]
    assert [who for kind, who, _ in events if kind == "left" and who == "worker 1"] == ["worker 1"]
    assert {who for kind, who, _ in events if kind == "joined"} == {"worker 0", "worker 1", "worker 2"}


def lies_always(task: Task) -> Outcome:
    """Only the worker at place 0 is honest."""
    outcome = slowly(task)
    return outcome if task.slot == 0 else Outcome({"w": outcome.weights["w"] + task.slot}, task.samples)


def test_a_pool_whose_workers_were_nearly_all_caught_says_so(tmp_path: Path, session: Session) -> None:

    def build(told: Any, merged: Any) -> Coordinator:
        trust = muster.trust.Replication(1.0, trusted=["worker 0"])
        return coordinator(tmp_path / "pool", 3, told, merged, trust)

    with (
        pytest.raises(
            MusterError, match="2 workers were caught lying, and nobody takes their places: 1 are left"
        ),
        ray_pool(session, build, lies_always, workers=3) as pool,
    ):
        for _ in pool.versions():
            pass
