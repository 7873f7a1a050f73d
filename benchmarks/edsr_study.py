"""EDSR-baseline ×2 trained for an hour, scaled with and without tuning, and predicted for 512 ranks.

    python benchmarks/edsr_study.py --data DIR [--parts train study predict] [--minutes 60] [--folder FOLDER]

`DIR` holds `superres/bsds_train` (200 photographs), `superres/set5` and `superres/set5_lr`.

- `train`: two ranks for `--minutes`, then PSNR on Set5 in one table with the untrained model, bicubic and published
  figures. SRCNN and FSRCNN were trained on 91 photographs for days on a GPU, EDSR-baseline on the 800 of DIV2K; ours sees
  200 small ones for as long as it is given. Physics: a patch of 48×48 costs 19 GFLOP forward and backward, a core of this
  kind of machine does some 0.1 (fp32) to 0.2 TFLOP/s (bf16).
- `study` (root): the job on a link of 400 Mbit/s (`tc tbf` on loopback, whose rate both directions share), weak scaling
  from one rank to two as the job is, then `muster tune`, then weak scaling of the tuned job. An exchange of 5.5 MB takes
  0.22 s on that link; how much of it the backward pass does not hide is printed as exposed.
- `predict`: from the profile of the tuned job's two ranks (when each gradient was ready) the step of 512 ranks, on links of
  a stated latency and bandwidth per rank, with DistributedDataParallel's buckets and with buckets planned for that
  link. **Predicted**, by the ring's steps and volume (`muster.pillars.comm.predict`), not measured: no stragglers, no
  contention beyond the rank's own port, and compute as it is on the cores of this machine.

There is no bar: these are figures to stand beside others'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import set5
import torch
from printed_results import print_heading, print_table
from shaped_link import shaped, why_not

from muster import run
from muster.engine.run_folder import RunFolder
from muster.pillars.comm.layout import capped_layout, cost_by_bytes, plan_layout
from muster.pillars.comm.link import Link
from muster.pillars.comm.predict import predict_step
from muster.pillars.comm.step_profile import StepProfile
from muster.spec import load_job
from muster.tuning._measured import counted, step_times
from muster.tuning._trial import trial_job
from muster.tuning._verdict import has_fast_bf16
from muster.vision import EDSR, load_model

RATE = "400mbit"
RANKS = 512
DDP_LIMITS = (1 << 20, 25 << 20)
# Latency of a ring's step and bytes per second of a rank's port, each direction.
LINKS = {
    "0.4 Gbit/s, 100 µs": (100e-6, 0.4e9 / 8),
    "10 Gbit/s, 25 µs": (25e-6, 10e9 / 8),
    "100 Gbit/s, 5 µs": (5e-6, 100e9 / 8),
}


def write_job(
    folder: Path, data: Path, name: str, *, patch: int, batch: int, how: str, engine: str = "embedded"
) -> Path:
    """A job file of EDSR-baseline on the photographs of BSDS."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\n"
        "what:\n"
        "  app: vision.superres\n"
        "  model: {arch: edsr-baseline, scale: 2}\n"
        f"  data: {data / 'superres' / 'bsds_train'}\n"
        f"  patch: {patch}\n"
        "  seed: 1\n"
        "how:\n"
        "  ranks: 2\n"
        f"  batch: {batch}\n"
        f"{how}"
        f"where: {{runs: {folder / 'runs'}, engine: {engine}, threads_per_rank: 1}}\n",
        encoding="utf-8",
    )
    return path


