"""Tuned buckets and bf16 on slow links, beside DistributedDataParallel's own and hand-set bucket caps; and a prediction.

EDSR 16x64 (x2, 5.5 MB of gradients) on two ranks of one thread each; loopback of a network namespace behind a token bucket
(`tc tbf`), whose rate both directions share. All variants are in one process tree and take turns step by step; a row of the
statistics is one such round. A step is forward and backward pass until all gradients are exchanged; optimizers are left
out on both sides. The floor is forward + max(backward, communication): forward and backward are those of a model that
does not communicate, communication is the exchange of all gradients in one piece with nothing else going on. Three sizes
of step are measured, from one that waits for the link to one that waits for its own arithmetic. The floor is out of reach by
the time before the first large gradient is there, in which the link has nothing to do (it is the upsampling's, a tenth of
the backward pass in), where the step waits for the link; and by the exchange of the last bucket where it does not.

Exposed communication is what the pillar clock calls so: how long the backward pass waits after its last gradient, on the
rank that has it last (what the other rank waits longer is waiting for that rank, idle time with any layout). The floor
exposes what does not fit behind the backward pass. Communication also takes time from the cores that compute (copies, sums
and the network stack of the kernel run on the same two); what the step takes longer in all is printed beside the wait.

What physics expects: at 400 Mbit/s two ranks put 2 x 5.5 MB on the wire, 0.22 s; in bf16 half of it. The default of 25 MiB
puts (nearly) all of it behind the backward pass. No layout can be below the floor.

The prediction: two ranks that share one core give profile and link; four ranks on two cores are predicted from it and run.

Exit code 1 if a bar is missed. Needs root; without, it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from printed_results import Verdicts, print_heading, print_table
from shaped_link import shaped, why_not
from statistics_of_pairs import Estimate, median_interval

HERE = Path(__file__).parent
FP32_CAPS = ("fp32 0.3 MiB", "fp32 1 MiB", "fp32 4 MiB")
BF16_CAPS = ("bf16 0.3 MiB", "bf16 1 MiB", "bf16 4 MiB")
SIZES = ((24, 2), (48, 1), (48, 2))  # side of the patches of low resolution, how many per rank
FIXED = ("ddp", *FP32_CAPS, "bf16 default", *BF16_CAPS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run under a minute; its figures mean nothing"
    )
    parser.add_argument("--rounds", type=int, default=15, help="of alternating steps")
    parser.add_argument("--parts", nargs="*", default=["floor", "rates", "loopback", "prediction"])
    asked = parser.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    rounds = 3 if asked.quick else asked.rounds
    patch, batch = (12, 1) if asked.quick else (24, 2)
    size = ["--patch", str(patch), "--batch", str(batch)]
    sizes = [(patch, batch)] if asked.quick else SIZES
    parts = ["floor"] if asked.quick and len(asked.parts) == 4 else asked.parts
    print_heading("Bucket layouts and bf16 on slow links", rounds=rounds, patch=patch, batch_per_rank=batch)
    verdicts = Verdicts()
    if "floor" in parts:
        for patch, batch in sizes:
            _floor("400mbit", rounds, patch, batch, verdicts)
    if "rates" in parts:
        for rate in ("10gbit", "1gbit", "200mbit"):
            _rates(rate, rounds, size, verdicts)
    if "loopback" in parts:
        _loopback(max(rounds, 3 if asked.quick else 20), size, verdicts)
    if "prediction" in parts:
        _prediction("400mbit", rounds, size, verdicts)
    return verdicts.exit_code()


def _run(rate: str | None, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "bucket_ranks.py"), *arguments]
    done = subprocess.run(shaped(rate, command), stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _column(rows: list[dict[str, Any]], name: str, what: str = "step") -> list[float]:
    return [row[name][what] for row in rows]


def _ratio(rows: list[dict[str, Any]], name: str, floors: list[float]) -> Estimate:
    return median_interval([step / floor for step, floor in zip(_column(rows, name), floors, strict=True)])


def _steps_table(title: str, rows: list[dict[str, Any]], floors: dict[str, list[float]]) -> None:
    default = _column(rows, "ddp")
    lines = []
    for name in rows[0]:
        if name.endswith(" alone"):
            exchange = median_interval(_column(rows, name, "exchange"))
            lines.append([name, exchange.text(1, 1e3), "", ""])
            continue
        floor = floors.get("bf16" if "bf16" in name else "fp32")
        against = _ratio(rows, name, floor).text(3) if floor and name != "local" else ""
        step = median_interval(_column(rows, name))
        lines.append([name, step.text(1, 1e3), _ratio(rows, name, default).text(3), against])
    print_table(title, ["variant", "step, ms", "of DDP's default", "of its floor"], lines)


def _floor(rate: str, rounds: int, patch: int, batch: int, verdicts: Verdicts) -> None:
    result = _run(rate, "--rounds", str(rounds), "--patch", str(patch), "--batch", str(batch))
    rows = result["rows"]
    size = f"patch {patch}, {batch} per rank"
    forward = _column(rows, "local", "forward")
    both = _column(rows, "local")
    communication = {name: _column(rows, f"{name} alone", "exchange") for name in ("fp32", "bf16")}
    floors = {
        name: [
            ahead + max(passed - ahead, exchange)
            for ahead, passed, exchange in zip(forward, both, communication[name], strict=True)
        ]
        for name in communication
    }
    _steps_table(f"{rate}, two ranks, {size}", rows, floors)
    for name in ("muster fp32", "muster bf16", "auto"):
        print(f"  {name} chose: {result['told'][name]}")
    print()
    for kind, bar, caps in (("fp32", 1.10, FP32_CAPS), ("bf16", 1.06, (*BF16_CAPS, "bf16 default"))):
        ours = f"muster {kind}"
        found = _ratio(rows, ours, floors[kind])
        verdicts.judge(f"{size}: {kind} step <= {bar:.2f} x floor", found.median <= bar, found.text(3))
        best = min(caps, key=lambda cap: median_interval(_column(rows, cap)).median)
        against = _ratio(rows, ours, _column(rows, best))
        verdicts.judge(
            f"{size}: {kind} below the best hand-set cap",
            against.median < 1.0,
            f"{against.text(3)} of {best}",
        )
        hideable = [
            max(0.0, exchange - (passed - ahead))
            for passed, ahead, exchange in zip(both, forward, communication[kind], strict=True)
        ]
        steps = _column(rows, ours)
        exposed = _beyond(_column(rows, ours, "waited"), hideable, steps)
        slower = _beyond([step - passed for step, passed in zip(steps, both, strict=True)], hideable, steps)
        verdicts.judge(
            f"{size}: {kind} exposed communication <= the floor's + 5 % of the step",
            exposed.median <= 0.05,
            f"{exposed.text(1, 100)} % of the step more; with what it takes from the cores {slower.text(1, 100)} %",
        )


def _beyond(seconds: list[float], floor: list[float], steps: list[float]) -> Estimate:
    """What is spent beyond the floor, as a share of the step."""
    return median_interval(
        [(spent - least) / step for spent, least, step in zip(seconds, floor, steps, strict=True)]
    )


def _rates(rate: str, rounds: int, size: list[str], verdicts: Verdicts) -> None:
    result = _run(rate, "--rounds", str(rounds), "--only", "auto", *FIXED, *size)
    rows = result["rows"]
    _steps_table(f"{rate}, two ranks", rows, {})
    print(f"  auto chose: {result['told']['auto']}\n")
    best = min(FIXED, key=lambda name: median_interval(_column(rows, name)).median)
    against = _ratio(rows, "auto", _column(rows, best))
    verdicts.judge(
        f"auto at most 3 % slower than the best fixed choice at {rate}",
        against.median <= 1.03,
        f"{against.text(3)} of {best}",
    )


def _loopback(rounds: int, size: list[str], verdicts: Verdicts) -> None:
    result = _run(None, "--rounds", str(rounds), "--only", "auto", "ddp", *size)
    rows = result["rows"]
    _steps_table(f"loopback as it is, {rounds} alternating pairs", rows, {})
    print(f"  auto chose: {result['told']['auto']}\n")
    against = _ratio(rows, "auto", _column(rows, "ddp"))
    verdicts.judge("auto not slower than DDP beyond noise on loopback", against.low <= 1.0, against.text(3))


def _prediction(rate: str, rounds: int, size: list[str], verdicts: Verdicts) -> None:
    from muster.pillars.comm.link import Link
    from muster.pillars.comm.predict import predict_step
    from muster.pillars.comm.step_profile import StepProfile

    pinned = _run(rate, "--part", "profile", "--ranks", "2", "--cores", "1", "--rounds", str(rounds), *size)
    four = _run(rate, "--part", "step", "--ranks", "4", "--cores", "2", "--rounds", str(rounds), *size)
    values = pinned["profile"]
    for name in ("names", "bytes", "ready_s"):
        values[name] = tuple(values[name])
    profile, link = StepProfile(**values), Link.from_json(pinned["link"])
    two = predict_step(profile, link, 2, pinned["ends"])
    predicted = predict_step(profile, link, 4, pinned["ends"])
    print_table(
        f"{rate}: four ranks on two cores, predicted from two on one",
        ["ranks", "measured, ms", "predicted, ms", "link busy, ms", "exposed, ms"],
        [
            [
                str(ranks),
                f"{1e3 * measured:.1f}",
                f"{1e3 * told.step_s:.1f}",
                f"{1e3 * told.communication_s:.1f}",
                f"{1e3 * told.exposed_s:.1f}",
            ]
            for ranks, measured, told in ((2, pinned["step_s"], two), (4, four["step_s"], predicted))
        ],
    )
    error = predicted.step_s / four["step_s"] - 1
    verdicts.judge("four ranks predicted within 10 %", abs(error) <= 0.10, f"{100 * error:+.1f} %")


if __name__ == "__main__":
    sys.exit(main())
