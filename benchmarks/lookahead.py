"""Does reading ahead along a known order pay? The look-ahead loader beside its peers, on a store of a known speed.

    python benchmarks/lookahead.py [--data DIR] [--parts simulation third fiftieth plenty local] [--pairs 5] [--quick]

Two ranks with `--workers` worker processes each consume photographs for five epochs; a batch takes a known time of compute,
and the store (benchmarks/slow_store.py: another process, one token bucket for all, HTTP) delivers r of what they consume. All
loaders read the same photographs: Muster's and torch's DataLoader as JPEG files through the same source, WebDataset as tars,
MosaicML streaming as its own shards. Loaders run in turn, in alternating order; images/s are those of both ranks over
all epochs, beginning some seconds after the loader was made, as if a model was built meanwhile. Medians come with 95 %
bootstrap intervals.

MosaicML streaming 0.13 makes its S3 connection before it forks its workers, which then share it: two of them at once get
each other's answers, broken images and a time-out of a minute (seen here). So that it is measured at its best, the store
ends its connections after each answer.

simulation  Requests of the store with caches that sum to the data set, 4 ranks, 10 epochs: this package's rule and NoPFS's
            own-frequency rule. The bar: at most 0.40.
third       r = 1/3. DataLoader needs E/r epochs' worth of compute, a loader that reads each sample once 1/r + E - 1, so the
            ratio can be E / (1 + (E - 1) r) = 2.14; the bar is 0.9 of it. Bars too: faster than WebDataset as it is
            used without a cache of its own (with one, it is shown: each rank then sees only its own shards again and
            again), at least 0.98 of MosaicML streaming, store reads at most 1.02 of the plan's, and a stall of at most
            5 % in the epochs that the plan calls feasible (all but the first).
fiftieth    r = 1/50, with a fifth of the compute. The bar: 4.5 times DataLoader, of 4.63 that are possible. (With a tenth,
            two cores that are busy with compute cannot decode as fast as it consumes: 4.46.)
plenty      r = 2: every epoch is feasible. The bar: a stall of at most 5 % of the time.
local       No slow store and no compute: files on this machine, loaders as fast as they go. The bar: 0.98 of DataLoader.

Exit code 1 if a bar is missed. `--quick` is a smoke run whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slow_store
from peer_environment import PeerUnavailable, streaming_python
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import Estimate, median_interval
from streaming_data import Photographs, write_mosaic_shards, write_photographs

HERE = Path(__file__).resolve().parent
RANKS, EPOCHS, SEED = 2, 5, 0
SETUP_S = 3.0
MUSTER, TORCH = "lookahead", "dataloader"
TITLES = {
    MUSTER: "muster.io.LookAheadLoader",
    TORCH: "torch DataLoader",
    "webdataset": "WebDataset",
    "webdataset-cached": "WebDataset, cached shards",
    "mosaic": "MosaicML streaming",
}
TIMEOUT_S = 900.0
PEER_TRIES = 3


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Arguments:
        samples, side, batch: photographs, their side in pixels, samples per rank and batch.
        compute_s: of a batch; in the part `fiftieth` a fifth of it.
        pairs: repetitions.
        workers: processes per rank.
        simulated: samples of the simulation.
    """

    samples: int
    side: int
    batch: int
    compute_s: float
    pairs: int
    workers: int
    simulated: int


@dataclass
class Measured:
    """One run of one loader."""

    images_per_s: float
    walls: list[float]
    waits: list[float]
    store_reads: int
    statistics: list[dict[str, Any]] = field(default_factory=list)


class LoaderFailed(Exception):
    """A process of a loop ended with an error."""


