"""The bubble of each pipeline schedule: by its authors' formula, simulated, and measured on four ranks.

    python benchmarks/pipeline_bubble.py [--rounds 5] [--unit-ms 200] [--draw] [--quick]

What is measured: a model of equal stages is trained for some steps by `muster.training.pipeline.Pipeline` on four processes
that talk over Gloo on loopback. A stage sleeps for a fixed time in forward and in backward, so that four ranks need no four
cores and the formulas' assumption, equal stages, holds. The bubble is the share of the ranks' time, from the first action's
start to the last one's end, in which the trace shows no computing. Schedules are measured in turn, round by round; medians
over rounds come with 95 % bootstrap intervals.

What to expect: messages and the runtime take some tenths of a millisecond per action; the measured bubble is therefore a
little wider than the formula's, by less the longer a stage takes. Bars: within 10 % of the formula; Chimera's smaller than
1F1B's at the same number of micro-batches. Torch gives the first stage of a schedule with a split backward no backward for
its input, so those two are compared with a simulation that does the same; of zbv, which has hardly a bubble to take a tenth
of, the step may be 3 % longer than simulated. Chimera's published formula for a backward twice as long holds for as many
micro-batches as ranks; with more, a gap between its units remains, which the table shows.

Before that each schedule's gradients are compared with those of the sequential model in float64.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import median_interval
from torch import Tensor, nn
from torch.nn import functional

from muster import gang
from muster.gang import RankContext
from muster.training.pipeline import Costs, Pipeline, Schedule, bubble_formula, make_schedule

RANKS = 4


@dataclass(frozen=True)
class Variant:
    """A schedule to measure.

    Arguments:
        name: of the schedule.
        micro_batches: N.
        backward: how many times a forward it takes.
        stages_per_rank: if not as many as usual.
    """

    name: str
    micro_batches: int
    backward: int
    stages_per_rank: int | None = None

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.name, RANKS, self.micro_batches, stages_per_rank=self.stages_per_rank)

    @property
    def splits(self) -> bool:
        """Whether the backward is split; its halves then take as long as each other."""
        return self.name in ("zero-bubble", "zbv")

    def costs(self, *, first_input: bool = True) -> Costs:
        """In forwards of a stage."""
        return Costs(1, self.backward, self.backward / 2, first_input)

    @property
    def simulated(self) -> float:
        return float(self.schedule.simulate(self.costs(first_input=not self.splits)).bubble)

    @property
    def formula(self) -> float | None:
        found = bubble_formula(self.schedule, self.costs())
        return None if found is None else float(found)


VARIANTS = (
    Variant("gpipe", 4, 1),
    Variant("1f1b", 4, 1),
    Variant("chimera", 4, 1),
    Variant("gpipe", 4, 2),
    Variant("1f1b", 4, 2),
    Variant("chimera", 4, 2),
    Variant("1f1b", 8, 1),
    Variant("chimera", 8, 1),
    Variant("1f1b", 8, 2),
    Variant("chimera", 8, 2),
    Variant("interleaved", 4, 2),
    Variant("looped-bfs", 4, 2),
    Variant("zero-bubble", 4, 2, stages_per_rank=1),
    Variant("zbv", 8, 2),
)


class Sleep(torch.autograd.Function):
    """The identity, whose backward sleeps."""

    @staticmethod
    def forward(context: Any, value: Tensor, seconds: float) -> Tensor:
        context.seconds = seconds
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(context.seconds)
        return gradients[0], None


class Stage(nn.Module):
    """Sleeps in forward, in the backward for its input and in that for its weight."""

    def __init__(self, forward_s: float, input_s: float, weight_s: float) -> None:
        super().__init__()
        self.forward_s, self.input_s, self.weight_s = forward_s, input_s, weight_s
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Tensor:
        time.sleep(self.forward_s)
        return Sleep.apply(value, self.input_s) + Sleep.apply(self.weight, self.weight_s)  # type: ignore[no-any-return]


def measure(
    context: RankContext, variants: tuple[Variant, ...], rounds: int, unit_s: float
) -> list[list[float]]:
    """For each variant the bubble of each round, after one round that is not counted."""
    pipelines = []
    for variant in variants:
        schedule, cost = variant.schedule, variant.costs()
        second = unit_s / schedule.stages_per_rank  # the same model, whatever the number of stages
        stages = [
            Stage(second, (cost.backward - cost.weight) * second, cost.weight * second)
            for _ in range(schedule.stages)
        ]
        batch = torch.zeros(variant.micro_batches, 1, requires_grad=True)
        pipeline = Pipeline(
            stages,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=variant.micro_batches,
            schedule=variant.name,
            stages_per_rank=variant.stages_per_rank,
            balance=[1] * schedule.stages,
        )
        pipelines.append((pipeline, batch))
    bubbles: list[list[float]] = [[] for _ in variants]
    for turn in range(rounds + 1):
        for index, (pipeline, batch) in enumerate(pipelines):
            pipeline.step(batch, batch.detach())
            bubble = pipeline.timeline().bubble
            if turn:
                bubbles[index].append(bubble)
    return bubbles


def gradient_errors(context: RankContext, names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """For each schedule the largest difference from the sequential model's gradients, and the largest of those."""

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [layer for _ in range(RANKS * 2) for layer in (nn.Linear(16, 16), nn.Tanh())]
        return nn.Sequential(*layers).double()

    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(24, 16, dtype=torch.float64, generator=generator)
    target = torch.randn(24, 16, dtype=torch.float64, generator=generator)
    sequential = model()
    functional.mse_loss(sequential(batch), target).backward()
    wanted = {key: value.grad for key, value in sequential.named_parameters()}
    errors = {}
    for name in names:
        found: list[tuple[float, float]] = []
        for micro_batches in (4, 8):
            pipeline = Pipeline(
                model(),
                context,
                example=batch,
                loss_fn=functional.mse_loss,
                micro_batches=micro_batches,
                schedule=name,
            )
            pipeline.step(batch, target)
            for key, value in pipeline.named_parameters():
                assert value.grad is not None
                right = wanted[key]
                assert right is not None
                found.append((float((value.grad - right).abs().max()), float(right.abs().max())))
        errors[name] = (max(error for error, _ in found), max(size for _, size in found))
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each schedule is measured")
    parser.add_argument("--unit-ms", type=float, default=200, help="a rank's forward of a micro-batch")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--draw", action="store_true", help="draws each schedule, too")
    options = parser.parse_args()
    rounds, unit_ms = (2, 10.0) if options.quick else (options.rounds, options.unit_ms)
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.ERROR)
    print_heading("Bubbles of pipeline schedules", ranks=RANKS, rounds=rounds, unit_ms=unit_ms)
    names = tuple(dict.fromkeys(variant.name for variant in VARIANTS))
    if options.draw:
        for variant in VARIANTS:
            print(f"\n{variant}")
            print(variant.schedule.simulate(variant.costs(first_input=not variant.splits)).draw())
    with gang.engine("local", preload=["muster.training.pipeline", "torch.distributed.pipelining"]) as engine:
        errors = engine.run(lambda context: gradient_errors(context, names), ranks=RANKS, threads=1)
        measured = engine.run(
            lambda context: measure(context, VARIANTS, rounds, unit_ms / 1e3), ranks=RANKS, threads=1
        )[0]

    verdicts = Verdicts()
    rows = []
    for variant, bubbles in zip(VARIANTS, measured, strict=True):
        estimate, formula = median_interval(bubbles), variant.formula
        against = variant.simulated if variant.splits else formula
        rows.append(
            [
                variant.name,
                str(variant.micro_batches),
                str(variant.schedule.stages_per_rank),
                f"1:{variant.backward}",
                "-" if formula is None else f"{formula:.2%}",
                f"{variant.simulated:.2%}",
                estimate.text(2, 100),
                "-" if against is None else f"{estimate.median / against:.3f}",
            ]
        )
    print_table(
        "Bubble: the share of the ranks' time without computing",
        ["schedule", "N", "v", "F:B", "formula", "simulated", "measured %", "ratio"],
        rows,
    )
    print_table(
        "Gradients beside the sequential model's, float64, N = 4 and 8",
        ["schedule", "largest difference", "largest gradient"],
        [[name, *(f"{max(rank[name][index] for rank in errors):.1e}" for index in (0, 1))] for name in names],
    )
    for name in names:
        worst = max(rank[name][0] for rank in errors)
        verdicts.judge(f"{name}: gradients of the sequential model to 1e-10", worst <= 1e-10, f"{worst:.1e}")
    medians = {}
    for variant, bubbles in zip(VARIANTS, measured, strict=True):
        medians[variant] = median = median_interval(bubbles).median
        kind = "simulation" if variant.splits else "formula"
        against = variant.simulated if variant.splits else variant.formula
        assert against is not None
        if variant.name == "zbv":
            longer = (1 - against) / (1 - median)  # the same work in a longer step
            verdicts.judge(
                "zbv: step at most 3 % longer than simulated", longer <= 1.03, f"{longer:.3f} times"
            )
            continue
        title = f"{variant.name}, N = {variant.micro_batches}, F:B = 1:{variant.backward}"
        verdicts.judge(
            f"{title}: bubble within 10 % of the {kind}",
            abs(median / against - 1) <= 0.1,
            f"{median:.2%} beside {against:.2%}, ratio {median / against:.3f}",
        )
    by_variant = dict(zip(VARIANTS, measured, strict=True))
    for variant in VARIANTS:
        if variant.name == "chimera":
            other = by_variant[Variant("1f1b", variant.micro_batches, variant.backward)]
            ratio = median_interval(
                [ours / theirs for ours, theirs in zip(by_variant[variant], other, strict=True)]
            )
            verdicts.judge(
                f"chimera, N = {variant.micro_batches}, F:B = 1:{variant.backward}: bubble smaller than 1F1B's",
                ratio.median < 1,
                f"{ratio.text()} of it",
            )
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
