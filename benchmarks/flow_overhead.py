"""What a task of a flow costs beside an empty one of its peers, and what a graph of a hundred thousand takes.

    python benchmarks/flow_overhead.py [--parts empty wall graph] [--rounds N] [--quick]

empty   Seconds per call of a function that returns its argument, called once per task (no map, no batch call of the
        peer's own), until all results are there; the peers in turn, `--rounds` times: Muster inline and on threads,
        `ProcessPoolExecutor`, bare Ray (`f.remote`), Muster on the same Ray with a message per task and in bundles, Dask
        distributed and Parsl (high-throughput executor) on as many worker processes. Physics: a message to another
        process and back costs two system calls and a pickle on each side, some 50 µs on this kind of machine; a call in
        the same process some 0.1 µs. Bars: inline <= 10 µs; threads <= 0.5 of ProcessPoolExecutor; Ray one by one <= 1.3 of
        bare Ray; bundles <= 0.1 of bare Ray.
wall    Tasks that keep a core busy for 10 ms, on two workers, against bare Ray. Bar: <= 1.05 of its wall time.
graph   A graph of 100,000 tasks behind one that has not ended: Python's allocations per task beside arguments and results
        (bar: <= 1 KB), and the time of the last tenth of the calls against the first (bar: <= 1.2).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from peer_environment import PeerUnavailable, flow_peers_python
from printed_results import Verdicts, print_heading, print_table
from statistics_of_pairs import Estimate, median_interval

from muster import flow, gang

HERE = Path(__file__).resolve().parent
WORKERS = 2
TASKS = {"inline": 20_000, "threads": 5_000, "ProcessPoolExecutor": 2_000, "dask": 2_000, "parsl": 1_000}


def identity(value: int) -> int:
    return value


def spin(seconds: float) -> float:
    """Keeps a core busy for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


identity_task = flow.task(identity)
spin_task = flow.task(spin)


def with_muster(executor: Any, engine: Any = None, **options: Any) -> Callable[[str, int], float]:
    """Seconds that so many calls take until all results are there; the flow is opened before."""

    def measure(kind: str, count: int) -> float:
        with flow.engine(executor, workers=WORKERS, on=engine, **options):
            call = identity_task if kind == "empty" else spin_task
            flow.wait_on([call(_argument(kind, place)) for place in range(2 * WORKERS)])
            begin = time.perf_counter()
            found = flow.wait_on([call(_argument(kind, place)) for place in range(count)])
            took = time.perf_counter() - begin
        assert found == [_argument(kind, place) for place in range(count)]
        return took

    return measure


def _argument(kind: str, place: int) -> float:
    return place if kind == "empty" else 0.01


def with_ray(session: Any) -> Callable[[str, int], float]:
    ray = session.ray
    functions = {"empty": ray.remote(identity), "wall": ray.remote(spin)}

    def measure(kind: str, count: int) -> float:
        call = functions[kind].remote
        ray.get([call(_argument(kind, place)) for place in range(2 * WORKERS)])
        begin = time.perf_counter()
        ray.get([call(_argument(kind, place)) for place in range(count)])
        return time.perf_counter() - begin

    return measure


def with_processes(kind: str, count: int) -> float:
    call = identity if kind == "empty" else spin
    with ProcessPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(call, _argument(kind, place)) for place in range(2 * WORKERS)]:
            future.result()
        begin = time.perf_counter()
        for future in [pool.submit(call, _argument(kind, place)) for place in range(count)]:
            future.result()
        return time.perf_counter() - begin


