"""The peaks of every rank of a gang while all ranks of a machine compute at once: they share its memory and its clock."""

from __future__ import annotations

import socket
from typing import Any

import torch
import torch.distributed as dist

from muster.pillars.compute import peak_cache
from muster.pillars.compute.peak_measurement import (
    OUTDONE,
    Measured,
    machine_key,
    measure,
    recall,
    short_product,
)
from muster.pillars.compute.roofline import Peaks


def gang_peaks(
    precision: str, device: torch.device, group: dist.ProcessGroup | None, *, seconds: float = 0.1
) -> list[Peaks]:
    """Each rank's peaks in one precision, in order of rank; all ranks of ``group`` call it together.

    Taken from the cache of each machine if every machine has one that holds (see `machine_peaks`), else measured by all
    ranks at once, in about a second. The ranks of one machine are given their mean.

    Arguments:
        precision: ``fp64``, ``fp32``, ``bf16`` or ``fp16``.
        device: of this rank.
        group: of CPU tensors.
        seconds: for each kernel.
    """
    host = socket.gethostname()
    hosts: list[str] = _of_all(host, group)
    first = hosts.index(host) == dist.get_rank(group)
    key = machine_key(device, hosts.count(host), (precision,))
    known = recall(key, (precision,)) if first else None
    by_host = dict(pair for pair in _of_all((host, known), group) if pair[1] is not None)
    if by_host.keys() == set(hosts):
        # The ranks of a machine slow each other down, so what may refute its peaks is measured at once too.
        dist.barrier(group)
        now = _of_all((host, short_product(precision, device) * _share(key)), group)
        if any(
            sum(flops for other, flops in now if other == where) / hosts.count(where)
            > OUTDONE * found.peaks(precision).flops_per_s
            for where, found in by_host.items()
        ):
            by_host = {}
    if by_host.keys() != set(hosts):
        measured = measure(
            (precision,), device, lambda: dist.barrier(group), seconds, ranks=hosts.count(host)
        )
        everyone: list[tuple[str, Measured]] = _of_all((host, measured.scaled(_share(key))), group)
        by_host = {where: _mean([one for other, one in everyone if other == where]) for where in set(hosts)}
        if first:
            peak_cache.keep(key, by_host[host].as_dict())
    return [by_host[where].peaks(precision) for where in hosts]


def _share(key: dict[str, Any]) -> float:
    """What part of the time a rank computes at all: below 1 where ranks times threads are more than the cores."""
    return 1.0 if key["device"] == "cuda" else min(1.0, key["cores"] / (key["ranks"] * key["threads"]))


def _mean(all_of: list[Measured]) -> Measured:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    first = all_of[0]
    return Measured(
        {name: mean([one.gemm_flops_per_s[name] for one in all_of]) for name in first.gemm_flops_per_s},
        {
            name: mean([one.convolution_flops_per_s[name] for one in all_of])
            for name in first.convolution_flops_per_s
        },
        mean([one.copy_bytes_per_s for one in all_of]),
        mean([one.triad_bytes_per_s for one in all_of]),
        mean([one.operator_s for one in all_of]),
        first.measured_utc,
    )


def _of_all(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
