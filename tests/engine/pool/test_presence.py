"""Workers whose machines come and go: who is told, who is killed, who may take the place."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from muster.engine.pool.chaos import Disturbance, Reaper
from muster.fleet import Availability

# Two machines, one of them away from 10 s to 20 s, both away from 30 s to 40 s.
THERE = Availability((0.0, 10.0, 20.0, 30.0, 40.0), (2, 1, 2, 0, 2), 50.0, notice_s=2.0)
BEGAN = 1000.0


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def watched(presence: Availability, processes: list[subprocess.Popen[bytes]], told: list[str]) -> Reaper:
    reaper = Reaper(
        Disturbance(presence=presence), lambda kind, who, detail: told.append(f"{kind} {who}"), BEGAN
    )
    for slot, process in enumerate(processes):
        reaper.joined(f"worker {slot}", process.pid, slot, 0, BEGAN)
    return reaper


def test_a_machine_that_goes_takes_its_worker_and_no_other(processes: list[subprocess.Popen[bytes]]) -> None:
    told: list[str] = []
    reaper = watched(Availability(THERE.times_s, THERE.instances, 50.0), processes, told)
    reaper.tend(BEGAN + 9.9)
    assert told == []
    reaper.tend(BEGAN + 10.0)
    assert told == ["killed worker 1"]
    assert processes[1].wait(10) == -signal.SIGKILL
    assert processes[0].poll() is None
    assert reaper.killed == {"worker 1"}
    reaper.tend(BEGAN + 30.0)
    assert told == ["killed worker 1", "killed worker 0"]
    assert processes[0].wait(10) == -signal.SIGKILL


def test_notice_comes_before_the_end_and_once(processes: list[subprocess.Popen[bytes]]) -> None:
    told: list[str] = []
    reaper = watched(THERE, processes, told)
    for late in (7.9, 8.0, 8.5, 9.9):
        reaper.tend(BEGAN + late)
    assert told == ["notice worker 1"]
    assert processes[1].wait(10) == -signal.SIGTERM
    reaper.gone("worker 1")  # it has handed in what it had, and left
    reaper.tend(BEGAN + 10.0)
    assert told == ["notice worker 1"]
    assert processes[0].poll() is None


def test_a_place_is_free_while_its_machine_is_there_and_stays() -> None:
    reaper = Reaper(Disturbance(presence=THERE), lambda *_: None, BEGAN)
    free = {slot: [at for at in range(0, 50, 1) if reaper.admits(slot, BEGAN + at)] for slot in range(3)}
    away_or_noticed = {0: range(28, 40), 1: [*range(8, 20), *range(28, 40)]}
    for slot, gone in away_or_noticed.items():
        assert free[slot] == [at for at in range(50) if at not in gone]
    assert free[2] == []
    assert Reaper(Disturbance(), lambda *_: None).admits(7, 1e9)


def test_a_worker_may_also_be_killed_for_its_own_time(processes: list[subprocess.Popen[bytes]]) -> None:
    told: list[str] = []
    always = Availability((0.0,), (2,), 50.0)
    disturbance = Disturbance(kill_every_s=5.0, presence=always, seed=3)
    reaper = Reaper(disturbance, lambda kind, who, detail: told.append(f"{kind} {who}"), BEGAN)
    reaper.joined("worker 0", processes[0].pid, 0, 0, BEGAN)
    life_s = disturbance.life_s(0, 0)
    assert life_s is not None
    reaper.tend(BEGAN + 0.99 * life_s)
    assert told == []
    reaper.tend(BEGAN + life_s)
    assert told == ["killed worker 0"]
    assert processes[0].wait(10) == -signal.SIGKILL
