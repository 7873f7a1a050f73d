"""The ranks of `buckets.py`: EDSR 16x64 under several ways to exchange its gradients, step by step in turn.

Run by `buckets.py` in the network it has prepared; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muster import gang

CAPS_MIB = (0.3, 1.0, 4.0)


@dataclass
class Variant:
    """A model of its own and how it is trained."""

    step: Callable[[], dict[str, float]]
    settled: Callable[[], bool]
    told: Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["variants", "profile", "step"], default="variants")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--patch", type=int, default=24)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2, help="pin the ranks to so many cores")
    parser.add_argument("--only", nargs="*", default=None, help="names of variants")
    asked = parser.parse_args()
    with gang.engine("local") as engine:
        results = engine.run(lambda context: _rank(context, asked), ranks=asked.ranks, threads=1)
    print(json.dumps(results[0]))


def _rank(context: Any, asked: argparse.Namespace) -> Any:
    import torch

    warnings.simplefilter("ignore")
    cores = sorted(os.sched_getaffinity(0))[: asked.cores]
    os.sched_setaffinity(0, {cores[context.rank % len(cores)]} if asked.part != "variants" else set(cores))
    torch.set_num_threads(1)
    if asked.part == "variants":
        return _variants(context, asked)
    return _profile(context, asked)


def _variants(context: Any, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each variant's steps, a row for each round."""
    import torch
    import torch.distributed as dist

    from muster.pillars.comm.link_probe import measure_link

    link = measure_link()
    makers: dict[str, Callable[[], Variant]] = {"local": lambda: _ddp(context, asked, local=True)}
    makers["ddp"] = lambda: _ddp(context, asked)
    for cap in CAPS_MIB:
        makers[f"fp32 {cap:g} MiB"] = lambda cap=cap: _ddp(context, asked, cap=cap)
        makers[f"bf16 {cap:g} MiB"] = lambda cap=cap: _attached(context, asked, "bf16", buckets=cap)
    makers["bf16 default"] = lambda: _attached(context, asked, "bf16", buckets="keep")
    makers["muster fp32"] = lambda: _attached(context, asked, "none", link=link)
    makers["muster bf16"] = lambda: _attached(context, asked, "bf16", link=link)
    makers["auto"] = lambda: _attached(context, asked, "auto", link=link)
    wanted = asked.only or list(makers)
    variants = {name: makers[name]() for name in makers if name in wanted}
    for variant in variants.values():
        for _ in range(3):
            variant.step()
        while not variant.settled():
            variant.step()
        variant.step()
    alone = {name: _alone(context, name) for name in ("fp32", "bf16")} if "local" in wanted else {}
    rows: list[dict[str, dict[str, float]]] = []
    order = list(variants)
    for round_ in range(asked.rounds):
        row = {}
        turned = (
            order[round_ % len(order) :] + order[: round_ % len(order)]
        )  # each comes after each other one
        for name in turned if round_ % 2 else turned[::-1]:
            dist.barrier()
            row[name] = _slowest(variants[name].step())
        for name, exchange in alone.items():
            dist.barrier()
            begin = time.perf_counter()
            exchange()
            row[f"{name} alone"] = _slowest({"exchange": time.perf_counter() - begin})
        rows.append(row)
    told = {name: variant.told() for name, variant in variants.items()}
    size = sum(parameter.numel() for parameter in _net().parameters()) * 4
    return {
        "rows": rows,
        "told": told,
        "bytes": size,
        "link": {"all_reduce_s": link.seconds("all_reduce", size), "shared": link.shared},
        "threads": torch.get_num_threads(),
    }