class Bench:
    """Runs loaders over one set of photographs."""

    def __init__(self, photographs: Photographs, scale: Scale, peers: Path | None, scratch: Path) -> None:
        self.photographs, self.scale, self._peers, self._scratch = photographs, scale, peers, scratch
        self._runs = 0

    def rate(self, share: float, compute_s: float) -> float:
        """Bytes per second of a store that delivers ``share`` of what two ranks consume."""
        batches = self.photographs.samples / RANKS / self.scale.batch
        return share * self.photographs.bytes / (batches * compute_s)

    def run(
        self, loader: str, url: str, compute_s: float, store: slow_store.Started | None, **more: Any
    ) -> Measured:
        """Five epochs on two ranks; a peer that fails is run again, and it is said."""
        for left in range(PEER_TRIES - 1, -1, -1):
            try:
                return self._run(loader, url, compute_s, store, **more)
            except LoaderFailed as failure:
                if loader == MUSTER or not left:
                    raise SystemExit(str(failure)) from None
                last_line = str(failure).strip().splitlines()[-1]
                print(f"{TITLES[loader]} failed, and is run again: {last_line}", flush=True)
        raise AssertionError("the last try returns or ends the benchmark")

    def _run(
        self, loader: str, url: str, compute_s: float, store: slow_store.Started | None, **more: Any
    ) -> Measured:
        self._runs += 1
        scratch = self._scratch / f"run-{self._runs}"
        settings = {
            "loader": loader,
            "url": url,
            "samples": self.photographs.samples,
            "shards": self.photographs.shards,
            "batch": self.scale.batch,
            "epochs": EPOCHS,
            "compute_s": compute_s,
            "workers": self.scale.workers,
            "setup_s": SETUP_S,
            "memory_bytes": int(self.photographs.bytes / RANKS * 1.02),
            **more,
        }
        if store is not None:
            store.forget_counts()
        told = self._ranks(loader, settings, url, scratch)
        reads = 0
        if store is not None:
            paths = store.counts()["paths"]
            reads = sum(each["reads"] for name, each in paths.items() if name.startswith("jpeg/"))
        walls = [max(rank["walls"][epoch] for rank in told) for epoch in range(EPOCHS)]
        waits = [float(np.mean([rank["waits"][epoch] for rank in told])) for epoch in range(EPOCHS)]
        images = sum(rank["images"] for rank in told)
        print(f"{TITLES[loader]}: {images / sum(walls):.0f} images/s", file=sys.stderr, flush=True)
        return Measured(images / sum(walls), walls, waits, reads, [rank["loader"] for rank in told])

    def _ranks(self, loader: str, settings: dict[str, Any], url: str, scratch: Path) -> list[dict[str, Any]]:
        python = sys.executable if loader in (MUSTER, TORCH) else str(self._peers)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(RANKS):
            # MosaicML's ranks of one machine share a folder; WebDataset's must not.
            own = scratch if loader == "mosaic" else scratch / str(rank)
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "LOCAL_WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "S3_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "anyone",
                "AWS_SECRET_ACCESS_KEY": "anything",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            processes.append(
                subprocess.Popen(
                    [
                        python,
                        str(HERE / "peer_streaming_loop.py"),
                        json.dumps(settings | {"scratch": str(own)}),
                    ],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        told = []
        try:
            for process in processes:
                out, errors = process.communicate(timeout=TIMEOUT_S)
                if process.returncode != 0:
                    raise LoaderFailed(f"{loader} failed:\n{errors[-3000:]}")
                told.append(json.loads(out.splitlines()[-1]))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return told


def main() -> int:
    """Measures, prints, judges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    everything = ["simulation", "third", "fiftieth", "plenty", "local"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    parser.add_argument(
        "--data", type=Path, help="folder of photographs; the sample photographs if not given"
    )
    parser.add_argument("--pairs", type=int, default=5, help="repetitions")
    parser.add_argument("--workers", type=int, default=2, help="worker processes per rank")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    options = parser.parse_args()
    scale = Scale(480, 224, 16, 0.12, options.pairs, options.workers, 200_000)
    if options.quick:
        scale = Scale(64, 96, 8, 0.02, 1, min(1, options.workers), 5_000)
    print_heading(
        "Look-ahead loader",
        ranks=RANKS,
        epochs=EPOCHS,
        samples=scale.samples,
        batch=scale.batch,
        compute_s=scale.compute_s,
        workers=scale.workers,
        repetitions=scale.pairs,
    )
    verdicts = Verdicts()
    if "simulation" in options.parts:
        simulate(scale, verdicts)
    with tempfile.TemporaryDirectory(prefix="muster-lookahead-") as folder:
        photographs = write_photographs(
            Path(folder) / "data", originals(options.data), scale.samples, scale.side, shards=8
        )
        bench = Bench(photographs, scale, peers(photographs, options.parts), Path(folder) / "scratch")
        if "third" in options.parts:
            third(bench, verdicts)
        if "fiftieth" in options.parts:
            fiftieth(bench, verdicts)
        if "plenty" in options.parts:
            plenty(bench, verdicts)
        if "local" in options.parts:
            local(bench, verdicts)
    return verdicts.exit_code()


def originals(folder: Path | None) -> list[Path]:
    """Photographs to cut pieces from."""
    if folder is None:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
    found = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    from PIL import Image

    large = []
    for path in found:
        with Image.open(path) as image:
            if min(image.size) >= 224 and image.mode == "RGB":
                large.append(path)
    if not large:
        raise SystemExit(f"no colour photographs of 224 pixels or more in {folder}")
    return large


def peers(photographs: Photographs, parts: list[str]) -> Path | None:
    """The Python of the peers, with their shards written; None, said aloud, if they cannot be had."""
    if "third" not in parts:
        return None
    try:
        python = streaming_python()
    except PeerUnavailable as error:
        print(f"WebDataset and MosaicML streaming are not compared: {error}")
        return None
    write_mosaic_shards(photographs, python)
    return python


def simulate(scale: Scale, verdicts: Verdicts) -> None:
    """Requests of the store under two rules."""
    from muster.pillars.io.access_order import AccessOrder
    from muster.pillars.io.simulation import reads_by_own_frequency, reads_covering_first

    order = AccessOrder(scale.simulated, world_size=4, batch_size=32, seed=SEED)
    sizes = np.full(scale.simulated, 100_000, dtype=np.int64)
    rows, at_one = [], 1.0
    for share in (0.25, 0.5, 0.75, 1.0):
        capacities = [int(sizes.sum() * share) // 4] * 4
        ours = reads_covering_first(order, 10, sizes, capacities)
        theirs = reads_by_own_frequency(order, 10, sizes, capacities)
        at_one = ours / theirs
        rows.append(
            [
                f"{share:.2f}",
                f"{ours / scale.simulated:.2f}",
                f"{theirs / scale.simulated:.2f}",
                f"{at_one:.2f}",
            ]
        )
    columns = ["caches / data set", "cover first", "NoPFS's rule", "ratio"]
    print_table("Simulated requests of the store per sample, 4 ranks, 10 epochs", columns, rows)
    verdicts.judge(
        "store reads <= 0.40 x NoPFS's rule, caches equal to the data", at_one <= 0.40, f"{at_one:.2f}"
    )


def measure(
    bench: Bench, loaders: list[str], share: float, compute_s: float, title: str
) -> dict[str, list[Measured]]:
    """Runs loaders in turn on a slow store and prints a table."""
    measured: dict[str, list[Measured]] = {loader: [] for loader in loaders}
    orders = np.random.default_rng(SEED)
    for _ in range(bench.scale.pairs):
        for loader in orders.permutation(loaders).tolist():
            settings = {"rate": bench.rate(share, compute_s), "keep_alive": float(loader != "mosaic")}
            with slow_store.started(bench.photographs.root, **settings) as store:
                measured[loader].append(bench.run(loader, store.url, compute_s, store))
    show(measured, title)
    return measured


def show(measured: dict[str, list[Measured]], title: str) -> None:
    rows = []
    for loader, runs in measured.items():
        speed = median_interval([run.images_per_s for run in runs])
        stall = median_interval([sum(run.waits) / sum(run.walls) for run in runs])
        later = median_interval([sum(run.waits[1:]) / sum(run.walls[1:]) for run in runs])
        faster = ratio(measured, MUSTER, loader).text() if loader != MUSTER else ""
        reads = f"{np.median([run.store_reads for run in runs]):.0f}" if loader in (MUSTER, TORCH) else ""
        rows.append(
            [
                TITLES[loader],
                speed.text(0),
                faster,
                f"{stall.text(1, 100)} %",
                f"{later.text(1, 100)} %",
                reads,
            ]
        )
    columns = ["loader", "images/s", "Muster's ratio", "stall", "stall after epoch 1", "store reads"]
    print_table(title, columns, rows)


def ratio(measured: dict[str, list[Measured]], one: str, other: str) -> Estimate:
    """How many times as fast one loader is as another, over runs of the same turn."""
    pairs = zip(measured[one], measured[other], strict=True)
    return median_interval([first.images_per_s / second.images_per_s for first, second in pairs])


def judge_reads(runs: list[Measured], verdicts: Verdicts) -> None:
    against = [run.store_reads / run.statistics[0]["planned_store_reads"] for run in runs]
    worst = max(against)
    verdicts.judge("store reads <= 1.02 x the plan's bound", worst <= 1.02, f"at most {worst:.3f}")


def third(bench: Bench, verdicts: Verdicts) -> None:
    """A store of a third of what is consumed, and all peers."""
    others = [] if bench._peers is None else ["webdataset", "webdataset-cached", "mosaic"]
    share = 1 / 3
    measured = measure(bench, [MUSTER, TORCH, *others], share, bench.scale.compute_s, "r = 1/3")
    wanted = 0.9 * EPOCHS / (1 + (EPOCHS - 1) * share)
    found = ratio(measured, MUSTER, TORCH)
    verdicts.judge(f"r = 1/3: >= {wanted:.2f} x DataLoader", found.median >= wanted, found.text())
    if others:
        found = ratio(measured, MUSTER, "webdataset")
        verdicts.judge("r = 1/3: faster than WebDataset", found.median > 1, found.text())
        found = ratio(measured, MUSTER, "mosaic")
        verdicts.judge("r = 1/3: >= 0.98 x MosaicML streaming", found.median >= 0.98, found.text())
    else:
        verdicts.judge("r = 1/3: WebDataset and MosaicML streaming", False, "not measured")
    runs = measured[MUSTER]
    later = median_interval([sum(run.waits[1:]) / sum(run.walls[1:]) for run in runs])
    verdicts.judge(
        "r = 1/3: stall <= 5 % in feasible epochs", later.median <= 0.05, f"{later.text(1, 100)} %"
    )
    judge_reads(runs, verdicts)


def fiftieth(bench: Bench, verdicts: Verdicts) -> None:
    """A store of a fiftieth of what is consumed."""
    measured = measure(bench, [MUSTER, TORCH], 1 / 50, bench.scale.compute_s / 5, "r = 1/50")
    found = ratio(measured, MUSTER, TORCH)
    verdicts.judge("r = 1/50: >= 4.5 x DataLoader", found.median >= 4.5, found.text())
    judge_reads(measured[MUSTER], verdicts)


def plenty(bench: Bench, verdicts: Verdicts) -> None:
    """A store of twice what is consumed."""
    measured = measure(bench, [MUSTER, TORCH], 2.0, bench.scale.compute_s, "r = 2")
    stall = median_interval([sum(run.waits) / sum(run.walls) for run in measured[MUSTER]])
    verdicts.judge("r = 2: stall <= 5 %", stall.median <= 0.05, f"{stall.text(1, 100)} %")
    judge_reads(measured[MUSTER], verdicts)


def local(bench: Bench, verdicts: Verdicts) -> None:
    """No slow store at all."""
    measured: dict[str, list[Measured]] = {MUSTER: [], TORCH: []}
    orders = np.random.default_rng(SEED)
    for _ in range(bench.scale.pairs):
        for loader in orders.permutation(list(measured)).tolist():
            measured[loader].append(
                bench.run(loader, str(bench.photographs.root), 0.0, None, memory_bytes=1 << 30)
            )
    show(measured, "Local files, no compute")
    found = ratio(measured, MUSTER, TORCH)
    verdicts.judge("no slow store: >= 0.98 x DataLoader", found.median >= 0.98, found.text())


if __name__ == "__main__":
    sys.exit(main())
