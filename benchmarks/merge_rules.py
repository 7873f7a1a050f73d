"""How fast robust merge rules are, beside ByzFL's Krum and beside sorting alone.

    python benchmarks/merge_rules.py [--quick] [--rounds N]

Updates of a million float32 weights, in one thread on each side. Physics expects of n updates of d weights: 4 n d bytes are
read once, at the rate of memory. Krum needs all pairs of inner products in float64, half of a symmetric matrix:
n (n + 1) d / 2 multiply-adds, 55 million for n = 10 and 1,275 million for n = 50; a core with two vector units of four does
eight a cycle. A trimmed mean by a sorting network takes as many minima and maxima of each coordinate as the network has
comparisons (31, 138 and 395), eight float32 at a time; `numpy.sort` of the same array is its yardstick. These are printed.

Peer and Muster take turns on the same updates, in alternating order, and must come to the same: Krum to the same update,
the trimmed mean to the values of `scipy.stats.trim_mean`. Muster's times include forming the changes from trained weights
and base; ByzFL is given the changes ready, as NumPy's array and as torch's of both precisions, and its fastest counts.
Bars: Krum at least 3 times as fast as ByzFL's, a trimmed mean at most 1.2 times `numpy.sort`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from peer_environment import PeerUnavailable, byzfl_python  # noqa: E402
from printed_results import Verdicts, print_heading, print_table  # noqa: E402
from scipy.stats import trim_mean  # noqa: E402
from statistics_of_pairs import alternating_orders, median_interval  # noqa: E402

import muster.merge  # noqa: E402
from muster.merge import Update  # noqa: E402
from muster.training.merge.sorting_network import comparisons  # noqa: E402

PEER = """
import json, sys, time, types
from importlib.util import find_spec
package = types.ModuleType("byzfl")  # without its __init__, which imports what its aggregators do not need
package.__path__ = list(find_spec("byzfl").submodule_search_locations)
sys.modules["byzfl"] = package
import numpy as np
import torch
from byzfl.aggregators.aggregators import Krum
torch.set_num_threads(1)
krum = Krum(f=int(sys.argv[1]))
for line in sys.stdin:
    changes = np.load(line.strip())
    best = None
    for given in (changes, torch.from_numpy(changes), torch.from_numpy(changes.astype(np.float32))):
        begin = time.perf_counter()
        chosen = krum(given)
        took = time.perf_counter() - begin
        if best is None or took < best[0]:
            nearest = int(np.argmin(np.abs(changes - np.asarray(chosen)).max(axis=1)))
            best = took, nearest
    print(json.dumps(best), flush=True)
"""


class ByzFL:
    """ByzFL's Krum in a process of its own environment."""

    def __init__(self, python: Path, bad: int, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [str(python), "-c", PEER, str(bad)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def krum(self, changes: np.ndarray) -> tuple[float, int]:
        """Seconds, and the position of the update that was chosen."""
        path = self._folder / "changes.npy"
        np.save(path, changes)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        took, chosen = json.loads(self._process.stdout.readline())
        return took, chosen

    def close(self) -> None:
        self._process.communicate(timeout=30)


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    begin = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - begin, result


def in_turn(
    first: Callable[[], tuple[float, Any]], second: Callable[[], tuple[float, Any]], swap: bool
) -> tuple[tuple[float, Any], tuple[float, Any]]:
    """Both measurements, the second one first if ``swap``."""
    if swap:
        other = second()
        return first(), other
    return first(), second()


def measured(
    count: int, bad: int, size: int, rounds: int, peer: ByzFL | None
) -> tuple[list[float], list[float]]:
    """Ratios of each round: ByzFL's Krum over ours, and our trimmed mean over `numpy.sort`."""
    generator = np.random.default_rng(count)
    model = {"w": generator.standard_normal(size).astype(np.float32)}
    krum: Any = muster.merge.get("krum", f=bad)
    trimmed = muster.merge.get("trimmed-mean", f=bad)
    against_peer, against_sort = [], []
    for swap in alternating_orders(rounds, seed=count):
        changes = (1e-3 * generator.standard_normal((count, size))).astype(np.float32)
        updates = [Update({"w": model["w"] + change}, model) for change in changes]
        exact = np.stack([update.delta("w") for update in updates])
        if peer is not None:
            ours, theirs = in_turn(
                partial(timed, krum.select, model, updates), partial(peer.krum, exact), swap
            )
            if ours[1][0] != theirs[1]:
                print(f"n = {count}: Muster chose {ours[1][0]}, ByzFL {theirs[1]}")
            against_peer.append(theirs[0] / ours[0])
        ours, sort = in_turn(
            partial(timed, trimmed.merge, model, updates, {}), partial(timed, np.sort, exact, axis=0), swap
        )
        expected = model["w"] + trim_mean(exact, bad / count, axis=0)
        np.testing.assert_allclose(ours[1][0]["w"], expected, rtol=1e-6, atol=1e-7)
        against_sort.append(ours[0] / sort[0])
    return against_peer, against_sort


def limits(size: int) -> str:
    """What no implementation can do without, for each number of updates: bytes, multiply-adds, comparisons."""
    lines = [
        "Limits: bytes to read; multiply-adds in float64 of Krum; comparisons of the trimmed mean's network"
    ]
    for count in (10, 25, 50):
        pairs, exchanges = count * (count + 1) // 2 * size, len(comparisons(count)) * size
        lines.append(f"  n = {count}: {4 * (count + 1) * size:,}; {pairs:,}; {exchanges:,}")
    return "\n".join(lines)


def main() -> int:
    """Measures, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    size, rounds = (10_000, 1) if arguments.quick else (1_000_000, arguments.rounds)
    print_heading("Robust merge rules", weights=size, rounds=rounds)
    measured(10, 2, 1000, 1, None)  # so that what is compiled at the first use is compiled
    verdicts, rows = Verdicts(), []
    try:
        python: Path | None = byzfl_python()
    except PeerUnavailable as error:
        print(f"ByzFL is not compared: {error}")
        python = None
    with tempfile.TemporaryDirectory() as name:
        for count, bad in ((10, 2), (25, 5), (50, 12)):
            peer = None if python is None else ByzFL(python, bad, Path(name))
            against_peer, against_sort = measured(count, bad, size, rounds, peer)
            faster = "–"
            if peer is not None:
                peer.close()
                estimate = median_interval(against_peer)
                faster = estimate.text()
                verdicts.judge(f"krum, n = {count}: ≥ 3 × ByzFL", estimate.median >= 3, faster)
            slower = median_interval(against_sort)
            bar = f"trimmed mean, n = {count}: ≤ 1.2 × numpy.sort"
            verdicts.judge(bar, slower.median <= 1.2, slower.text())
            rows.append([str(count), str(bad), faster, slower.text()])
    print(limits(size))
    columns = ["updates", "bad", "ByzFL's Krum / ours", "our trimmed mean / numpy.sort"]
    print_table("Ratios of times, medians", columns, rows)
    return 0 if arguments.quick else verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
