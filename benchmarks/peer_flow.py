"""Dask distributed or Parsl with worker processes on this machine, asked by lines of JSON on the standard input.

    python benchmarks/peer_flow.py {dask,parsl} WORKERS

A line ``["empty", N]`` or ``["wall", N]`` is answered by the seconds of N calls until all results are there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any


def identity(value: float) -> float:
    return value


def spin(seconds: float) -> float:
    import time

    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


def dask(workers: int) -> tuple[Callable[..., Any], Callable[[list[Any]], Any]]:
    from distributed import Client

    client = Client(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    # Calls with equal arguments are one task for Dask; `pure=False` makes them several, as they are for the others.
    return lambda function, value: client.submit(function, value, pure=False), client.gather


def parsl(workers: int) -> tuple[Callable[..., Any], Callable[[list[Any]], Any]]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="local",
        max_workers_per_node=workers,
        address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    parsl.load(Config(executors=[executor], run_dir=tempfile.mkdtemp(), usage_tracking=0))
    apps = {function: parsl.python_app(function) for function in (identity, spin)}
    return lambda function, value: apps[function](value), lambda futures: [each.result() for each in futures]


def main(name: str, workers: int) -> None:
    submit, gather = {"dask": dask, "parsl": parsl}[name](workers)
    for line in sys.stdin:
        kind, count = json.loads(line)
        function, argument = (identity, 1.0) if kind == "empty" else (spin, 0.01)
        gather([submit(function, argument) for _ in range(2 * workers)])
        begin = time.perf_counter()
        gather([submit(function, argument) for _ in range(count)])
        print(json.dumps(time.perf_counter() - begin), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
