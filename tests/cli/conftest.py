"""A job file to spoil, the command line in this process, and a run folder to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muster.cli.command_line import app
from muster.engine.records import TableWriter, close_tables
from muster.engine.run_folder import RunFolder

VALID = """\
name: superres
what:
  app: vision.superres
  model:
    arch: edsr-small
    scale: 2
  data: sample-photos
  seed: 7
how:
  shape: gang
  ranks: 2
  steps: 600
  batch: 16
  optimizer:
    name: adam
    lr: 1e-3
  checkpoint_every: 30s
where:
  engine: embedded
  min_ranks: 1
"""


@pytest.fixture
def valid() -> str:
    return VALID


@pytest.fixture
def muster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object, environ: dict[str, str] | None = None) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ)

    return call


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """A run of 2 ranks and 4 steps: rank 1 died after step 3, and steps 3 and 4 were done (again) by attempt 1."""
    run = RunFolder.create(
        tmp_path / "runs", "demo", app="vision.superres", steps=4, job_yaml="name: demo\n", environment={}
    )
    for rank in (0, 1):
        steps = TableWriter(run.tables, "steps", f"rank-{rank:05d}")
        for attempt, step in ((0, 1), (0, 2), (0, 3), (1, 3), (1, 4)):
            io, compute, comm, idle = 0.1 * (rank + 1), 0.5, 0.25, 0.15 - 0.1 * rank
            steps.append(
                attempt=attempt, rank=rank, world_size=2, step=step, start=float(step), wall=1.0,
                io=io, compute=compute, comm=comm, idle=idle, samples=8, loss=1 / step,
            )  # fmt: skip
        steps.close()
    metrics = TableWriter(run.tables, "metrics", "rank-00000")
    for step, attempt, psnr in ((0, 0, 30.0), (4, 1, 31.5)):
        for item, value in (("", psnr), ("chelsea", psnr + 1), ("china", psnr - 1)):
            metrics.append(
                attempt=attempt, step=step, time=0.0, name="psnr_y", value=value, split="held-out", item=item
            )
        metrics.append(
            attempt=attempt, step=step, time=0.0, name="psnr_y_bicubic", value=30.0, split="held-out", item=""
        )
    metrics.close()
    close_tables(run.tables)
    for step in (2, 4):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir()
        manifest = {"step": step, "world_size": 2, "quality": 31.5 if step == 4 else None, "files": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (run.checkpoints / "step-00000005").mkdir()  # never committed
    run.update(status="done", step=4, restarts=1, attempt=1, world_size=2)
    return run