def train(folder: Path, data: Path, minutes: float) -> RunFolder:
    """Trains for so long, as fast as a short trial says it goes."""
    precision = "bf16" if has_fast_bf16() else "fp32"
    how = (
        f"  precision: {precision}\n"
        "  steps: {steps}\n  channels_last: true\n  ema_decay: 0.999\n  checkpoint_every: 2m\n"
        "  optimizer: {{name: adam, lr: 4e-4}}\n  schedule: {{kind: halve, every: {every}, warmup: {warmup}}}\n"
    )
    settings: dict[str, Any] = {"patch": 48, "batch": 16, "engine": "local"}
    first = load_job(
        write_job(folder, data, "edsr", **settings, how=how.format(steps=1000, every=250, warmup=10))
    )
    trial = run(trial_job(first, name="edsr-pace", steps=30), progress=False).folder
    steps = int(60 * minutes / step_times(counted(trial)[0]).step_s)
    text = how.format(steps=steps, every=-(-steps // 6), warmup=min(100, steps // 10))
    return run(load_job(write_job(folder, data, "edsr", **settings, how=text))).folder


def measure(found: RunFolder, data: Path) -> None:
    """A trained run on Set5, beside the untrained model, bicubic and what was published."""
    rows = found.table("steps")
    trained_s = float(np.sum(rows.filter(rows.column("rank").to_numpy() == 0).column("wall").to_numpy()))
    how = load_job(found.path / "job.yaml", environ={}).how
    items = set5.load_set5(data, 2)
    torch.manual_seed(0)
    tables = {
        "bicubic": None,
        "step 0": set5.measure(EDSR("edsr-baseline", 2), items),
        f"{how.steps} steps, {trained_s / 60:.0f} min": set5.measure(load_model(found.path), items),
    }
    trained = list(tables.values())[-1]
    assert trained is not None
    lines = []
    for name, values in tables.items():
        column = (
            [row["psnr_y_bicubic"] for row in trained] if values is None else [r["psnr_y"] for r in values]
        )
        lines.append([name, *(f"{value:.2f}" for value in column), f"{np.mean(column):.2f}"])
    lines += [[name, *[""] * len(items), value] for name, value in set5.PUBLISHED_X2.items()]
    print_table("PSNR on Y of Set5 ×2, dB", ["", *(item.name for item in items), "mean"], lines)
    print(f"  {how.steps * how.batch:,} patches, {how.ranks} ranks, {how.precision}\n")


def study(folder: Path, data: Path, budget: str) -> None:
    """Weak scaling on a slow link before and after `muster tune`; runs itself again on that link."""
    if reason := why_not():
        print(f"study skipped: {reason}")
        return
    how = "  steps: 100000\n  optimizer: {lr: 2e-4}\n"
    job = write_job(folder, data, "edsr-study", patch=48, batch=8, how=how, engine="local")
    tuned = folder / "edsr-study.tuned.yaml"
    tuned.unlink(missing_ok=True)
    lines = []

    def scaled(name: str, path: Path) -> None:
        found = _muster("scale", str(path), "--ranks", "1,2", "--weak", "--steps", "12", "--repeats", "5")
        for point in found["studies"][0]["points"]:
            rate, efficiency = point["samples_per_s"], point["efficiency"]
            lines.append(
                [
                    name,
                    str(point["ranks"]),
                    f"{rate['median']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]",
                    f"{100 * efficiency['median']:.1f} [{100 * efficiency['low']:.1f}, {100 * efficiency['high']:.1f}]",
                    f"{1e3 * point['step_s']:.0f}",
                    f"{1e3 * point['pillars_s']['comm']:.0f}",
                    f"{1e3 * point['comm_hidden_s']:.0f}",
                ]
            )

    scaled("as it is", job)
    found = _muster("tune", str(job), "--budget", budget, "--steps", "12", "-o", str(tuned))
    print(f"tune: {found['before']['sentence']}")
    for one in found["proposals"]:
        ratio = "" if one["ratio"] is None else f" {one['ratio']['median']:.3f}"
        print(f"tune: {one['key']}: {one['was']} -> {one['value']}: {one['outcome']}{ratio} {one['detail']}")
    if found["gain"] is not None:
        print("tune: {median:.3f} [{low:.3f}, {high:.3f}] times as fast".format(**found["gain"]))
        scaled("tuned", tuned)
    columns = [
        "",
        "ranks",
        "images/s",
        "efficiency, %",
        "step, ms",
        "exposed comm., ms",
        "hidden comm., ms",
    ]
    print_table(f"Weak scaling at {RATE}, batch 4 per rank, patches of 48x48", columns, lines)


def _muster(*arguments: str) -> Any:
    command = [str(Path(sys.executable).with_name("muster")), *arguments, "--json"]
    done = subprocess.run(shaped(RATE, command), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def predict(folder: Path) -> None:
    """512 ranks from the newest record of two."""
    records = sorted(folder.rglob("communication.json"), key=os.path.getmtime)
    choices = [
        choice
        for record in records
        for choice in json.loads(record.read_text())["choices"]
        if choice["world_size"] == 2
    ]
    if not choices:
        print(f"predict skipped: no run below {folder} has planned its buckets; run the part study first")
        return
    values = choices[-1]["profile"]
    profile = StepProfile(**(values | {name: tuple(values[name]) for name in ("names", "bytes", "ready_s")}))
    lines = []
    for name, (latency, bandwidth) in LINKS.items():
        link = Link.uniform(RANKS, latency_s=latency, bytes_per_s=bandwidth)
        cost = cost_by_bytes(profile.bytes, lambda sizes, link=link: link.seconds("all_reduce", sizes))
        for kind, ends in (
            ("DDP's", capped_layout(profile.bytes, DDP_LIMITS)),
            ("planned", plan_layout(profile.ready_s, cost)),
        ):
            told = predict_step(profile, link, RANKS, ends)
            lines.append(
                [
                    name,
                    f"{kind}, {len(ends)}",
                    f"{1e3 * told.compute_s:.0f}",
                    f"{1e3 * told.communication_s:.0f}",
                    f"{1e3 * told.exposed_s:.0f}",
                    f"{1e3 * told.step_s:.0f}",
                    f"{100 * told.compute_s / told.step_s:.1f}",
                ]
            )
    columns = [
        "link",
        "buckets",
        "compute, ms",
        "on the link, ms",
        "exposed, ms",
        "step, ms",
        "efficiency, %",
    ]
    print_table(f"PREDICTED for {RANKS} ranks from a profile of 2", columns, lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="folder that holds superres/")
    parser.add_argument("--parts", nargs="*", default=["train", "study", "predict"])
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--run", type=Path, help="a run that was trained before: it is only measured")
    parser.add_argument("--budget", default="12m", help="of muster tune")
    parser.add_argument("--folder", type=Path, help="for run folders; a temporary one by default")
    arguments = parser.parse_args()
    if not (arguments.data / "superres" / "bsds_train").is_dir():
        print(f"{arguments.data}: no superres/bsds_train in it", file=sys.stderr)
        return 2
    print_heading("EDSR-baseline: an hour of training, scaling, prediction", minutes=arguments.minutes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if "train" in arguments.parts:
            data = arguments.data.absolute()
            trained = RunFolder(arguments.run) if arguments.run else train(folder, data, arguments.minutes)
            measure(trained, data)
        if "study" in arguments.parts:
            study(folder, arguments.data.absolute(), arguments.budget)
        if "predict" in arguments.parts:
            predict(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
