"""What volunteer runs on real spot traces cost: the part `money` of the benchmark."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from printed_results import Verdicts, print_table
from volunteer_disturbed import DIGITS
from volunteer_runs import carried_out

from muster.engine.pool.lease_length import best_length_s
from muster.fleet import Bill, Price, read_trace

COMPRESS = 720  # two hours of a trace in ten seconds
SOURCE = (
    "Atre, Jha and Rao (PAISE 2021) state savings of 70-90 % for their own system and prices; that is theirs, not ours. "
    "What is saved here follows from the prices in the table and from the machines' time that was not used. A start, which "
    f"compression makes {COMPRESS} times as dear as in reality, is paid for in the first figure and left out of the last."
)


@dataclass(frozen=True)
class Machine:
    """A class of machine in the traces.

    Arguments:
        word: in the names of its traces.
        price: where a trace has none of its own.
        notice_s: of an interruption.
    """

    word: str
    price: Price
    notice_s: float


P3 = Price(
    0.918,
    3.06,
    "p3.2xlarge: spot as observed in us-west-2b from 2023-04-22 on, on demand by AWS's price list of 2023",
)
C3 = Price(
    0.34,
    3.78,
    "c3-highcpu-88: spot and its 91 % below on demand by Wu et al., NSDI 2024, table 4",
)
MACHINES = (Machine("v100", P3, 120.0), Machine("c3-88", C3, 30.0))


def money(asked: argparse.Namespace, verdicts: Verdicts, root: Path) -> None:
    """The part `money`."""
    if asked.data is None:
        print("money: left out, since --data names no folder with spot/", flush=True)
        return
    paths = sorted((asked.data / "spot").glob("*.json"))
    rows, bills = [], []
    for path in paths[-1:] if asked.quick else paths:
        machine = next(each for each in MACHINES if each.word in path.name)
        trace = read_trace(path)
        price = machine.price
        if (observed := trace.price_per_hour()) is not None:
            price = replace(price, per_hour=observed)
        job = replace(DIGITS, workers=3, passes=4) if asked.quick else replace(DIGITS, passes=16)
        there = (
            trace.availability(notice_s=machine.notice_s)
            .scaled(job.workers)
            .begun_with_an_instance()
            .compressed(COMPRESS)
        )
        chaos = {
            "availability": {"trace": str(path), "compress": COMPRESS, "notice": f"{machine.notice_s:g}s"}
        }
        done = carried_out(replace(job, chaos=chaos), root / path.stem, 0)
        accounts = done.accounts
        took_s = accounts.end - done.pool_started
        alive_s = there.instance_seconds(took_s)
        bill = Bill(
            {machine.word: price},
            {machine.word: alive_s},
            {machine.word: accounts.samples / job.pace},
            len(accounts.accepted),
        )
        ready_s = sum(life.within(0, accounts.end) for life in accounts.lives)
        started = replace(bill, alive_s={machine.word: ready_s})
        bills.append((path.stem, bill))
        assert job.passes is not None
        lost, doubled = accounts.audit(job.samples * job.passes)
        verdicts.judge(
            f"{path.stem}: 0 samples lost, 0 doubled", lost == doubled == 0, f"{lost:,} and {doubled:,}"
        )
        rate = there.interruptions_per_s
        best_s = best_length_s(0.1, interruptions_per_s=rate) if rate > 0 else float("inf")
        assert bill.per_update is not None
        assert bill.saving is not None
        assert started.saving is not None
        rows.append(
            [
                path.stem.replace("-node", ""),
                f"{there.mean / job.workers:.0%}",
                f"{1 / rate:.0f}" if rate else "-",
                f"{best_s:.1f}",
                str(len(done.losses)),
                f"{took_s:.0f}",
                f"{alive_s:.0f}",
                f"{ready_s:.0f}",
                f"{accounts.samples / job.pace:.0f}",
                f"{price.per_hour:.3f}",
                f"{price.on_demand_per_hour:.2f}",
                f"{bill.cost:.4f}",
                f"{bill.per_update:.6f}",
                f"{bill.on_demand:.4f}",
                f"{bill.saving:.1%}",
                f"{started.saving:.1%}",
            ]
        )
        print(f"{path.stem}: {bill.text()}", flush=True)
    columns = (
        "trace", "there", "mean life s", "best lease s", "lost", "time s", "paid s", "ready s", "needed s",
        "per hour", "on demand", "cost", "an update", "cost on demand", "saved", "starts apart",
    )  # fmt: skip
    print_table(
        f"Digits under spot traces, time compressed {COMPRESS} times; prices and costs in USD", columns, rows
    )
    for source in sorted({price.source for _, bill in bills for price in bill.prices.values()}):
        print(f"prices: {source}")
    print(SOURCE, flush=True)
