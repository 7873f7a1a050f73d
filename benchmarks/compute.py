"""What each option of the compute pillar brings on this machine, and whether the roofline tells the truth.

Super-resolution (EDSR) is trained on one rank, alternating plain PyTorch with one option at a time; each option is compared
with the plain steps measured right before or after its own. Physics expects: bf16 is faster where the processor multiplies
bf16 faster (the roofline says by how much at most); channels-last and `torch.compile` depend on the kernels, so `auto` has to
find out; activation checkpointing costs at most the forward pass again, a third; averaging the weights costs one pass over
them.

Bars:

- no achieved FLOP/s above 1.05 × the measured peak, and a large matrix product reaches at least 0.9 of the peak of products:
  the peak is neither too low nor too high;
- the counted FLOPs of a step equal the sum of 2·k²·Cin·Cout·H·W over EDSR's convolutions, for the forward pass, the gradient
  of the weights and that of the inputs (but the image's own);
- `auto` is not more than 3 % slower than the better of eager and compiled;
- activation checkpointing costs at most 4/3 of the plain step (5 % of noise granted) and gives the same gradients to the bit
  in fp64;
- the moving average costs at most 5 % of a step.

Read a row as: the option's time over that of plain PyTorch, its 95 % interval over alternating pairs, and the share of the
peak of its own precision. With ``--quick`` only the bars without a clock are judged.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import Estimate, alternating_orders, median_interval
from torch.utils.flop_counter import FlopCounterMode

from muster.pillars.compute import (
    CompiledForward,
    CompileTrial,
    Precision,
    TrafficCounter,
    Work,
    averaged_model,
    checkpoint_blocks,
    machine_peaks,
    place,
    to_channels_last,
    try_compiling,
)
from muster.vision import EDSR, Architecture

CPU = torch.device("cpu")


class Training:
    """A plain loop on random photographs, with at most one option.

    Arguments:
        size: of the network.
        batch, side: images of side × side at low resolution.
        option: see `OPTIONS`.
    """

    def __init__(self, size: Architecture, batch: int, side: int, option: str) -> None:
        torch.manual_seed(0)
        self.precision = Precision(option if option in ("bf16", "fp16") else "fp32")
        self.model = EDSR(size, scale=2)
        self.low, self.high = torch.rand(batch, 3, side, side), torch.rand(batch, 3, 2 * side, 2 * side)
        if option == "channels-last":
            to_channels_last(self.model)
            self.low, self.high = to_channels_last([self.low, self.high])
        self.averaged = averaged_model(self.model, 0.999) if option == "ema" else None
        if option == "activation checkpointing":
            checkpoint_blocks(self.model)
        self.scaler = self.precision.scaler(CPU)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.compiled = CompiledForward(self.model) if option.startswith("compile") else None
        self.trial: CompileTrial | None = None
        if self.compiled is not None:
            self.trial = try_compiling(
                self.compiled, self.gradients, self.gradients, must=option == "compile", device=CPU
            )
            self.optimizer.zero_grad()

    def gradients(self) -> None:
        with self.precision.autocast(CPU):
            loss = torch.nn.functional.l1_loss(self.model(self.low), self.high)
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=False)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def seconds(self) -> float:
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began


OPTIONS = ("bf16", "channels-last", "activation checkpointing", "ema", "compile", "compile auto")


def work(training: Training) -> tuple[float, float, float]:
    """FLOPs, bytes and operators of a step, counted eagerly."""
    if training.compiled is not None:
        with training.compiled.eager(), FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
            training.step()
    else:
        with FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
            training.step()
    return flops.get_total_flops(), traffic.bytes, traffic.operators


def analytic_flops(size: Architecture, batch: int, side: int) -> float:
    """Forward, gradient of the weights, and gradient of the inputs of all convolutions but the first."""
    low, high, f = side**2, (2 * side) ** 2, size.features
    first = 2 * 9 * 3 * f * low
    others = 2 * 9 * (f * f * low * (2 * size.blocks + 1) + f * 4 * f * low + f * 3 * high)
    return batch * (2 * first + 3 * others)


def pairs(first: Training, second: Training, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds of a step of both, measured in turn."""
    ours, theirs = [], []
    for training in (first, second):
        training.step()
        training.step()
    for first_goes in alternating_orders(count, seed):
        if first_goes:
            ours.append(first.seconds())
            theirs.append(second.seconds())
        else:
            theirs.append(second.seconds())
            ours.append(first.seconds())
    return ours, theirs


def ratio(ours: list[float], theirs: list[float]) -> Estimate:
    return median_interval([a / b for a, b in zip(ours, theirs, strict=True)])


