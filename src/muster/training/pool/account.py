"""What a pool's run has come to, from its folder alone: who worked when, how leases ended, what it has cost."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from muster.engine.pool.lease_records import ended_leases
from muster.engine.pool.status import pool_status
from muster.engine.run_folder import RunFolder
from muster.fleet import Bill
from muster.fleet import Price as MachinePrice
from muster.spec.pool_how import Price

PILLARS = ("io", "compute", "comm", "idle", "lost")
_ENDS = {"left": "left", "worker_lost": "lost", "killed": "killed"}


@dataclass(frozen=True)
class Life:
    """A worker's process.

    Arguments:
        worker: its name.
        slot: its place in the pool.
        pid: of the process; None for the run's own.
        joined, ended: seconds on the run-wide clock; None while it lives.
        state: ``working``, ``waiting``, ``left`` (in order), ``killed`` (by ``how.chaos``) or ``lost``.
    """

    worker: str
    slot: int
    pid: int | None
    joined: float
    ended: float | None
    state: str


def is_pool(run: RunFolder) -> bool:
    """Whether a run is a pool's."""
    return run.state().get("shape") == "pool" or pool_folder(run).is_dir()


def pool_folder(run: RunFolder) -> Path:
    """Where a run keeps ledger and blobs."""
    return run.path / "pool"


def slot_of(worker: str) -> int:
    """The place of a worker in its pool, from its name: ``worker 3.1`` is the second one at place 3."""
    return int(worker.rpartition(" ")[2].partition(".")[0])


