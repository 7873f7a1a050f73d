"""On a cluster a run goes on when a node is lost, grows when one comes back, and leaves the cluster as it found it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from engine import runs
from engine.two_nodes import LOOPBACK_ONLY, TwoNodes, two_nodes
from muster.engine.gang import Engine
from muster.engine.processes import Warded
from muster.engine.run_folder import RunFolder
from muster.spec import load_job

pytestmark = [pytest.mark.kill, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]

STEPS, BATCH, SAMPLES = 160, 12, 48
HOW = f"ranks: 2, steps: {STEPS}, batch: {BATCH}, checkpoint_every: 5 steps, hang_timeout: 60s"
# A step takes 0.18 s on two ranks and 0.36 s on one: time enough for a node to go and to come back.
DELAY = "delay_ms: 30"


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with two_nodes() as started:
        yield started


@contextlib.contextmanager
def started(cluster: TwoNodes, job: Path) -> Iterator[subprocess.Popen[str]]:
    """`muster run` on a job, as a user of the cluster starts it."""
    process = subprocess.Popen(
        ["muster", "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def where(cluster: TwoNodes, min_ranks: int = 1) -> str:
    return f"engine: cluster, address: '{cluster.address}', min_ranks: {min_ranks}"


def lose_and_regain_a_node(cluster: TwoNodes, job: Path) -> RunFolder:
    """A run whose second node is killed after the first checkpoint, and comes back once it goes on without."""
    with started(cluster, job) as process:
        run = runs.newest(job)
        runs.wait_for(run, "checkpoint")
        cluster.tell("remove")
        try:
            runs.wait_for(run, "shrunk")
            runs.wait_for(run, "first_step", count=2)
        finally:
            cluster.tell("add")
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    return run


def surviving(run: RunFolder) -> dict[int, dict[str, float]]:
    """Rank 0's row of each step in the lineage that survives: that of the highest attempt."""
    rows = [row for row in run.table("steps").to_pylist() if row["rank"] == 0]
    return {row["step"]: row for row in sorted(rows, key=lambda row: row["attempt"])}


def untouched(cluster: TwoNodes, before: dict[str, object]) -> bool:
    """Whether the cluster's head is the process it was, both nodes are there, and nobody's work is left on them."""
    idle = {"nodes": 2, "free_cores": 2.0, "actors": [], "groups": []}
    deadline = time.monotonic() + 120.0  # a node that has just come back reports its resources within seconds
    while time.monotonic() < deadline:
        now = cluster.tell("state")
        if idle.items() <= now.items() and not cluster.ranks():
            return now["head"] == before["head"]
        time.sleep(0.2)
    raise AssertionError(f"left on the cluster: {cluster.tell('state')}, ranks {cluster.ranks()}")


def test_a_node_is_lost_and_regained_and_every_sample_of_every_epoch_is_used_once(
    cluster: TwoNodes, tmp_path: Path
) -> None:
    before = cluster.tell("state")
    job = runs.write_job(
        tmp_path,
        f"app: tests.counting, samples: {SAMPLES}, {DELAY}",
        f"{HOW}, optimizer: {{name: sgd, lr: {BATCH}}}",
        where(cluster),
    )
    run = lose_and_regain_a_node(cluster, job)
    kinds = [event["kind"] for event in run.events()]
    assert [kind for kind in kinds if kind in ("rank_lost", "shrunk", "grown")] == [
        "rank_lost",
        "shrunk",
        "grown",
    ]
    sizes = [row["world_size"] for _, row in sorted(surviving(run).items())]
    assert len(sizes) == STEPS
    changes = [size for position, size in enumerate(sizes) if position == 0 or sizes[position - 1] != size]
    assert changes == [2, 1, 2]
    uses = -load_file(run.model_path)["uses"]
    assert uses.tolist() == [STEPS * BATCH / SAMPLES] * SAMPLES
    assert untouched(cluster, before)


def final_loss(run: RunFolder) -> float:
    """Mean over the last 20 steps, 240 samples."""
    rows = surviving(run)
    return statistics.mean(rows[step]["loss"] for step in range(STEPS - 19, STEPS + 1))