@contextmanager
def peer(name: str, python: Path) -> Iterator[Callable[[str, int], float]]:
    """A peer in a process and an environment of its own, which is asked by lines of JSON."""
    process = subprocess.Popen(
        [python, HERE / "peer_flow.py", name, str(WORKERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def measure(kind: str, count: int) -> float:
        print(json.dumps([kind, count]), file=process.stdin, flush=True)
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise PeerUnavailable(f"{name} ended with {process.wait()}")
        return float(json.loads(line))

    try:
        measure("empty", 1)
        yield measure
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Parsl leaves processes behind
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="*", default=["empty", "wall", "graph"])
    asked = parser.parse_args()
    rounds, scale = (1, 0.05) if asked.quick else (asked.rounds, 1.0)
    print_heading("Overhead of a flow's tasks", rounds=rounds, workers=WORKERS)
    verdicts = Verdicts()
    if "empty" in asked.parts or "wall" in asked.parts:
        with ExitStack() as stack:
            engine = stack.enter_context(gang.engine("embedded", cpus=WORKERS))
            ways: dict[str, Callable[[str, int], float]] = {
                "inline": with_muster("inline"),
                "threads": with_muster("threads"),
                "ProcessPoolExecutor": with_processes,
                "bare Ray": with_ray(engine.session),
                "Ray, one by one": with_muster("ray", engine, bundle_s=0.0),
                "Ray, bundles": with_muster("ray", engine),
            }
            for name in ("dask", "parsl"):
                try:
                    ways[name] = stack.enter_context(peer(name, flow_peers_python()))
                except PeerUnavailable as reason:
                    print(f"{name} is left out: {reason}")
            if "empty" in asked.parts:
                _empty(ways, rounds, scale, verdicts)
            if "wall" in asked.parts:
                _wall(ways, rounds, scale, verdicts)
    if "graph" in asked.parts:
        _graph(int(100_000 * scale), verdicts)
    return verdicts.exit_code()


def _in_turn(
    ways: dict[str, Callable[[str, int], float]], kind: str, counts: dict[str, int], rounds: int
) -> dict[str, list[float]]:
    """Seconds per task of each way, a value for each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name in list(ways)[:: 1 if round_ % 2 else -1]:
            found[name].append(ways[name](kind, counts[name]) / counts[name])
    return found


def _ratio(found: dict[str, list[float]], one: str, other: str) -> Estimate:
    return median_interval([a / b for a, b in zip(found[one], found[other], strict=True)])


def _empty(ways: Any, rounds: int, scale: float, verdicts: Verdicts) -> None:
    counts = {name: max(20, int(scale * TASKS.get(name, 2_000))) for name in ways}
    found = _in_turn(ways, "empty", counts, rounds)
    rows = [
        [
            name,
            str(counts[name]),
            median_interval(values).text(1, 1e6),
            _ratio(found, name, "bare Ray").text(3),
        ]
        for name, values in found.items()
    ]
    print_table("Empty tasks, one call each", ["", "tasks", "µs per task", "of bare Ray"], rows)
    inline = median_interval(found["inline"])
    verdicts.judge("inline: at most 10 µs per task", inline.median <= 10e-6, f"{inline.text(1, 1e6)} µs")
    for ours, theirs, bar in (
        ("threads", "ProcessPoolExecutor", 0.5),
        ("Ray, one by one", "bare Ray", 1.3),
        ("Ray, bundles", "bare Ray", 0.1),
    ):
        ratio = _ratio(found, ours, theirs)
        verdicts.judge(f"{ours}: at most {bar} of {theirs}", ratio.median <= bar, ratio.text(3))


def _wall(ways: Any, rounds: int, scale: float, verdicts: Verdicts) -> None:
    chosen = {name: way for name, way in ways.items() if name not in ("inline", "threads", "Ray, one by one")}
    counts = dict.fromkeys(chosen, max(8, int(400 * scale)))
    found = _in_turn(chosen, "wall", counts, rounds)
    rows = [
        [name, median_interval(values).text(2, 1e3), _ratio(found, name, "bare Ray").text(3)]
        for name, values in found.items()
    ]
    print_table(
        "Tasks of 10 ms on two workers (5 ms each are ideal)", ["", "ms per task", "of bare Ray"], rows
    )
    ratio = _ratio(found, "Ray, bundles", "bare Ray")
    verdicts.judge(
        "tasks of 10 ms: at most 1.05 of bare Ray's wall time", ratio.median <= 1.05, ratio.text(3)
    )


def _graph(count: int, verdicts: Verdicts) -> None:
    gate = threading.Event()
    hold = flow.task(lambda: int(not gate.wait(600)))

    def calls(measured: bool) -> list[float]:
        gate.clear()
        futures: list[Any] = []
        tenths = []
        with flow.engine("threads", workers=1):
            first = hold()
            if measured:
                tracemalloc.start()
            for _ in range(10):
                begin = time.perf_counter()
                futures.extend([identity_task(first) for _ in range(count // 10)])
                tenths.append(time.perf_counter() - begin)
            if measured:
                tenths = [tracemalloc.get_traced_memory()[0] / count]
                tracemalloc.stop()
            gate.set()
            assert sum(flow.wait_on(futures)) == 0
        return tenths

    growth = [tenths[-1] / tenths[0] for tenths in (calls(False) for _ in range(5))]
    (memory,) = calls(True)
    print_table(
        f"A graph of {count:,} tasks",
        ["", ""],
        [
            ["memory per task, bytes", f"{memory:.0f}"],
            ["last tenth of the calls / first", f"{statistics.median(growth):.3f}"],
        ],
    )
    verdicts.judge("memory: at most 1 KB per task", memory <= 1024, f"{memory:.0f} bytes")
    verdicts.judge(
        "calls: the last tenth at most 1.2 of the first",
        statistics.median(growth) <= 1.2,
        median_interval(growth).text(3),
    )


if __name__ == "__main__":
    sys.exit(main())