def judge_peaks(verdicts: Verdicts, seconds: float, *, timed: bool) -> dict[str, Any]:
    """Measures the peaks twice and sets a large product beside them."""
    measured = machine_peaks(("fp64", "fp32", "bf16", "fp16"), seconds=seconds, cached=False)
    rows, found = [], {}
    for name, dtype in (("fp64", torch.float64), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        side = 1024
        a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
        best = min(_seconds(lambda a=a, b=b: torch.mm(a, b)) for _ in range(15))
        found[name] = 2 * side**3 / best / measured.peaks(name).flops_per_s
    for name in ("fp64", "fp32", "bf16", "fp16"):
        gemm, convolution = measured.gemm_flops_per_s[name], measured.convolution_flops_per_s[name]
        share = f"{found[name]:.2f}" if name in found else ""
        rows.append((name, f"{gemm / 1e9:.1f}", f"{convolution / 1e9:.1f}", share))
    print_table(
        "peaks of one process (GFLOP/s)",
        ("precision", "matrix product", "3×3 convolution", "1024³/peak"),
        rows,
    )
    print(f"  memory: copy {measured.copy_bytes_per_s / 1e9:.1f}, triad {measured.triad_bytes_per_s / 1e9:.1f} GB/s;"
          f" an operator {measured.operator_s * 1e6:.1f} µs\n")  # fmt: skip
    good = all(share <= 1.05 for share in found.values())
    if timed:
        _judge_products(verdicts, good, found, measured)
    return {name: measured.peaks(name) for name in ("fp64", "fp32", "bf16", "fp16")}


def _judge_products(verdicts: Verdicts, good: bool, found: dict[str, float], measured: Any) -> None:
    verdicts.judge(
        "a 1024³ product stays below 1.05 of the peak",
        good,
        ", ".join(f"{name} {share:.2f}" for name, share in found.items()),
    )
    gemm_share = {
        name: share * measured.peaks(name).flops_per_s / measured.gemm_flops_per_s[name]
        for name, share in found.items()
    }
    verdicts.judge(
        "and reaches 0.9 of the peak of products",
        all(share >= 0.9 for share in gemm_share.values()),
        ", ".join(f"{name} {share:.2f}" for name, share in gemm_share.items()),
    )


def _seconds(kernel: Callable[[], object]) -> float:
    began = time.perf_counter()
    kernel()
    return time.perf_counter() - began


def equal_gradients(size: Architecture) -> bool:
    """Whether activation checkpointing gives the same bits in fp64."""
    torch.manual_seed(1)
    plain, low = EDSR(size, scale=2).double(), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    other = copy.deepcopy(plain)
    checkpoint_blocks(other)
    for model in (plain, other):
        model(low).square().sum().backward()
    return all(
        torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
        for a, b in zip(plain.parameters(), other.parameters(), strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--pairs", type=int, default=0, help="alternating pairs for each option")
    parser.add_argument("--threads", type=int, default=1, help="of the rank")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    size = Architecture(2, 16) if chosen.quick else Architecture(16, 64)
    batch, side = (2, 24) if chosen.quick else (8, 48)
    count = chosen.pairs or (3 if chosen.quick else 15)
    options = OPTIONS[:4] if chosen.quick else OPTIONS
    print_heading(
        "compute: options of a step, and the roofline",
        network=f"EDSR {size.blocks}×{size.features} ×2",
        batch=batch,
        side=side,
        pairs=count,
        threads=chosen.threads,
    )
    verdicts = Verdicts()
    peaks = judge_peaks(verdicts, 0.05 if chosen.quick else 0.5, timed=not chosen.quick)

    plain = Training(size, batch, side, "plain")
    flops, traffic, operators = work(plain)
    expected = analytic_flops(size, batch, side)
    verdicts.judge(
        "FLOPs of a step are those of its convolutions",
        flops == expected,
        f"counted {flops:.0f}, analytic {expected:.0f}",
    )
    rows, shares, found = [], [], {}
    plain_times: list[float] = []
    for number, option in enumerate(options):
        training = Training(size, batch, side, option)
        ours, theirs = pairs(training, plain, count, number)
        plain_times += theirs
        found[option] = ratio(ours, theirs)
        its_flops, its_bytes, its_operators = work(training)
        placed = place(
            Work(its_flops, its_bytes, its_operators, statistics.median(ours)), peaks[training.precision.name]
        )
        assert placed is not None
        shares.append((option, placed.share_of_peak))
        note = training.trial.why if training.trial is not None else ""
        rows.append(
            (
                option,
                f"{statistics.median(ours) * 1e3:.1f}",
                found[option].text(3),
                f"{100 * placed.share_of_peak:.0f} %",
                f"{placed.intensity:.1f}",
                placed.bound,
                note,
            )
        )
    placed = place(Work(flops, traffic, operators, statistics.median(plain_times)), peaks["fp32"])
    assert placed is not None
    shares.append(("plain", placed.share_of_peak))
    rows.insert(
        0,
        (
            "plain",
            f"{statistics.median(plain_times) * 1e3:.1f}",
            "1",
            f"{100 * placed.share_of_peak:.0f} %",
            f"{placed.intensity:.1f}",
            placed.bound,
            "",
        ),
    )
    print_table(
        "options of a step",
        ("option", "ms", "time over plain", "of peak", "FLOP/byte", "bound", "note"),
        rows,
    )
    verdicts.judge(
        "activation checkpointing: same gradients in fp64",
        equal_gradients(size),
        "every parameter, bit for bit",
    )
    if chosen.quick:
        return verdicts.exit_code()
    verdicts.judge(
        "no step above 1.05 of its peak",
        all(share <= 1.05 for _, share in shares),
        ", ".join(f"{option} {share:.2f}" for option, share in shares),
    )
    verdicts.judge(
        "activation checkpointing costs ≤ 4/3 of a step (+ 5 %)",
        found["activation checkpointing"].median <= 1.05 * 4 / 3,
        found["activation checkpointing"].text(3),
    )
    verdicts.judge(
        "the moving average costs ≤ 5 % of a step", found["ema"].median <= 1.05, found["ema"].text(3)
    )
    better = min(1.0, found["compile"].median)
    verdicts.judge(
        "auto is ≤ 3 % slower than the better of eager and compiled",
        found["compile auto"].median <= 1.03 * better,
        f"{found['compile auto'].text(3)} beside {better:.3f}",
    )
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
