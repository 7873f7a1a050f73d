"""Ranks on machines with networks of their own meet over the wire between them.

Two network namespaces joined by a cable stand for the machines. They share a kernel, and so its clock: what the
ranks find out about each other's clocks has a known answer.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine import namespaces, runs
from engine.namespaces import Namespace
from muster.engine.processes import Warded

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(bool(reason := namespaces.why_not()), reason=reason or "possible"),
]

PORT = 6379
NODE = "ray", "start", "--num-cpus=1", "--object-store-memory=100000000", "--block"
JOB = "app: tests.network, seed: 3", "ranks: 2, steps: 10, batch: 12"
ONE_THREAD = "threads_per_rank: 1"  # the order of summation depends on it


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """What both machines and the user have in their environment; everything of the cluster ends with the test."""
    with Warded(secrets.token_hex(5)) as warded:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        yield (
            plain
            | token
            | warded.mark_environment
            | {"RAY_TMPDIR": str(warded.folder), "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(warded.folder)}
        )


@pytest.fixture
def head(environment: dict[str, str]) -> Iterator[Namespace]:
    """The head of a Ray cluster of two machines, one core each."""
    with namespaces.joined() as (first, second), ExitStack() as stack:
        nodes = []
        for machine, role in (
            (first, ["--head", f"--port={PORT}", "--include-dashboard=false"]),
            (second, [f"--address={first.address}:{PORT}"]),
        ):
            node = subprocess.Popen(
                machine.within(*NODE, *role, f"--node-ip-address={machine.address}"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            stack.callback(node.wait)
            stack.callback(node.terminate)
            nodes.append(node)
            if machine is first:
                wait_until_listening(first)
        yield first


def wait_until_listening(machine: Namespace) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if f":{PORT} " in machine.output("ss", "-ltnH"):
            return
        time.sleep(0.2)
    raise TimeoutError("the cluster's head did not start")


def test_ranks_meet_over_the_wire_and_agree_on_the_time(
    head: Namespace, environment: dict[str, str], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    same_machine = runs.finish(runs.write_job(alone, *JOB, f"engine: local, {ONE_THREAD}"))
    job = runs.write_job(tmp_path, *JOB, f"engine: cluster, address: '{head.address}:{PORT}', {ONE_THREAD}")
    command = head.within("muster", "run", str(job))
    until = time.monotonic() + 60.0  # the second machine may still be joining, and a job too large is refused
    while True:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 2 or time.monotonic() > until:
            break
        time.sleep(1.0)
    assert done.returncode == 0, done.stderr
    run = runs.newest(job)
    assert runs.digest(run) == runs.digest(same_machine)
    aligned = [event for event in run.events() if event["kind"] == "clock_aligned"]
    assert [event["who"] for event in aligned] == ["rank-00001"]
    detail = aligned[0]["detail"]
    assert 0 < detail["uncertainty_s"] < 0.01
    # The two read time() and perf_counter() of one kernel, one after the other, within microseconds.
    assert abs(detail["offset_s"]) <= detail["uncertainty_s"] + 0.001
