"""How many units a pool's ledger leases and completes in a second, each on the disk before it is acknowledged.

    python benchmarks/ledger_rate.py [--quick] [--folder DIR]

Every unit costs two changes, a grant and an acceptance, and each is answered only after a full sync of SQLite's log. Physics
expects: with one sync each, the rate is half of what the disk syncs in a second (measured beside it: a write of 4 KiB
and fsync); with group commit it is bound by SQLite's statements, some ten of them a unit. 64 units are under way at any
time, as with 64 workers. After each run the ledger is opened again and must hold every unit exactly once.

The bar: at least 5,000 units a second with group commit, of which at least 32 share a sync.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import median_interval

from muster.engine.pool.ledger import Ledger, Unit

UNDER_WAY = 64


def syncs_per_second(folder: Path, seconds: float) -> float:
    """Of this disk: writes of 4 KiB that are each followed by fsync."""
    count, begin = 0, time.perf_counter()
    with (folder / "syncs").open("wb", buffering=0) as file:
        while time.perf_counter() - begin < seconds:
            file.write(bytes(4096))
            os.fsync(file.fileno())
            count += 1
    return count / (time.perf_counter() - begin)


def units_per_second(path: Path, units: int, together: int) -> float:
    """Leases and completes so many units."""
    with Ledger(path, most_together=together) as ledger:
        ledger.add([Unit(number, {"shard": number}) for number in range(units)])
        begin = time.perf_counter()
        granted = deque(
            ledger.grant_soon(f"worker {k}", now=0.0, deadline=60.0, base_version=0)
            for k in range(min(UNDER_WAY, units))
        )
        asked, accepting = len(granted), deque()  # type: ignore[var-annotated]
        while granted or accepting:
            if granted:
                lease = granted.popleft().result()
                assert lease is not None
                accepting.append(ledger.accept_soon(lease.token, content=lease.token, samples=1, now=1.0))
            if accepting and (len(accepting) >= UNDER_WAY // 2 or not granted):
                accepting.popleft().result()
                if asked < units:
                    granted.append(ledger.grant_soon("worker", now=0.0, deadline=60.0, base_version=0))
                    asked += 1
        took = time.perf_counter() - begin
    with Ledger(path) as again:
        assert sorted(each.unit for each in again.accepted()) == list(range(units))
        assert again.active() == []
    return units / took


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the temporary folder by default")
    arguments = parser.parse_args()
    units, repeats, seconds = (200, 1, 0.2) if arguments.quick else (20_000, 5, 2.0)
    print_heading("The ledger of a pool", units=units, under_way=UNDER_WAY, repeats=repeats)
    rates: dict[int, list[float]] = {512: [], 32: [], 1: []}
    syncs = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for repeat in range(repeats):
            syncs.append(syncs_per_second(folder, seconds))
            for together, found in rates.items():
                some = units if together > 1 else units // 10
                found.append(units_per_second(folder / f"{repeat}-{together}", some, together))
    rows = [["syncs of 4 KiB", "", median_interval(syncs).text(0)]]
    rows += [
        ["lease and complete", str(together), median_interval(found).text(0)]
        for together, found in rates.items()
    ]
    print_table("A second", ["what", "changes that may share a sync", "rate"], rows)
    verdicts = Verdicts()
    rate = median_interval(rates[512])
    verdicts.judge(
        "lease and complete with group commit: ≥ 5,000 a second", rate.median >= 5000, rate.text(0)
    )
    return 0 if arguments.quick else verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
