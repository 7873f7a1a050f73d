"""The peaks of every rank of a gang while all ranks of a machine compute at once: they share its memory and its clock rate."""

from __future__ import annotations

import socket
from typing import Any

import torch
import torch.distributed as dist

from muster.pillars.compute import peak_cache
from muster.pillars.compute.machine_peaks import Measured, machine_key, measure, outdone, recall
from muster.pillars.compute.roofline import Peaks


def gang_peaks(
    precision: str, device: torch.device, group: dist.ProcessGroup | None, *, seconds: float = 0.1
) -> list[Peaks]:
    """Each rank's peaks in one precision, in order of rank; all ranks of ``group`` call it together.

    Taken from the cache of each machine if every machine has one that holds (see
    `muster.pillars.compute.machine_peaks.machine_peaks`), else measured by all ranks at once, in about a second. The ranks of one machine
    are given their mean.

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
    if known is not None and outdone(known, precision, device):
        known = None
    by_host = {
        where: found for where, found in _of_all((host, known) if first else (host, None), group) if found
    }
    if by_host.keys() < set(hosts):
        measured = measure((precision,), device, lambda: dist.barrier(group), seconds)
        by_host = {}
        everyone: list[tuple[str, Measured]] = _of_all((host, measured), group)
        for where in set(hosts):
            by_host[where] = _mean([one for other, one in everyone if other == where])
        if first:
            peak_cache.keep(key, by_host[host].as_dict())
    return [by_host[where].peaks(precision) for where in hosts]


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