def _slowest(times: dict[str, float]) -> dict[str, float]:
    """The slowest rank's times; of `waited`, the shortest.

    The rank that was ready last waits for the exchange alone, the others also for that rank: idle time, by the pillar clock.
    """
    import torch
    import torch.distributed as dist

    signs = torch.tensor([-1.0 if name == "waited" else 1.0 for name in times], dtype=torch.float64)
    values = signs * torch.tensor(list(times.values()), dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return dict(zip(times, (signs * values).tolist(), strict=True))


def _net() -> Any:
    import torch

    from muster.vision import EDSR

    torch.manual_seed(0)
    return EDSR("edsr-baseline", scale=2)


def _trained(
    context: Any, asked: argparse.Namespace, replica: Any, local: bool = False
) -> Callable[[], dict[str, float]]:
    """One step: seconds of the forward pass, of forward and backward pass with the exchange, of what the latter waits for the
    exchange after its last gradient, and of the optimizer."""
    import contextlib

    import torch

    optimizer = torch.optim.Adam(replica.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(context.rank)
    low = torch.rand(asked.batch, 3, asked.patch, asked.patch, generator=generator)
    high = torch.rand(asked.batch, 3, 2 * asked.patch, 2 * asked.patch, generator=generator)
    computed = 0.0

    def ready(_: object) -> None:
        nonlocal computed
        computed = time.perf_counter()

    for parameter in replica.parameters():
        parameter.register_post_accumulate_grad_hook(ready)

    def step() -> dict[str, float]:
        with replica.no_sync() if local else contextlib.nullcontext():
            begin = time.perf_counter()
            loss = torch.nn.functional.l1_loss(replica(low), high)
            forward = time.perf_counter() - begin
            loss.backward()
            passed = time.perf_counter() - begin
            waited = begin + passed - computed
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return {
            "forward": forward,
            "step": passed,
            "waited": waited,
            "optimizer": time.perf_counter() - begin - passed,
        }

    return step


def _ddp(context: Any, asked: argparse.Namespace, cap: float | None = None, local: bool = False) -> Variant:
    from torch.nn.parallel import DistributedDataParallel

    replica = DistributedDataParallel(_net(), gradient_as_bucket_view=True, bucket_cap_mb=cap)  # type: ignore[arg-type]
    return Variant(_trained(context, asked, replica, local), lambda: True, lambda: None)


def _attached(context: Any, asked: argparse.Namespace, compression: str, **options: Any) -> Variant:
    from torch.nn.parallel import DistributedDataParallel

    from muster import comm
    from muster.pillars.comm.tuner import Pace

    replica = DistributedDataParallel(_net(), gradient_as_bucket_view=True)
    attached = comm.attach(replica, compression, pace=Pace(check_every=0), **options)
    return Variant(
        _trained(context, asked, replica),
        lambda: attached.settled,
        lambda: attached.decisions[-1] if attached.decisions else None,
    )


def _alone(context: Any, name: str) -> Callable[[], None]:
    """The exchange of all gradients in one piece, with nothing else going on."""
    import torch
    import torch.distributed as dist

    from muster.pillars.comm.compress.compressor import parts_of
    from muster.pillars.comm.compress.registry import load_compressor
    from muster.pillars.comm.compress.wire import Wire

    shapes = [parameter.shape for parameter in _net().parameters()]
    wire = Wire(dist.new_group())
    compressor = load_compressor({"fp32": "none"}.get(name, name))(
        parts_of(shapes), torch.float32, torch.device("cpu")
    )
    flat = torch.rand(compressor.numel)
    compressor.average(flat, wire)
    return lambda: compressor.average(flat, wire)


def _profile(context: Any, asked: argparse.Namespace) -> dict[str, Any]:
    """Profile and link of ranks that share cores as asked, or their median step alone."""
    import dataclasses

    from torch.nn.parallel import DistributedDataParallel

    from muster.pillars.comm.layout import capped_layout
    from muster.pillars.comm.link_probe import measure_link
    from muster.pillars.comm.reducer import size_limits
    from muster.pillars.comm.step_profile import StepRecorder

    replica = DistributedDataParallel(_net(), gradient_as_bucket_view=True, bucket_cap_mb=1.0)  # type: ignore[arg-type]
    step = _trained(context, asked, replica)
    for _ in range(3):
        step()
    link = measure_link() if asked.part == "profile" else None
    recorder = StepRecorder(replica)
    times = []
    for _ in range(asked.rounds):
        begin = time.perf_counter()
        recorder.begin()
        step()
        times.append(time.perf_counter() - begin)
    recorder.stop()
    profile = recorder.profile(None)
    assert profile is not None
    slowest = _slowest({"step": statistics.median(times)})["step"]
    return {
        "step_s": slowest,
        "profile": dataclasses.asdict(profile),
        "ends": capped_layout(profile.bytes, size_limits(replica)),
        "link": link.to_json() if link else None,
    }


if __name__ == "__main__":
    main()