def test_the_final_loss_is_that_of_an_undisturbed_run(
    cluster: TwoNodes, local_engine: Engine, tmp_path: Path
) -> None:
    """Within the range of five undisturbed seeds, while the loss still falls: a run that had lost its progress, or had

    counted gradients twice, would lie outside. The range is 0.23 to 0.31; at half the steps it is 0.40 to 0.45. The seed
    that is disturbed is the one nearest to the middle, so that dropout, drawn anew on another number of ranks, which moves
    a final loss by some 0.01, cannot carry it out.
    """
    what, how = "app: tests.network", f"{HOW}, optimizer: {{name: adam, lr: 0.003}}"
    losses = {}
    for seed in range(5):
        folder = tmp_path / f"undisturbed-{seed}"
        folder.mkdir()
        losses[seed] = final_loss(
            runs.train_here(
                local_engine, runs.write_job(folder, f"{what}, seed: {seed}", how, "engine: local")
            )
        )
    low, high = min(losses.values()), max(losses.values())
    seed = min(losses, key=lambda seed: abs(losses[seed] - (low + high) / 2))
    job = runs.write_job(tmp_path, f"{what}, seed: {seed}, {DELAY}", how, where(cluster))
    disturbed = final_loss(lose_and_regain_a_node(cluster, job))
    assert low <= disturbed <= high, losses


def test_more_ranks_than_the_cluster_has_are_refused_at_once(cluster: TwoNodes, tmp_path: Path) -> None:
    before = cluster.tell("state")
    how = HOW.replace("ranks: 2", "ranks: 3")
    job = runs.write_job(tmp_path, "app: tests.counting", how, where(cluster, min_ranks=3))
    with started(cluster, job) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "how.ranks: the cluster has room for 2 ranks, and the job wants 3, at least 3" in errors
    assert "lower how.ranks or where.min_ranks" in errors
    assert "Traceback" not in errors
    assert "ranks_started" not in [event["kind"] for event in runs.newest(job).events()]
    assert untouched(cluster, before)


def test_a_killed_run_leaves_nothing_on_the_cluster(cluster: TwoNodes, tmp_path: Path) -> None:
    before = cluster.tell("state")
    job = runs.write_job(tmp_path, f"app: tests.counting, {DELAY}", HOW, where(cluster))
    with started(cluster, job) as process:
        run = runs.newest(job)
        runs.wait_for(run, "first_step")
        assert len(cluster.ranks()) == 2
        process.kill()
        process.communicate()
        runs.wait_until_gone(run)
    assert untouched(cluster, before)


def test_the_documented_example_runs(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "cluster.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    runs.write_job(tmp_path, "app: tests.counting", "ranks: 2, steps: 8, batch: 8", "engine: local")
    with Warded(secrets.token_hex(5)) as warded:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = plain | LOOPBACK_ONLY | warded.mark_environment | {"RAY_TMPDIR": str(warded.folder)}
        done = subprocess.run(
            [sys.executable, "-c", block],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    run = runs.newest(tmp_path / "job.yaml")
    assert done.stdout.splitlines()[-1] == f"done {run.report_path}"
    assert {row["world_size"] for row in run.table("steps").to_pylist()} == {2}


def test_the_kubernetes_manifest_holds_a_job_that_is_accepted(tmp_path: Path) -> None:
    manifest = (REPOSITORY / "examples" / "kuberay" / "superres.yaml").read_text()
    ray_job, config = YAML(typ="safe").load_all(manifest)
    job = tmp_path / "superres.yaml"
    job.write_text(config["data"]["superres.yaml"])
    workers = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    cores = float(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    parsed = load_job(job, ["where.address=10.0.0.1:6379"])
    assert parsed.how.ranks * parsed.where.cpus_per_rank <= workers["replicas"] * cores


def test_the_slurm_script_is_valid_shell() -> None:
    script = REPOSITORY / "examples" / "slurm" / "superres.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
