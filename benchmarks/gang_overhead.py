"""What does Muster's gang cost beside the bare minimum? Three comparisons, each with its peer in turn on the same machine.

    python benchmarks/gang_overhead.py [--parts throughput start scaling] [--pairs 10] [--starts 5] [--quick]

The job is examples/superres.yaml (EDSR-small on the sample photographs, global batch 16) on two ranks of one thread each.

throughput  Images per second of `muster run` (embedded Ray; median of the `steps` table's wall times without stalls, after
            the first ten) against the same model, data set, batch and optimizer in a plain loop under torchrun. Muster
            takes per step the pillar clock, the ledger's exchange between ranks, and a seed for every sample. Expected
            is a ratio a little below 1; the bar: the 95 % interval of the ratio's median over alternating pairs reaches 0.98.
start       From the command to the end of the first training step. `muster run` validates, starts Ray and the ranks, measures
            the untrained model on the held-out photographs, counts FLOPs and warms up, then does its step; Ray Train's
            TorchTrainer, in an environment with the same Ray and torch, does that step at once. Shown beside them:
            a bare function on `muster.gang.run`. Both Rays get the same cores, no dashboard, no statistics, loopback,
            and a warm cache of decoded photographs. The bar: at most 0.6 of TorchTrainer's time.
scaling     Images per second on 2 ranks of one thread against 1 rank of one thread, at equal batch per rank (8 and 8: weak)
            and at equal global batch (16: strong). The bar for either: 1.7. Two cores may be two threads of one core; a
            spin control beside each measurement says what the machine gives two processes that do not communicate.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peer_environment import PeerUnavailable, cache_home, ray_train_python
from printed_results import Verdicts, print_heading, print_table
from spin_control import speed_up
from statistics_of_pairs import alternating_orders, median_interval

from muster.engine import hardware
from muster.engine.processes import MARK_VARIABLE, reap
from muster.engine.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
JOB = HERE.parent / "examples" / "superres.yaml"
BIN = Path(sys.executable).parent
RANKS, SKIPPED_STEPS = 2, 10
TIMEOUT_S = 300.0


def environment(**more: str) -> dict[str, str]:
    """What the peers run in: one thread per process, Gloo on loopback, the modules of this folder."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
    return os.environ | own | more


