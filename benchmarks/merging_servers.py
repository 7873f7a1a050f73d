"""What several merging servers that share one model gain, and what an eventual store loses.

    python benchmarks/merging_servers.py [--updates N] [--blocks N] [--quick]

1, 2 and 4 server processes merge the same number of updates of a quarter of a million weights by VC-ASGD with e/(e+1), once
written by compare and swap, once whatever has happened meanwhile.

Physics expects: a merge reads, computes and writes 2 MB in float64; only the writes exclude each other, so two servers on two
cores can be up to twice as fast, four no faster than two. Compare and swap does the work of a conflict again, and conflicts
get rarer with more blocks. An eventual store does nothing again and loses instead.

Quality is what is lost. Bars: compare and swap loses none, and its model is the mean of all updates to 1e-12; the counted
losses of the eventual store are those that its rule's own count of arrivals lacks. Updates per second have no bar.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from printed_results import Verdicts, print_heading, print_table

import muster.merge
from muster.engine.pool.shards import SharedModel
from muster.engine.pool.updates import Update

ARRAYS, SIZE = 16, 1 << 14
RULE = ("vc-asgd", {"alpha": None})


def model() -> dict[str, Any]:
    """The first one: nothing but zeros."""
    return {f"layer{number:02d}": np.zeros(SIZE) for number in range(ARRAYS)}


def update(number: int) -> Update:
    """Update ``number``: all its weights are ``number``, so the mean of all is known."""
    first = model()
    return Update({name: array + number for name, array in first.items()}, first)


def serve(path: Path, mine: range, consistency: Any, barrier: Any) -> None:
    """A server: merges its share of the updates."""
    rule = muster.merge.get(RULE[0], **RULE[1])
    updates = [update(number) for number in mine]
    with SharedModel(path) as shared:
        barrier.wait()
        for each in updates:
            shared.merge(each, rule, consistency)
        barrier.wait()


def served(
    path: Path, servers: int, updates: int, blocks: int, consistency: str
) -> tuple[float, SharedModel]:
    """Seconds from the moment when all servers are ready until all are done, and what they have made."""
    rule = muster.merge.get(RULE[0], **RULE[1])
    SharedModel.create(path, model(), rule, blocks=blocks).close()
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(servers + 1)
    processes = [
        spawn.Process(
            target=serve, args=(path, range(1 + number, updates + 1, servers), consistency, barrier)
        )
        for number in range(servers)
    ]
    for process in processes:
        process.start()
    barrier.wait(120)
    began = time.perf_counter()
    barrier.wait(600)
    took = time.perf_counter() - began
    for process in processes:
        process.join(60)
    return took, SharedModel(path)


def main() -> int:
    """Measures, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its times mean nothing")
    arguments = parser.parse_args()
    updates = 20 if arguments.quick else arguments.updates
    print_heading("Merging servers", updates=updates, blocks=arguments.blocks, weights=ARRAYS * SIZE)
    verdicts, rows = Verdicts(), []
    with tempfile.TemporaryDirectory() as name:
        for consistency in ("strong", "eventual"):
            for servers in (1, 2, 4):
                path = Path(name) / f"{consistency}-{servers}"
                took, shared = served(path, servers, updates, arguments.blocks, consistency)
                with shared:
                    counts, found = shared.counts(), shared.model()
                    arrivals = [int(shared.state(block)["arrivals"][""]) for block in range(len(counts))]
                lost = sum(each.lost for each in counts)
                conflicts = sum(each.conflicts for each in counts)
                rows.append(
                    [
                        f"{servers}, {consistency}",
                        f"{updates / took:.1f}",
                        f"{conflicts / len(counts) / updates:.1%}",
                        f"{lost / len(counts) / updates:.1%}",
                    ]
                )
                told = f"{servers} servers, {consistency}"
                if consistency == "strong":
                    mean = sum(range(updates + 1)) / (updates + 1)
                    off = max(float(np.abs(array - mean).max()) for array in found.values()) / mean
                    verdicts.judge(
                        f"{told}: none lost, the mean to 1e-12", lost == 0 and off < 1e-12, f"{off:.1e}"
                    )
                else:
                    lacking = sum(updates - each for each in arrivals)
                    verdicts.judge(
                        f"{told}: as many lost as the model lacks", lost == lacking, f"{lost} and {lacking}"
                    )
    print_table("Servers", ["", "updates/s", "done again, of a block's", "lost, of a block's"], rows)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
