"""The exchange of a 16 MiB gradient at 1 % density over slow links, beside the dense fp32 all-reduce.

    sudo python benchmarks/sparse_allreduce.py [--quick] [--rounds N]

Two ranks talk over the loopback device of a network namespace of their own (`unshare --net`), which a token bucket
filter (`tc … tbf`) slows down to 1 Gbit/s and 200 Mbit/s. Both directions share it, so a dense all-reduce of two ranks
has to bring 2 x 16 MiB through: at least 0.27 s and 1.34 s. Top-k at 1 % brings 2 x 0.34 MB through, 5 and 27 ms; to be
four and ten times faster, all else (error feedback, selection, summation) has 61 and 107 ms.

Every method's whole call is timed: adding the residual, selecting, packing, exchanging, summing. The slower rank counts.
Methods take turns in a new order each round, on the same gradients; ratios are of the same round. The token bucket holds
32 KiB, so that little of a message passes for free. `achieved` is what the dense all-reduce makes of the link: it must be
a little below the rate, or the link is not what it is said to be.

Quality: after the last round, what was applied and what is left in the residuals must be all gradients' sum, and all
ranks must hold the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import median_interval

RANKS = 2
# 4 Mi elements in layers of the sizes that convolutional networks have.
SHAPES = [(512, 512, 3, 3), (512, 256, 3, 3), (256, 256, 3, 3), (2048,), (5120,), (228, 256)]
NUMEL = 4 << 20
DENSITY = 0.01
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense fp32": ("none", {}),
    "bf16": ("bf16", {}),
    "topk": ("topk", {"density": DENSITY}),
    "topk, streams": ("topk", {"density": DENSITY, "reduction": "streams"}),
    "oktopk": ("oktopk", {"density": DENSITY}),
}
LINKS = {"1 Gbit/s": (1e9, 4.0), "200 Mbit/s": (2e8, 10.0)}  # rate in bit/s, and the bar


def measure(rounds: int) -> dict[str, Any]:
    """Times all methods, in this network namespace; returns seconds by method, in order of rounds."""
    from muster import gang

    def rank_main(context: gang.RankContext) -> dict[str, Any]:
        import hashlib
        import time

        import torch
        import torch.distributed as dist

        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        torch.set_num_threads(1)
        parts, wire = parts_of(SHAPES), Wire()
        compressors = {
            label: load_compressor(name)(parts, torch.float32, torch.device("cpu"), **options)
            for label, (name, options) in METHODS.items()
        }
        generator = torch.Generator().manual_seed(context.rank)
        gradients = [torch.randn(NUMEL, generator=generator) for _ in range(4)]
        applied = {label: torch.zeros(NUMEL, dtype=torch.float64) for label in METHODS}
        taken: dict[str, list[float]] = {label: [] for label in METHODS}
        warm_up = 3
        orders = np.random.default_rng(1)
        for turn in range(warm_up + rounds):
            for label in orders.permutation(list(METHODS)):
                bucket = gradients[turn % 4].clone()
                dist.barrier()
                begin = time.perf_counter()
                compressors[label].average(bucket, wire)
                seconds = torch.tensor(time.perf_counter() - begin)
                dist.all_reduce(seconds, dist.ReduceOp.MAX)
                applied[label] += bucket
                if turn >= warm_up:
                    taken[label].append(float(seconds))
        expected = torch.zeros(NUMEL, dtype=torch.float64)
        for turn in range(warm_up + rounds):
            expected += gradients[turn % 4]
        dist.all_reduce(expected)
        quality = {}
        for label, compressor in compressors.items():
            left = getattr(compressor, "residual", torch.zeros(NUMEL)).double()
            dist.all_reduce(left)
            error = applied[label] + left / RANKS - expected / RANKS
            quality[label] = {
                "bytes": compressor.wire_bytes / (warm_up + rounds),
                "lost": float(error.norm() / expected.norm() * RANKS),
                "hash": hashlib.sha256(applied[label].numpy().tobytes()).hexdigest(),
            }
        return {"taken": taken, "quality": quality}

    with gang.engine("local", preload=["torch", "muster.pillars.comm.compress.oktopk"]) as engine:
        results = engine.run(rank_main, ranks=RANKS, threads=1)
    equal = {label: len({result["quality"][label]["hash"] for result in results}) == 1 for label in METHODS}
    return results[0] | {"equal": equal}


def measure_on_link(rate_bit_per_s: float, rounds: int) -> dict[str, Any]:
    """`measure` in a namespace of its own, behind a token bucket; it is gone when the process ends."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        subprocess.run(
            [
                *("unshare", "--net", sys.executable, __file__),
                *("--inside", str(int(rate_bit_per_s)), "--rounds", str(rounds), "--out", str(out)),
            ],
            check=True,
        )
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def shape_loopback(rate_bit_per_s: int) -> None:
    """Slows this namespace's loopback down. A jumbo frame's size keeps packets below the bucket's."""
    for command in (
        "ip link set lo mtu 9000 up",
        f"tc qdisc add dev lo root tbf rate {rate_bit_per_s}bit burst 32kb limit 8mb",
    ):
        subprocess.run(command.split(), check=True)


def report(name: str, found: dict[str, Any], rate: float, bar: float, verdicts: Verdicts) -> None:
    """Prints one link's table and judges its bars."""
    dense = np.array(found["taken"]["dense fp32"])
    rows = []
    for label in METHODS:
        seconds = np.array(found["taken"][label])
        quality = found["quality"][label]
        rows.append(
            [
                label,
                median_interval(seconds).text(1, 1e3),
                median_interval(dense / seconds).text(2),
                f"{quality['bytes'] / 1e6:.2f}",
                f"{quality['lost']:.0e}",
                "yes" if found["equal"][label] else "NO",
            ]
        )
    print_table(
        f"{name}, {RANKS} ranks, medians [95 %]",
        ["method", "ms", "times dense", "MB sent per rank", "relative loss", "same bits"],
        rows,
    )
    # An all-reduce of two ranks sends the gradient once from each rank, and both directions share the link.
    achieved = RANKS * 4 * NUMEL * 8 / float(np.median(dense))
    verdicts.judge(
        f"{name}: the link is that slow",
        0.5 * rate <= achieved <= 1.05 * rate,
        f"dense achieves {achieved / 1e6:.0f} Mbit/s",
    )
    ratio = median_interval(dense / np.array(found["taken"]["topk"]))
    verdicts.judge(
        f"{name}: topk, selection included, at least {bar:.0f} x faster than dense fp32",
        ratio.median >= bar,
        ratio.text(2),
    )
    lossless = all(found["quality"][label]["lost"] < 1e-5 for label in METHODS if label != "bf16")
    verdicts.judge(f"{name}: nothing is lost", lossless, "applied + residual = all gradients, to 1e-5")
    verdicts.judge(f"{name}: ranks hold the same bits", all(found["equal"].values()), "all methods")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        shape_loopback(arguments.inside)
        arguments.out.write_text(json.dumps(measure(arguments.rounds)))
        return 0
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "tc"))):
        print("skipped: slow links need root and the commands unshare, ip and tc")
        return 0
    rounds = 3 if arguments.quick else arguments.rounds
    print_heading(
        "Sparse all-reduce over slow links",
        ranks=RANKS,
        gradient="16 MiB fp32",
        density=DENSITY,
        rounds=rounds,
    )
    verdicts = Verdicts()
    for name, (rate, bar) in LINKS.items():
        report(name, measure_on_link(rate, rounds), rate, bar, verdicts)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
