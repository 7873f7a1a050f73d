"""What can be known to fail before anything is started: the application's data and this machine."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from pathlib import Path
from typing import Final

from muster.errors import JobError
from muster.spec import machine
from muster.spec.applications import load_application
from muster.spec.job import Job
from muster.spec.platforms import platform_check
from muster.spec.pool_how import PoolHow

_CONNECT_TIMEOUT_S: Final = 3.0


def preflight(job: Job) -> list[str]:
    """Refuses a job that cannot run here; starts nothing, and connects only to a cluster's address.

    Errors name the key alone; inside `muster.spec.located` they name file and line too.

    Returns:
        Warnings: what will work, but not as well as it might.

    Raises:
        RefusedInput: this platform, the application's data or this machine does not fit the job.
    """
    platform_check()
    _check_runs_folder(job.where.runs)
    application = load_application(job.what.app)(job.what)
    if isinstance(job.how, PoolHow):
        application.check(job.how.local.batch)
        return _check_workers(job.how)
    application.check(job.how.batch)
    if job.where.engine == "cluster":
        _check_address(job.where.address or "")
        return []  # its machines are known when the engine has joined it
    _check_gpus(job)
    return _check_cores_and_memory(job)


def _check_runs_folder(folder: Path) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise JobError(f"{existing} is not a folder", mend="name a folder for the runs", key="where.runs")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise JobError(
            f"{existing} cannot be written", mend="name a folder that you may write", key="where.runs"
        )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise JobError(
            f"no cluster answers at {address} ({reason})",
            mend="start its head node there (`ray start --head`) or give its address",
            key="where.address",
        ) from error


def _check_gpus(job: Job) -> None:
    if job.where.device != "cuda":
        return
    found = machine.nvidia_gpus()
    if found == 0:
        raise JobError(
            "this machine shows no NVIDIA GPU", mend="set where.device to cpu or auto", key="where.device"
        )
    if importlib.metadata.version("torch").endswith("+cpu"):
        raise JobError(
            "the installed torch is built without CUDA",
            mend="install a CUDA build of torch",
            key="where.device",
        )
    per_rank = 1.0 if job.where.gpus_per_rank is None else job.where.gpus_per_rank
    if per_rank * job.how.ranks > found:
        raise JobError(
            f"{job.how.ranks} ranks with {per_rank:g} GPU each need more than the {found} of this machine",
            mend=f"expected at most {int(found / per_rank)} ranks, or fewer where.gpus_per_rank",
            key="how.ranks",
        )


def _check_workers(how: PoolHow) -> list[str]:
    workers, cores = how.workers, machine.cores()
    if workers <= cores:
        return []
    paced = "" if how.pace is None else f", and may not keep up a pace of {how.pace:g} samples/s"
    return [f"{workers} workers share {cores} core{'s' * (cores > 1)}{paced}"]


def _check_cores_and_memory(job: Job) -> list[str]:
    ranks, cores = job.how.ranks, machine.cores()
    slots = max(cores, ranks)  # one machine takes more ranks than cores, at one slot each
    if job.where.engine == "embedded" and job.where.cpus_per_rank * ranks > slots:
        raise JobError(
            f"{ranks} ranks with {job.where.cpus_per_rank:g} cores each do not fit on this machine's {cores}",
            mend=f"expected at most {slots / ranks:g}",
            key="where.cpus_per_rank",
        )
    if (memory := job.where.memory_per_rank) is not None and memory.bytes * ranks > machine.memory_bytes():
        raise JobError(
            f"{ranks} ranks with {memory} each need more than the {machine.memory_bytes() / 1e9:.1f} GB of here",
            mend="set less, or fewer how.ranks",
            key="where.memory_per_rank",
        )
    warnings = []
    if ranks > cores:
        warnings.append(
            f"{ranks} ranks share {cores} core{'s' * (cores > 1)}: they run with one thread each, and slowly"
        )
    if (threads := job.where.threads_per_rank) is not None and threads * ranks > max(cores, ranks):
        warnings.append(f"{ranks} ranks with {threads} threads each share {cores} core{'s' * (cores > 1)}")
    return warnings