def leases(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of `leases`; of a run that has not written them yet, from its ledger."""
    rows: list[dict[str, Any]] = run.table("leases").to_pylist()
    if not (pool_folder(run) / "ledger.sqlite").is_file() or run.state()["status"] == "done":
        return sorted(rows, key=lambda row: (row["granted"], row["lease"]))
    return list(ended_leases(pool_folder(run), run.state()["epoch_unix_s"]))


def lives(run: RunFolder) -> list[Life]:
    """The workers of a run, in the order in which they joined."""
    state, events = run.state(), run.events()
    goes_on = run.status() == "running"
    last: dict[int, float] = {}
    for event in events:
        last[event["attempt"]] = max(last.get(event["attempt"], 0.0), event["time"])
    found: dict[str, Life] = {}
    attempt_of: dict[str, int] = {}
    for event in events:
        name = event["detail"].get("worker", "") if isinstance(event["detail"], dict) else ""
        if event["kind"] == "joined" and name:
            told = str(event["detail"].get("what", "")).rpartition(" ")[2]
            pid = int(told) if told.isdigit() else None
            found[name] = Life(name, slot_of(name), pid, event["time"], None, "working")
            attempt_of[name] = event["attempt"]
        elif event["kind"] in _ENDS and name in found and found[name].ended is None:
            before = found[name]
            found[name] = Life(
                name, before.slot, before.pid, before.joined, event["time"], _ENDS[event["kind"]]
            )
    for name, life in found.items():  # whose end nobody has seen: the engine was lost, or the run has ended
        if life.ended is None and not (goes_on and attempt_of[name] == state["attempt"]):
            end = last[attempt_of[name]]
            found[name] = Life(name, life.slot, life.pid, life.joined, max(end, life.joined), "left")
    return list(found.values())


def price_of(run: RunFolder) -> Price | None:
    """``how.price`` of the resolved job, which need not be valid any more."""
    try:
        job: Any = YAML(typ="safe").load((run.path / "job.yaml").read_text(encoding="utf-8"))
        price = job["how"]["price"]
        return None if price is None else Price.model_validate(price)
    except (OSError, YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return None


def bill_of(run: RunFolder, workers: Sequence[Life], rows: Sequence[dict[str, Any]]) -> Bill | None:
    """What a run has cost so far, at the prices of its job; None where it names none.

    The workers are paid for from when they joined until they were gone, the coordinator while any worker was there. On
    demand the same work is paid for as long as the accepted leases took, and the coordinator for as long as that takes all
    workers together.
    """
    price = price_of(run)
    if price is None:
        return None
    named = {"worker": MachinePrice(price.per_hour, price.on_demand, "the job's how.price")}
    class_of: dict[int, str] = {}
    for each in price.classes:
        named[each.name] = MachinePrice(each.per_hour, each.on_demand, "the job's how.price")
        for _ in range(each.workers):
            class_of[len(class_of)] = each.name
    now = time.time() - run.state()["epoch_unix_s"]
    alive: dict[str, float] = defaultdict(float)
    work: dict[str, float] = defaultdict(float)
    for life in workers:
        end = now if life.ended is None else life.ended
        alive[class_of.get(life.slot, "worker")] += max(0.0, end - life.joined)
    accepted = [row for row in rows if row["outcome"] == "accepted"]
    for row in accepted:
        work[class_of.get(slot_of(row["worker"]), "worker")] += row["ended"] - row["granted"]
    if price.coordinator and workers:
        named["coordinator"] = MachinePrice(price.coordinator, price.coordinator, "the job's how.price")
        ends = [now if life.ended is None else life.ended for life in workers]
        alive["coordinator"] = max(ends) - min(life.joined for life in workers)
        work["coordinator"] = sum(work.values()) / max(1, run.state()["world_size"])
    return Bill(named, dict(alive), dict(work), len(accepted))


def billed(bill: Bill | None, currency: str) -> dict[str, Any] | None:
    """A bill as JSON values."""
    if bill is None:
        return None
    return {
        "currency": currency,
        "cost": bill.cost,
        "per_update": bill.per_update,
        "on_demand": bill.on_demand,
        "saving": bill.saving,
        "alive_s": sum(bill.alive_s.values()),
        "work_s": sum(bill.work_s.values()),
        "prices": {
            name: {"per_hour": each.per_hour, "on_demand": each.on_demand_per_hour}
            for name, each in bill.prices.items()
        },
    }


def account(run: RunFolder) -> dict[str, Any]:
    """What ``muster show --json`` says of a pool; docs/cli.md documents the keys."""
    rows, workers = leases(run), lives(run)
    accepted = [row for row in rows if row["outcome"] == "accepted"]
    started = [event["detail"] for event in run.events() if event["kind"] == "pool_started"]
    staleness = [
        row["number"] - 1 - row["base_version"]
        for row in accepted
        if row["number"] is not None and started and started[0].get("arrival") == "each"  # a round has none
    ]
    price = price_of(run)
    seconds: dict[str, dict[str, float]] = {}
    for row in rows:
        sums = seconds.setdefault(row["worker"], dict.fromkeys((*PILLARS, "wall"), 0.0))
        for name in sums:
            sums[name] += row[name]
    events = Counter(event["kind"] for event in run.events())
    return {
        "workers": [asdict(life) for life in workers],
        "leases": dict(Counter(row["outcome"] for row in rows)),
        "samples": sum(row["samples"] for row in accepted),
        "staleness": sum(staleness) / len(staleness) if staleness else None,
        "noticed": events["notice"],
        "killed": events["killed"],
        "lost": events["worker_lost"],
        "refused": events["refused"],
        "late": events["late"],
        "short": events["short"],
        "pillars": seconds,
        "cost": billed(bill_of(run, workers, rows), price.currency if price else ""),
    }


def run_status(run: RunFolder) -> dict[str, Any]:
    """`muster.engine.pool.status.pool_status` of a run's pool, and what only the run knows: states of workers, cost."""
    found = pool_status(pool_folder(run))
    told = account(run)
    busy = {lease["worker"] for lease in found["leases"]}
    known = {each["worker"]: each for each in found["workers"]}
    workers = []
    for life in told["workers"]:
        state = life["state"]
        if life["ended"] is None:
            state = "working" if life["worker"] in busy else "waiting"
        workers.append(
            {**known.get(life["worker"], _new(life["worker"])), "pid": life["pid"], "state": state}
        )
    return found | {
        "run": run.id,
        "status": run.status(),
        "workers": workers,
        "killed": told["killed"],
        "lost": told["lost"],
        "staleness": told["staleness"],
        "cost": told["cost"],
    }


def _new(worker: str) -> dict[str, Any]:
    """What a worker has done that has had no lease yet."""
    counts = dict.fromkeys(
        ("active", "accepted", "expired", "refused", "failed", "returned", "revoked", "samples"), 0
    )
    return {"worker": worker, **counts, "seconds": None, "staleness": None}
