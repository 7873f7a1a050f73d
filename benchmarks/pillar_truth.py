"""Does the pillar clock tell the truth? Known delays are injected and must appear in the right column.

    python benchmarks/pillar_truth.py [--pairs 200] [--quick]

Two ranks train EDSR-small under DistributedDataParallel (Gloo, one thread each, 8 patches of 64 pixels per rank) with
the clock and the step ledger that every run uses; the rows judged here are those of its run folder. Steps come in pairs,
in a seeded order: one plain, one with 20 ms injected in one of three places. What physics demands of the difference:

loader   one rank waits 20 ms longer for its batch     its `io` grows by 20 ms, and `idle` of the *other* rank, which
                                                       waits for it in the all-reduce
compute  one rank sleeps 20 ms before its forward pass its `compute` grows by 20 ms, and `idle` of the other rank
network  the last bucket's future completes 20 ms late `comm` of both ranks grows by 20 ms: all have entered, so that
         on both ranks                                 nobody waits for a straggler

Each must be 20 ms ± 10 %; the other columns are shown beside them. Which rank is slowed alternates between pairs; it
is 15 ms behind in *both* steps of a pair, since only a rank that is the last already passes all of a further delay on: of
two ranks level but for noise, one waits for the other in half of the plain steps, and `idle` cannot become negative.

Three further bars:

spans    forward and backward pass up to the last bucket's all-reduce, and the optimizer, timed by stopwatches of the
         benchmark's own, agree with the `compute` column within 2 % (what they leave out is the loop's bookkeeping,
         which the second figure includes)
sum      the columns of each step sum to its wall time, which is timed apart from the clock too, within 1 %
cost     the CPU time that clock and ledger take is at most 1 % of a step. The clock's is its marginal cost: its calls
         of a step in a tight loop under a CPU clock, and a hook's by letting it run a thousand times more in a real
         backward pass, which counts its futures and the autograd engine's callbacks. The ledger's is the CPU time of
         the rank's thread in its two calls.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from clock_cost import ClockCost, clock_cost
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import Estimate, median_interval
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from muster import gang
from muster.engine import hardware
from muster.engine.gang import Limits, RankContext, Supervision
from muster.engine.run_folder import RunFolder
from muster.engine.step_ledger import StepLedger
from muster.vision import EDSR

INJECTED_S = 0.020
BEHIND_S = 0.015
KINDS = ("loader", "compute", "network")
COLUMNS = ("io", "compute", "comm", "idle", "wall")
WARM_UP_STEPS = 20
BATCH, PATCH = 8, 64
BUCKET_MB = 0.2  # EDSR-small has 0.6 MB of gradients: several buckets, of which only the last is delayed


class Step(NamedTuple):
    """What is injected into one step.

    Arguments:
        pair: which pair it belongs to; -1 in the warm-up.
        kind: of its pair.
        slowed: the rank that loader and compute delays hit.
        injected: whether this is the member of the pair with the delay.
    """

    pair: int
    kind: str
    slowed: int
    injected: bool


class Stopwatch(NamedTuple):
    """The benchmark's own times of one step on one rank (s).

    Arguments:
        wall: from the beginning of the step to that of the next.
        compute_spans: forward, backward up to the last bucket, optimizer.
        with_bookkeeping: the same and what the loop does after the optimizer.
        ledger_cpu: CPU time of this thread in the ledger.
    """

    wall: float
    compute_spans: float
    with_bookkeeping: float
    ledger_cpu: float


def plan_steps(pairs: int, seed: int) -> list[Step]:
    """Warm-up steps, then ``pairs`` pairs of each kind in a random order, each pair in a random order within."""
    rng = random.Random(seed)
    kinds = [(kind, number % 2) for kind in KINDS for number in range(pairs)]
    rng.shuffle(kinds)
    steps = [Step(-1, "", 0, False)] * WARM_UP_STEPS
    for pair, (kind, slowed) in enumerate(kinds):
        first = rng.random() < 0.5
        steps += [Step(pair, kind, slowed, first), Step(pair, kind, slowed, not first)]
    return steps


class LateNetwork:
    """An all-reduce hook whose last future can be made to complete late, on a thread of its own."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.last_bucket_at = 0.0

    def __call__(self, state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            self.last_bucket_at = time.perf_counter()
        future = allreduce_hook(state, bucket)
        if not (self.delay_s and bucket.is_last()):
            return future
        late: torch.futures.Future[torch.Tensor] = torch.futures.Future()

        def pass_on_later(done: torch.futures.Future[torch.Tensor]) -> None:
            # Neither the autograd thread nor Gloo's may sleep: the first would compute late, the second send late.
            threading.Timer(self.delay_s, lambda: late.set_result(done.value())).start()

        future.add_done_callback(pass_on_later)
        return late


def train(context: RankContext, steps: list[Step]) -> tuple[list[Stopwatch], ClockCost]:
    """One rank's training; the rows go to the run folder, its own stopwatches and the clock's cost are returned."""
    clock, network = context.clock, LateNetwork()
    torch.manual_seed(0)
    replica = DistributedDataParallel(
        EDSR("edsr-small"), gradient_as_bucket_view=True, broadcast_buffers=False, bucket_cap_mb=BUCKET_MB
    )
    replica.register_comm_hook(None, clock.hook(network))
    optimizer = torch.optim.Adam(replica.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1 + context.rank)
    batches = [
        (
            torch.rand(BATCH, 3, PATCH // 2, PATCH // 2, generator=generator),
            torch.rand(BATCH, 3, PATCH, PATCH, generator=generator),
        )
        for _ in range(8)
    ]

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.l1_loss(replica(batch[0]), batch[1])

    for _ in range(2):  # DistributedDataParallel rebuilds its buckets after the first pass
        loss_of(batches[0]).backward()
    clock.begin_step(0)
    loss_of(batches[0]).backward()
    passed = clock.end_step()
    assert passed is not None
    buckets = len(passed.flights)

    ledger = StepLedger(context, buckets=buckets, trace_every=100)
    dist.barrier(group=context.control)
    begun = passes = waited_until = optimizer_s = ledger_cpu = 0.0
    watches = []

    def stop_watch(now: float) -> None:
        watches.append(Stopwatch(now - begun, passes + optimizer_s, passes + now - waited_until, ledger_cpu))

    for number, step in enumerate(steps, 1):
        delayed = step.injected and (step.kind == "network" or step.slowed == context.rank)
        cpu = time.thread_time()
        ledger.begin(number)
        ledger_cpu += time.thread_time() - cpu
        now = time.perf_counter()
        if number > 1:
            stop_watch(now)
        begun = now
        with clock.waiting():
            batch = batches[number % len(batches)]
            if delayed and step.kind == "loader":
                time.sleep(INJECTED_S)
        network.delay_s = INJECTED_S if delayed and step.kind == "network" else 0.0
        start = time.perf_counter()
        if step.kind in ("loader", "compute") and step.slowed == context.rank:
            time.sleep(BEHIND_S)
        if delayed and step.kind == "compute":
            time.sleep(INJECTED_S)
        with clock.span("forward"):
            loss = loss_of(batch)
        with clock.span("backward"):
            loss.backward()
        passes, waited_until = network.last_bucket_at - start, time.perf_counter()
        with clock.span("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        optimizer_s = time.perf_counter() - waited_until
        context.heartbeat()
        cpu = time.thread_time()
        ledger.end(
            loss=loss.detach().double() * BATCH,
            samples=BATCH,
            flops=0.0,
            learning_rate=1e-4,
            checkpoint_due=False,
        )
        ledger_cpu = time.thread_time() - cpu
    stop_watch(time.perf_counter())
    ledger.drain()
    return watches, clock_cost(context, buckets)


# ---- what the rows say ------------------------------------------------------------------------------------------------


def differences(rows: list[dict[str, Any]], steps: list[Step], kind: str) -> dict[tuple[str, str], Estimate]:
    """Injected minus plain within each pair of a kind: median by (who, column).

    Who is `slowed` or `other` where one rank is slowed, and `rank 0` or `rank 1` where both are.
    """
    by_step = {(row["rank"], row["step"]): row for row in rows}
    found: dict[tuple[str, str], list[float]] = {}
    first_of_pair = {}
    for number, step in enumerate(steps, 1):
        if step.kind != kind:
            continue
        if step.pair not in first_of_pair:
            first_of_pair[step.pair] = number
            continue
        injected = number if step.injected else first_of_pair[step.pair]
        plain = first_of_pair[step.pair] if step.injected else number
        for rank in (0, 1):
            if kind == "network":
                who = f"rank {rank}"
            else:
                who = "slowed" if rank == step.slowed else "other"
            for column in COLUMNS:
                change = by_step[rank, injected][column] - by_step[rank, plain][column]
                found.setdefault((who, column), []).append(change)
    return {key: median_interval(values) for key, values in found.items()}


EXPECTED = {
    "loader": {("slowed", "io"), ("other", "idle")},
    "compute": {("slowed", "compute"), ("other", "idle")},
    "network": {("rank 0", "comm"), ("rank 1", "comm")},
}


def judge_injections(rows: list[dict[str, Any]], steps: list[Step], verdicts: Verdicts) -> None:
    """The table of all changes, and a verdict for each that physics demands."""
    for kind in KINDS:
        changes = differences(rows, steps, kind)
        expected = EXPECTED[kind]
        table = [
            [who] + [changes[who, c].text(2, 1e3) + ("*" if (who, c) in expected else " ") for c in COLUMNS]
            for who in dict.fromkeys(who for who, _ in changes)
        ]
        pairs = next(iter(changes.values())).count
        print_table(
            f"+20 ms in the {kind}: change in ms, median of {pairs} pairs [95 % interval]; * must be 20 ± 2",
            ["", *COLUMNS],
            table,
        )
        for who, column in sorted(expected):
            change = changes[who, column]
            verdicts.judge(
                f"{kind}: {column} of {who} moves by 20 ms ± 10 %",
                abs(change.median - INJECTED_S) <= 0.1 * INJECTED_S,
                f"{change.text(2, 1e3)} ms",
            )


def judge_times(rows: list[dict[str, Any]], watches: list[list[Stopwatch]], verdicts: Verdicts) -> None:
    """The columns against the benchmark's own stopwatches, step by step."""
    counted = [row for row in rows if row["step"] > WARM_UP_STEPS]
    own = [watches[row["rank"]][row["step"] - 1] for row in counted]
    table = []
    for rank in (0, 1):
        of_rank = [(row, watch) for row, watch in zip(counted, own, strict=True) if row["rank"] == rank]
        spans = median_interval([watch.compute_spans / row["compute"] - 1 for row, watch in of_rank])
        total = (
            sum(watch.compute_spans for _, watch in of_rank) / sum(row["compute"] for row, _ in of_rank) - 1
        )
        whole = median_interval([watch.with_bookkeeping / row["compute"] - 1 for row, watch in of_rank])
        table.append([f"rank {rank}", spans.text(2, 100), f"{100 * total:.2f}", whole.text(2, 100)])
        verdicts.judge(
            f"compute spans of rank {rank} agree with the column within 2 %",
            abs(spans.median) <= 0.02 and abs(total) <= 0.02,
            f"{spans.text(2, 100)} % step by step, {100 * total:.2f} % in total",
        )
    print_table(
        "Own stopwatches beside the compute column (deviation in %)",
        ["", "spans, step by step", "spans, in total", "with bookkeeping"],
        table,
    )
    sums = np.array([row["io"] + row["compute"] + row["comm"] + row["idle"] for row in counted])
    walls = np.array([row["wall"] for row in counted])
    own_walls = np.array([watch.wall for watch in own])
    verdicts.judge(
        "columns sum to the wall time within 1 %",
        bool((np.abs(sums / walls - 1) <= 0.01).all()),
        f"largest deviation {100 * np.abs(sums / walls - 1).max():.1e} % of {len(sums)} rows",
    )
    # A stopwatch is read a few microseconds beside the clock; descheduled in between, a row differs by a time slice.
    beside = median_interval(np.abs(sums / own_walls - 1))
    total = float(sums.sum() / own_walls.sum() - 1)
    verdicts.judge(
        "columns sum to a wall time taken apart within 1 %",
        beside.high <= 0.01 and abs(total) <= 0.01,
        f"{beside.text(4, 100)} % step by step, {100 * total:+.4f} % in total",
    )
    least = min(min(row[column] for column in COLUMNS) for row in counted)
    verdicts.judge("no column is negative", least >= 0, f"smallest value {least * 1e6:.1f} µs")


def judge_cost(
    rows: list[dict[str, Any]],
    steps: list[Step],
    watches: list[list[Stopwatch]],
    costs: list[ClockCost],
    verdicts: Verdicts,
) -> None:
    """CPU time of clock and ledger beside the wall time of a plain step."""
    table = []
    for rank, cost in enumerate(costs):
        plain = [
            row["wall"]
            for row in rows
            if row["rank"] == rank and row["step"] > WARM_UP_STEPS and not steps[row["step"] - 1].injected
        ]
        wall = median_interval(plain).median
        ledger = median_interval([watch.ledger_cpu for watch in watches[rank][WARM_UP_STEPS:]]).median
        share = (cost.total + ledger) / wall
        table.append(
            [f"rank {rank}", f"{wall * 1e3:.1f}"]
            + [f"{value * 1e6:.0f}" for value in (cost.loop, cost.hook_per_bucket * cost.buckets, ledger)]
            + [f"{100 * cost.total / wall:.3f}", f"{100 * share:.3f}"]
        )
        verdicts.judge(
            f"clock and ledger of rank {rank} take at most 1 % of a step",
            share <= 0.01,
            f"{100 * share:.3f} %, the clock alone {100 * cost.total / wall:.3f} %",
        )
    print_table(
        f"CPU time of the books per step ({costs[0].buckets} buckets)",
        ["", "step ms", "clock in loop µs", "clock in hooks µs", "ledger µs", "clock %", "all %"],
        table,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Injects known delays and looks for them in the pillars.")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of steps for each kind of delay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke run of 10 pairs each")
    arguments = parser.parse_args()
    pairs = 10 if arguments.quick else arguments.pairs
    steps = plan_steps(pairs, arguments.seed)
    print_heading("Pillar truth", pairs=pairs, seed=arguments.seed, steps=len(steps), injected="20 ms")

    with tempfile.TemporaryDirectory(prefix="muster-benchmark-") as folder, gang.engine("local") as engine:
        run = RunFolder.create(
            Path(folder),
            "pillar-truth",
            app="benchmark",
            steps=len(steps),
            job_yaml="",
            environment=hardware.environment(__file__),
        )
        limits = Limits(ranks=2, min_ranks=2, max_ranks=2, threads=1, hang_timeout_s=120.0)
        results = Supervision(engine.launcher(), limits, run=run).supervise(
            lambda context: train(context, steps)
        )
        rows = run.table("steps").to_pylist()
    assert len(rows) == 2 * len(steps)
    watches, costs = [result[0] for result in results], [result[1] for result in results]

    verdicts = Verdicts()
    judge_injections(rows, steps, verdicts)
    judge_times(rows, watches, verdicts)
    judge_cost(rows, steps, watches, costs, verdicts)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
