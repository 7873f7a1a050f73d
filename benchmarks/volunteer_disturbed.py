"""Volunteer runs whose workers and coordinator are killed: the parts `chaos` and `coordinator` of the benchmark."""

from __future__ import annotations

import argparse
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from chaos_runs import weights_digest
from printed_results import Verdicts, print_table
from volunteer_runs import Job, carried_out, coordinator_of, kill, replay

from muster.engine.pool.status import pool_status
from muster.engine.run_folder import RunFolder
from muster.errors import MusterError
from muster.training.pool.account import pool_folder

KILL_EVERY = "30s"
VC_ASGD = {"name": "vc-asgd", "alpha": 0.7}
DIGITS = Job(
    {"app": "vision.classification", "model": {"arch": "mlp"}, "data": "digits"},
    samples=1442,
    workers=8,
    pace=50.0,
    passes=32,
    lease=103,  # 14 of a pass
    how={"rule": VC_ASGD, "local": {"batch": 32, "lr": 0.1}},
)


def cifar10(data: Path) -> Job:
    """The job on CIFAR-10 (JPEG)."""
    what = {
        "app": "vision.classification",
        "model": {"arch": "cnn-small"},
        "data": str(data / "cifar10"),
        "augmentation": "none",
    }
    how = {"rule": VC_ASGD, "local": {"batch": 32, "lr": 0.05}}
    return Job(what, samples=30_000, workers=8, pace=60.0, passes=2, lease=120, how=how)


def quick(job: Job) -> Job:
    """A short form of a job, whose figures mean nothing."""
    passes = 8 if job.samples < 10_000 else 1
    return replace(job, workers=3, passes=passes, pace=job.pace if job.samples < 10_000 else 600.0)


# ---- chaos -------------------------------------------------------------------------------------------------

CHAOS = {"kill_every": KILL_EVERY, "extra": 2, "extra_every": "20s", "slow": [5.0]}
RUN_COLUMNS = (
    "run", "accuracy %", "lost", "doubled", "workers lost", "time s", "first worker ready s", "time / ideal",
)  # fmt: skip


