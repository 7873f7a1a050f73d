"""Ranks on machines with networks of their own meet over the wire between them.

Two network namespaces joined by a cable stand for the machines. They share a kernel, and so its clock: what the
ranks find out about each other's clocks has a known answer.
"""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from muster_test_applications import Files

from engine import namespaces, runs
from engine.namespaces import Namespace
from muster.engine.processes import Warded
from muster.engine.run_folder import RunFolder
from muster.training.order import GlobalOrder

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
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        if f":{PORT} " in machine.output("ss", "-ltnH"):
            return
        time.sleep(0.2)
    raise TimeoutError("the cluster's head did not start")


def finish_on(head: Namespace, job: Path, environment: dict[str, str]) -> RunFolder:
    """Runs a job from the cluster's head to its end."""
    command = head.within("muster", "run", str(job))
    until = (
        time.monotonic() + 300.0
    )  # the second machine may still be joining, and a job too large is refused
    while True:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 2 or time.monotonic() > until:
            break
        time.sleep(1.0)
    assert done.returncode == 0, done.stderr
    return runs.newest(job)


def test_ranks_meet_over_the_wire_and_agree_on_the_time(
    head: Namespace, environment: dict[str, str], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    same_machine = runs.finish(runs.write_job(alone, *JOB, f"engine: local, {ONE_THREAD}"))
    job = runs.write_job(tmp_path, *JOB, f"engine: cluster, address: '{head.address}:{PORT}', {ONE_THREAD}")
    run = finish_on(head, job, environment)
    assert runs.digest(run) == runs.digest(same_machine)
    aligned = [event for event in run.events() if event["kind"] == "clock_aligned"]
    assert [event["who"] for event in aligned] == ["rank-00001"]
    detail = aligned[0]["detail"]
    assert 0 < detail["uncertainty_s"] < 0.01
    # The two read time() and perf_counter() of one kernel, one after the other, within microseconds.
    assert abs(detail["offset_s"]) <= detail["uncertainty_s"] + 0.001


def test_each_sample_is_read_once_and_reaches_the_other_machine_over_the_wire(
    head: Namespace, environment: dict[str, str], tmp_path: Path
) -> None:
    """Four epochs of 60 samples: what a rank needs and did not read itself, the other one sends it."""
    Files.made(tmp_path / "samples", 60)
    what = f"app: tests.filed, seed: 3, folder: {tmp_path / 'samples'}"
    how = "ranks: 2, steps: 20, batch: 12, input: {loader: %s, cache: stored}"
    plain = tmp_path / "plain"
    plain.mkdir()
    expected = runs.finish(runs.write_job(plain, what, how % "plain", f"engine: local, {ONE_THREAD}"))
    (tmp_path / "reads").unlink()
    job = runs.write_job(
        tmp_path,
        what,
        how % "look-ahead",
        f"engine: cluster, address: '{head.address}:{PORT}', {ONE_THREAD}",
    )
    run = finish_on(head, job, environment)
    assert runs.digest(run) == runs.digest(expected)
    (event,) = [event["detail"] for event in run.events() if event["kind"] == "input"]
    assert event["store_reads"] == event["planned_store_reads"] == 60
    assert len(Files(str(tmp_path / "samples")).reads()) == 60 + 12  # and the warm-up's
    assert event["lost_copies"] == 0
    order, first_user, users = GlobalOrder(60, 12, seed=3), {}, set()
    for step, rank in itertools.product(range(20), range(2)):
        for key in order.share(step, rank, 2):
            first_user.setdefault(key.index, rank)
            users.add((rank, key.index))
    sent = [sample for rank, sample in users if rank != first_user[sample]]
    assert event["peer_bytes"] == len(sent) * 32  # each once: there is room to keep it