def finish(command: list[str | Path], folder: Path, environ: dict[str, str]) -> None:
    """Runs a command to a good end, and clears away what it leaves; what it prints is shown only when it fails.

    Raises:
        RuntimeError: it ended with another code than 0.
    """
    log, mark = folder / "output.log", secrets.token_hex(5)
    try:
        with log.open("wb") as file:
            ended = subprocess.run(
                command,
                env=environ | {MARK_VARIABLE: mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=TIMEOUT_S,
                check=False,
            )
    finally:
        reap(mark)  # daemons of a peer that was cut off
    if ended.returncode != 0:
        words = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with code {ended.returncode}:\n{words}")


def muster_run(folder: Path, *settings: str) -> RunFolder:
    """The job under `muster run` on an embedded engine, to its end."""
    fixed = ["how.schedule.warmup=0", "how.checkpoint_every=1h", "where.engine=embedded"]
    fixed += ["where.threads_per_rank=1", f"where.runs={folder / 'runs'}"]
    options = [word for setting in [*fixed, *settings] for word in ("--set", setting)]
    finish([BIN / "muster", "run", JOB, "--quiet", *options], folder, dict(os.environ))
    return RunFolder.list(folder / "runs")[-1]


def muster_images_per_s(folder: Path, ranks: int, batch: int, steps: int) -> float:
    settings = [f"how.ranks={ranks}", f"where.min_ranks={ranks}", f"how.batch={batch}", f"how.steps={steps}"]
    rows = muster_run(folder, *settings).table("steps").to_pylist()
    walls = [row["wall"] - row["stall"] for row in rows if row["rank"] == 0 and row["step"] > SKIPPED_STEPS]
    return batch / float(np.median(walls))


def torchrun_images_per_s(folder: Path, batch: int, steps: int) -> float:
    out = folder / "walls.json"
    torchrun = [BIN / "torchrun", "--standalone", "--nproc-per-node", str(RANKS)]
    finish([*torchrun, HERE / "peer_torchrun_superres.py", JOB, str(steps), out], folder, environment())
    return batch / float(np.median(json.loads(out.read_text())[SKIPPED_STEPS:]))


def throughput(folder: Path, pairs: int, steps: int, seed: int, verdicts: Verdicts) -> None:
    """Images per second beside torchrun."""
    batch, rows, ratios = 16, [], []
    for pair, muster_first in enumerate(alternating_orders(pairs, seed)):
        measured = {}
        for muster in (muster_first, not muster_first):
            place = fresh(folder)
            if muster:
                measured["muster"] = muster_images_per_s(place, RANKS, batch, steps)
            else:
                measured["torchrun"] = torchrun_images_per_s(place, batch, steps)
        ratios.append(measured["muster"] / measured["torchrun"])
        order = "muster" if muster_first else "torchrun"
        cells = [f"{measured['muster']:.1f}", f"{measured['torchrun']:.1f}", f"{ratios[-1]:.4f}", order]
        rows.append([str(pair + 1), *cells])
        progress("throughput", rows[-1])
    print_table("Images per second", ["pair", "muster run", "torchrun", "ratio", "first"], rows)
    ratio = median_interval(ratios, seed)
    verdicts.judge(
        "throughput: the interval of muster / torchrun reaches 0.98", ratio.high >= 0.98, ratio.text(4)
    )


# ---- start ------------------------------------------------------------------------------------------------------------


def muster_start_s(folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds from the command to the end of the first step, and to each event before it."""
    began = time.time()
    run = muster_run(folder, f"how.ranks={RANKS}", f"where.min_ranks={RANKS}", "how.steps=2")
    shift = run.state()["epoch_unix_s"] - began
    events = {event["kind"]: event["time"] + shift for event in reversed(run.events())}
    return events["first_step"], events


def bare_start_s(folder: Path) -> float:
    out, began = folder / "first_step", time.time()
    finish([sys.executable, HERE / "peer_bare_gang.py", JOB, str(RANKS), out], folder, environment())
    return float(out.read_text()) - began


def ray_train_start_s(folder: Path, python: Path) -> float:
    """As `bare_start_s`; Ray finds the same private home as Muster gives its own, so that it probes no network."""
    home = folder / "home"
    home.mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")
    environ = environment(
        HOME=str(home),
        XDG_CACHE_HOME=str(cache_home()),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DEDUP_LOGS="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    cores = max(hardware.cores(), RANKS)
    out, began = folder / "first_step", time.time()
    finish([python, HERE / "peer_ray_train.py", JOB, str(RANKS), str(cores), out], folder, environ)
    return float(out.read_text()) - began


def start(folder: Path, starts: int, seed: int, verdicts: Verdicts) -> None:
    """Command to first step beside Ray Train."""
    try:
        python: Path | None = ray_train_python()
    except PeerUnavailable as error:
        python = None
        print(f"Ray Train could not be installed, so it is not measured: {error}")
    rows, ratios, bare_ratios = [], [], []
    for number, muster_first in enumerate([True, *alternating_orders(starts, seed)]):
        measured = {"bare": bare_start_s(fresh(folder))}
        stages: dict[str, float] = {}
        for muster in (muster_first, not muster_first):
            if muster:
                measured["muster"], stages = muster_start_s(fresh(folder))
            elif python is not None:
                measured["ray train"] = ray_train_start_s(fresh(folder), python)
        if number == 0:  # fills caches: compiled modules, decoded photographs, the files of both environments
            continue
        cells = [f"{measured['muster']:.2f}"]
        cells += [f"{stages[kind]:.2f}" if kind in stages else "-" for kind in ("ranks_started", "started")]
        cells += [f"{measured['ray train']:.2f}" if python else "-", f"{measured['bare']:.2f}"]
        if python is not None:
            ratios.append(measured["muster"] / measured["ray train"])
            bare_ratios.append(measured["bare"] / measured["ray train"])
            cells += [f"{ratios[-1]:.3f}", f"{bare_ratios[-1]:.3f}"]
        rows.append([str(number), *cells])
        progress("start", rows[-1])
    columns = [
        "start",
        "muster run s",
        "its ranks asked for",
        "its ranks ready",
        "ray train s",
        "bare gang s",
    ]
    columns += ["muster / ray train", "bare / ray train"] if python else []
    print_table("Command to first step (after one uncounted start of each)", columns, rows)
    if python is None:
        verdicts.judge("start: at most 0.6 of Ray Train's time", False, "Ray Train could not be installed")
        return
    ratio = median_interval(ratios, seed)
    verdicts.judge("start: at most 0.6 of Ray Train's time", ratio.median <= 0.6, ratio.text(3))
    print(f"         bare gang / Ray Train: {median_interval(bare_ratios, seed).text(3)}")


# ---- scaling ------------------------------------------------------------------------------------------------------------


def scaling(folder: Path, repeats: int, steps: int, spin_s: float, seed: int, verdicts: Verdicts) -> None:
    """Two ranks beside one, and what the machine gives two processes."""
    rows = []
    table: dict[str, list[float]] = {"weak": [], "strong": [], "arithmetic": [], "training": []}
    for number, two_first in enumerate(alternating_orders(repeats, seed)):
        cases = [(2, 16), (1, 8), (1, 16)]
        rates = {
            case: muster_images_per_s(fresh(folder), *case, steps)
            for case in (cases if two_first else cases[::-1])
        }
        table["weak"].append(rates[2, 16] / rates[1, 8])
        table["strong"].append(rates[2, 16] / rates[1, 16])
        for work in ("arithmetic", "training"):
            table[work].append(speed_up(work, spin_s))
        cells = [f"{rates[case]:.1f}" for case in cases] + [f"{table[key][-1]:.3f}" for key in table]
        rows.append([str(number + 1), *cells])
        progress("scaling", rows[-1])
    columns = ["repeat", "2 ranks, 16", "1 rank, 8", "1 rank, 16", "weak", "strong"]
    columns += ["spin: arithmetic", "spin: training"]
    print_table("Images per second (ranks, global batch), and ratios of two to one", columns, rows)
    for key, what in (("weak", "equal batch per rank"), ("strong", "equal global batch")):
        ratio = median_interval(table[key], seed)
        verdicts.judge(f"scaling: 2 ranks >= 1.7 x 1 rank at {what}", ratio.median >= 1.7, ratio.text(3))
    for work in ("arithmetic", "training"):
        control = median_interval(table[work], seed)
        print(f"         two processes without communication, {work}: {control.text(3)}")


def fresh(folder: Path) -> Path:
    """A new folder for one command."""
    return Path(tempfile.mkdtemp(dir=folder))


def progress(part: str, cells: list[str]) -> None:
    print(f"{part} {', '.join(cells)}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compares Muster's gang with torchrun, Ray Train and itself."
    )
    parts = ("throughput", "start", "scaling")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--pairs", type=int, default=12, help="pairs of runs for the throughput")
    parser.add_argument("--starts", type=int, default=6, help="pairs of starts")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the scaling")
    parser.add_argument("--steps", type=int, default=80, help="of each run that is timed")
    parser.add_argument("--spin-seconds", type=float, default=4.0, help="of each spin control")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one of each, few steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs = arguments.starts = arguments.repeats = 1
        arguments.steps, arguments.spin_seconds = SKIPPED_STEPS + 10, 1.0
    seed = arguments.seed
    print_heading(
        "Gang overhead",
        parts=" ".join(arguments.parts),
        pairs=arguments.pairs,
        starts=arguments.starts,
        repeats=arguments.repeats,
        steps=arguments.steps,
        seed=seed,
    )
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as name:
        folder = Path(name)
        if "throughput" in arguments.parts:
            throughput(folder, arguments.pairs, arguments.steps, seed, verdicts)
        if "start" in arguments.parts:
            start(folder, arguments.starts, seed, verdicts)
        if "scaling" in arguments.parts:
            scaling(folder, arguments.repeats, arguments.steps, arguments.spin_seconds, seed, verdicts)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