def chaos(asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    """The part `chaos`."""
    jobs = {"digits": DIGITS}
    if asked.data is not None:
        jobs["CIFAR-10 (JPEG)"] = cifar10(asked.data)
    for name, whole in jobs.items():
        job = quick(whole) if asked.quick else whole
        _disturbed(name, job, asked, verdicts, root / name.partition(" ")[0])
    _slow_one(quick(DIGITS) if asked.quick else DIGITS, asked, verdicts, root / "slow")


def _disturbed(name: str, job: Job, asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    disturbed = dict(CHAOS, kill_every="8s" if asked.quick else KILL_EVERY)
    calm: list[float] = []
    hurt: list[float] = []
    ratios: list[float] = []
    rows: list[list[str]] = []
    lost = doubled = 0
    for seed in range(1 if asked.quick else asked.seeds):
        for kind, extra, accuracies in (("calm", {}, calm), ("disturbed", disturbed, hurt)):
            done = carried_out(replace(job, chaos=extra), root / f"{kind}-{seed}", seed)
            assert job.passes is not None
            missing, twice = done.accounts.audit(job.samples * job.passes)
            ratio = done.accounts.over_ideal(job.pace, extra.get("slow", ()))
            lost, doubled = lost + missing, doubled + twice
            accuracies.append(done.accuracy)
            if kind == "disturbed":
                ratios.append(ratio)
            rows.append(
                [
                    f"{kind}, seed {seed}",
                    f"{done.accuracy:.2f}",
                    f"{missing:,}",
                    f"{twice:,}",
                    str(len(done.losses)),
                    f"{done.accounts.end - done.accounts.begin:.1f}",
                    f"{done.accounts.begin - done.started:.1f}",
                    f"{ratio:.3f}",
                ]
            )
            print("  ".join(rows[-1]), flush=True)
    print_table(f"{name}: {job.workers} workers, of which each is killed every {disturbed['kill_every']} on average",
                RUN_COLUMNS, rows)  # fmt: skip
    difference = float(np.mean(hurt) - np.mean(calm))
    verdicts.judge(
        f"{name}: accuracy within 1 point of the undisturbed run",
        abs(difference) <= 1,
        f"{difference:+.2f} points",
    )
    verdicts.judge(f"{name}: 0 samples lost, 0 doubled", lost == doubled == 0, f"{lost:,} and {doubled:,}")
    verdicts.judge(
        f"{name}: time at most 1.3 x the ideal of alive and ready workers",
        max(ratios) <= 1.3,
        f"{np.median(ratios):.3f}, at most {max(ratios):.3f}",
    )


def _slow_one(job: Job, asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    """A worker that is a hundred times slower: how the others merge meanwhile."""
    done = carried_out(replace(job, chaos={"slow": [100.0]}), root, 0)
    accounts = done.accounts
    others = accounts.merge_times(without="worker 0")
    longest = max(later - earlier for earlier, later in pairwise(others))
    last_granted = max(each.granted for each in accounts.leases if each.outcome == "accepted")
    begin = max(life.ready for life in accounts.lives)
    pace = accounts.pace(begin, last_granted) / ((job.workers - 1) * job.pace)
    verdicts.judge(
        f"a worker 100 x slower: others' merges come within {accounts.most_patient_s:.1f} s of each other",
        longest <= accounts.most_patient_s,
        f"longest {longest:.2f} s, median lease {accounts.median_lease_s:.2f} s",
    )
    verdicts.judge("a worker 100 x slower: the others keep 90 % of their pace", pace >= 0.9, f"{pace:.1%}")


# ---- kills of the coordinator, and of single workers -------------------------------------------------------


@dataclass(frozen=True)
class CoordinatorKiller:
    """Kills the coordinator of a run at random moments: after its first result, each within some seconds of its return.

    Arguments:
        most: kills.
        within_s: of its being there.
        random: decides when.
    """

    most: int
    within_s: float
    random: random.Random

    def __call__(self, run: RunFolder, process: subprocess.Popen[bytes]) -> list[float]:
        killed: list[float] = []
        before: int | None = None
        while process.poll() is None and len(killed) < self.most:
            pid = coordinator_of(run)
            if pid is None or pid == before or not run.state()["step"]:
                time.sleep(0.05)
                continue
            time.sleep(self.random.uniform(0.0, self.within_s))
            if process.poll() is None and kill(pid):
                killed.append(time.time())
                before = pid
        return killed


def coordinator(asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    """The part `coordinator`."""
    kills = 3 if asked.quick else asked.kills
    base = replace(DIGITS, workers=3 if asked.quick else 4, pace=100.0)
    each = replace(base, passes=4 if asked.quick else 24)
    rounds = 8 if asked.quick else 80
    in_rounds = replace(
        base, passes=None, rounds=rounds, how={**base.how, "rule": "fedavg", "round_leases": base.workers}
    )
    reference = weights_digest(carried_out(in_rounds, root / "rounds-calm", 0).run)
    rows: list[list[str]] = []
    for kind, job in (("each arrival", each), ("rounds", in_rounds)):
        draws = random.Random(asked.seed)
        done_kills, attempt, most_lost, lost_leases, replayed, same, ended = 0, 0, 0, 0, 0, 0, 0
        while done_kills < kills and attempt < 10:
            killer = CoordinatorKiller(kills - done_kills, 4.0, draws)
            place = root / f"{kind.partition(' ')[0]}-{attempt}"
            done = carried_out(job, place, 0, killer)
            attempt, done_kills, ended = attempt + 1, done_kills + len(done.killed), ended + 1
            told = replay(done.pool)
            replayed += told["matches_record"] is True
            same += weights_digest(done.run) == reference
            most_lost = max(most_lost, done.accounts.most_lost_at_once(done.killed))
            lost_leases += len(done.accounts.lost_leases())
            if kind == "each arrival":
                assert job.passes is not None
                gaps = done.accounts.audit(job.samples * job.passes)
                verdicts.judge(
                    "each arrival: 0 samples lost, 0 doubled", gaps == (0, 0), f"{gaps[0]:,} and {gaps[1]:,}"
                )
        rows.append([kind, str(done_kills), str(ended), str(lost_leases), str(most_lost)])
        verdicts.judge(
            f"{kind}: after {kills} kills the model is the one replayed from the ledger, bit for bit",
            replayed == ended and done_kills >= kills,
            f"{replayed} of {ended} runs, {done_kills} kills",
        )
        if kind == "rounds":
            verdicts.judge(
                "rounds: the model is that of the undisturbed run, bit for bit",
                same == ended,
                f"{same} of {ended} runs",
            )
        verdicts.judge(
            f"{kind}: a kill loses at most one lease of each worker",
            most_lost <= 1,
            f"most {most_lost}, {lost_leases} in all",
        )
    print_table(
        "Kills of the coordinator", ["merging", "kills", "runs", "leases lost", "of a worker at once"], rows
    )
    _lost_workers(asked, verdicts, root / "lost")


def _lost_workers(asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    """Workers are killed one after the other, and nobody comes in their place."""
    kills, apart_s = (1, 5.0) if asked.quick else (4, 12.0)
    job = replace(DIGITS, chaos={"join": "1h"})
    job = replace(job, workers=3, passes=6) if asked.quick else replace(job, passes=20)
    times: list[float] = []

    def killer(run: RunFolder, process: subprocess.Popen[bytes]) -> list[float]:
        pids = _all_at_work(run, job.workers, process)
        for victim in sorted(pids)[:kills]:
            time.sleep(apart_s)
            if process.poll() is None and kill(pids[victim]):
                times.append(time.time())
        return []

    done = carried_out(job, root, 0, killer)
    accounts, rows = done.accounts, []
    waits, kept = [], []
    for number, moment in enumerate(times):
        wait_s = accounts.next_merge_s(moment)
        left = job.workers - number
        before = accounts.pace(moment - 0.5 * apart_s, moment)
        after = accounts.pace(moment + accounts.most_patient_s, min(moment + apart_s, accounts.end))
        waits.append(float("inf") if wait_s is None else wait_s)
        kept.append(after / (before * (left - 1) / left))
        rows.append(
            [f"{left} to {left - 1}", f"{waits[-1]:.2f}", f"{before:.0f}", f"{after:.0f}", f"{kept[-1]:.2f}"]
        )
    print_table(
        "Workers that are lost for good",
        ["workers", "next merge s", "pace before", "pace after", "after / capacity left"],
        rows,
    )
    verdicts.judge(
        f"a lost worker: the next merge within {accounts.most_patient_s:.1f} s",
        len(waits) == kills and max(waits) <= accounts.most_patient_s,
        f"at most {max(waits, default=float('nan')):.2f} s after {len(waits)} kills",
    )
    verdicts.judge(
        "a lost worker: the pace is that of the others, within 10 %",
        len(kept) == kills and float(np.median(kept)) >= 0.9,
        f"{np.median(kept):.2f} of the capacity left",
    )


def _all_at_work(run: RunFolder, workers: int, process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Process ids of the workers, once all of them have had a result accepted."""
    while process.poll() is None:
        try:
            told = pool_status(pool_folder(run))["workers"]
        except MusterError:
            told = []
        ready = [each for each in told if each["accepted"] > 0 and "pid" in each]
        if len(ready) >= workers:
            return {each["worker"]: each["pid"] for each in ready}
        time.sleep(0.2)
    return {}


PARTS: dict[str, Callable[[Any, Verdicts, Path], None]] = {"chaos": chaos, "coordinator": coordinator}
