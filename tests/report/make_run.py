"""A run folder as the engine would leave it: two ranks, two buckets, one rank killed and 20 steps done again.

Durations are drawn from a seeded generator; the pillars of each row sum to its wall time by construction.
Run as a script it writes one to look at: ``python tests/report/make_run.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from muster.engine.records import TableWriter, close_tables
from muster.engine.run_folder import RunFolder

JOB_YAML = """\
name: superres
what:
  app: vision.superres
  model: {arch: edsr-small, scale: 2}
  seed: 7
how:
  shape: gang
  ranks: 2
  steps: 300
where:
  engine: embedded
"""

ENVIRONMENT = {
    "command": ["muster", "run", "examples/superres.yaml"],
    "python": "3.12.3",
    "host": "workstation",
    "cpu": "Example CPU @ 3.00GHz",
    "cores": 2,
    "memory_bytes": 16 * 2**30,
    "gpus": [],
    "versions": {"muster": "0.1.0", "torch": "2.13.0+cpu", "ray": "2.60.0"},
    "git": "1eedad2f7c31-dirty",
}

BUCKET_BYTES = (1_048_576, 262_144)


def make_run(
    root: Path,
    name: str = "superres",
    *,
    steps: int = 300,
    ranks: int = 2,
    killed_at: int | None = 180,
    back_to: int = 160,
    trace_every: int = 50,
    metric_names: Sequence[str] = ("psnr_y", "ssim_y"),
    pictures: bool = True,
    status: str = "done",
    close: bool = True,
    seed: int = 0,
) -> RunFolder:
    """Writes a run folder below ``root``.

    Arguments:
        killed_at: rank 1 is killed after this step, and the run goes on from ``back_to``; None: never.
        status: ``running`` leaves JSON lines and no lock, as a crash does.
    """
    run = RunFolder.create(
        root, name, app="vision.superres", steps=steps, job_yaml=JOB_YAML, environment=ENVIRONMENT
    )
    draw = np.random.default_rng(seed)
    _events(run, steps, ranks, killed_at, back_to)
    attempts = [(0, 1, steps)] if killed_at is None else [(0, 1, killed_at), (1, back_to + 1, steps)]
    now = 4.2
    for attempt, first, last in attempts:
        tables = [
            {
                table: TableWriter(run.tables, table, f"rank-{rank:05d}")
                for table in ("steps", "collectives", "spans")
            }
            for rank in range(ranks)
        ]
        for step in range(first, last + 1):
            sampled = step <= 3 or step % trace_every in (0, 1)
            now = _step(tables, draw, attempt, step, steps, now, sampled)
        for writers in tables:
            for writer in writers.values():
                writer.close()
        now += 3.5
    _metrics(run, steps, killed_at, metric_names)
    if pictures:
        _pictures(run, draw)
    run.update(
        status=status, world_size=ranks, step=steps, restarts=len(attempts) - 1, attempt=len(attempts) - 1
    )
    if close:
        close_tables(run.tables)
    return run


def _step(
    tables: list[dict[str, TableWriter]],
    draw: np.random.Generator,
    attempt: int,
    step: int,
    steps: int,
    start: float,
    sampled: bool,
) -> float:
    """One step of all ranks in lockstep; returns when it ended."""
    ranks = len(tables)
    io = draw.gamma(2.0, 0.0008, ranks) + (draw.random(ranks) < 0.03) * 0.02
    forward = 0.021 * draw.normal(1, 0.03, ranks) + 0.002 * np.arange(ranks)
    backward = 0.044 * draw.normal(1, 0.03, ranks) + 0.003 * np.arange(ranks)
    optimizer = 0.004 * draw.normal(1, 0.05, ranks)
    enters = np.stack([start + io + forward + backward * part for part in (0.6, 1.0)])  # [bucket, rank]
    last_enter = enters.max(axis=1)
    ends = last_enter + np.array([0.004, 0.0018]) * draw.normal(1, 0.1, 2)
    waits_from = enters[1]
    idle = last_enter[1] - waits_from
    comm = np.full(ranks, max(ends[1] - last_enter[1], 0.0))
    stall = 0.035 if step % 60 == 0 else 0.0
    end_of_wait = float(ends[1])
    wall = end_of_wait + optimizer.max() + stall - start
    for rank, writers in enumerate(tables):
        who = {"attempt": attempt, "rank": rank, "step": step}
        stalled = stall + optimizer.max() - optimizer[rank]
        compute = wall - io[rank] - comm[rank] - idle[rank] - stalled
        writers["steps"].append(
            **who,
            world_size=ranks,
            start=start,
            wall=wall,
            io=io[rank],
            compute=compute,
            comm=comm[rank],
            idle=idle[rank] + stalled,
            comm_hidden=min(float(ends[0] - last_enter[0]), float(enters[1, rank] - enters[0, rank])),
            stall=stall,
            samples=8,
            flops=2.1e9,
            loss=0.02 + 0.09 * np.exp(-step / 60) + 0.002 * np.sin(1.7 * step),
            learning_rate=1e-3 * 0.5 ** (3 * step // steps),
        )
        for bucket, size in enumerate(BUCKET_BYTES):
            entered = float(enters[bucket, rank])
            writers["collectives"].append(
                **who,
                kind="all_reduce",
                group="world",
                bucket=bucket,
                bytes=size,
                ready=entered,
                enter=entered,
                last_enter=float(last_enter[bucket]),
                end=float(ends[bucket]),
            )
        if sampled:
            marks = start + np.cumsum([io[rank], forward[rank], backward[rank]])
            spans = [
                ("loop", "io", start, marks[0]),
                ("loop", "forward", marks[0], marks[1]),
                ("loop", "backward", marks[1], end_of_wait),
                ("loop", "wait", marks[2], end_of_wait),
                ("loop", "optimizer", end_of_wait, end_of_wait + optimizer[rank]),
            ]
            if stall:
                spans.append(("loop", "checkpoint", start + wall - stall, start + wall))
            spans += [("comm", f"all_reduce {b}", enters[b, rank], ends[b]) for b in range(len(BUCKET_BYTES))]
            for lane, name, begin, end in spans:
                writers["spans"].append(**who, lane=lane, name=name, start=float(begin), end=float(end))
    return start + wall


def _metrics(run: RunFolder, steps: int, killed_at: int | None, names: Sequence[str]) -> None:
    writer = TableWriter(run.tables, "metrics", "rank-00000")
    last_attempt = 0 if killed_at is None else 1
    bicubic = {"chelsea": 36.0, "china": 29.4, "": 32.7}
    for name in names:
        scale = 1.0 if name.startswith("psnr") else 0.025
        for step in (0, steps // 2, steps):
            attempt = 0 if step <= (killed_at or 0) else last_attempt
            for item, plain in bicubic.items():
                where = {"attempt": attempt, "step": step, "time": 4.0 + step * 0.08, "split": "held-out"}
                gain = (0.0 if item == "china" else 0.1) + 1.3 * (1 - np.exp(-3 * step / steps))
                writer.append(**where, name=f"{name}_bicubic", value=scale * plain, item=item)
                writer.append(**where, name=name, value=scale * (plain + gain * (step > 0)), item=item)
    writer.close()


def _events(run: RunFolder, steps: int, ranks: int, killed_at: int | None, back_to: int) -> None:
    writer = TableWriter(run.tables, "events", "engine")

    def event(attempt: int, time: float, kind: str, who: str = "engine", **detail: object) -> None:
        writer.append(attempt=attempt, time=time, kind=kind, who=who, detail=json.dumps(detail))

    event(0, 0.1, "engine_started", address="127.0.0.1")
    event(0, 3.6, "ranks_started", world_size=ranks, hosts=["workstation"])
    event(0, 4.2, "first_step", "rank-00000", step=1)
    end = 4.2 + 0.078 * steps
    if killed_at is not None:
        lost = 4.2 + 0.078 * killed_at + 0.6
        event(0, lost - 2, "checkpoint", "rank-00000", step=back_to, bytes=1_312_044, seconds=0.031)
        event(0, lost, "rank_lost", rank=1, what="died", traceback="")
        event(0, lost + 0.2, "restart", number=1, of=3, because="rank 1 died")
        event(1, lost + 2.6, "resumed", "rank-00000", step=back_to, world_size=ranks, written_by=ranks)
        end += 0.078 * (killed_at - back_to) + 5.5
    event(int(killed_at is not None), end + 1.0, "exported", "rank-00000", file="model.safetensors")
    event(int(killed_at is not None), end + 1.2, "done", "supervisor")
    writer.close()


def _pictures(run: RunFolder, draw: np.random.Generator) -> None:
    folder = run.path / "pictures"
    folder.mkdir()
    lines = []
    for number, title in enumerate(("chelsea.png ×2", "china.jpg ×2")):
        y, x = np.mgrid[0:144, 0:144]
        rings = np.sin((x - 40 - 30 * number) ** 2 / 90 + (y - 80) ** 2 / 130)
        image = np.stack([128 + 100 * rings, 90 + 0.7 * x + 30 * rings, 200 - 0.6 * y], axis=-1)
        original = Image.fromarray(np.clip(image + draw.normal(0, 4, image.shape), 0, 255).astype(np.uint8))
        low = original.resize((72, 72), Image.Resampling.BICUBIC)
        variants = {
            "low": ("low resolution", "72×72", low),
            "bicubic": ("bicubic", "PSNR-Y 29.40 dB", low.resize((144, 144), Image.Resampling.BICUBIC)),
            "model": ("EDSR", "PSNR-Y 30.70 dB (+1.30)", Image.blend(original, low.resize((144, 144)), 0.3)),
            "original": ("original", "144×144", original),
        }
        panels = []
        for kind, (label, caption, picture) in variants.items():
            file = f"{number:02d}-{kind}.png"
            picture.save(folder / file)
            panels.append({"label": label, "caption": caption, "file": file})
        lines.append(json.dumps({"title": title, "panels": panels}))
    (folder / "strips.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from muster.report import write_report

    print(write_report(make_run(Path(sys.argv[1]))))
