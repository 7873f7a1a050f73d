"""``where``: the machines. Changing only this part moves a job from a laptop to a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from muster.spec.section import Section, refuse
from muster.spec.values import Size


class Where(Section):
    """The machines and the share of them that each rank gets."""

    engine: Literal["local", "embedded", "cluster"] = Field(default="embedded", examples=["embedded"])
    """``local`` forks the ranks without Ray, ``embedded`` starts Ray on this machine, ``cluster`` joins a Ray
    cluster."""

    address: str | None = None
    """``host:port`` of the cluster's head node; only with ``engine: cluster``."""

    min_ranks: int | None = Field(default=None, ge=1, le=4096, examples=[1])
    """Continue on as few as so many ranks when machines are lost; by default how.ranks, which waits for them
    instead."""

    max_ranks: int | None = Field(default=None, ge=1, le=4096)
    """Grow to as many as so many ranks while there is room; by default how.ranks."""

    threads_per_rank: int | None = Field(default=None, ge=1, le=4096)
    """Threads of each rank's arithmetic; by default its machine's cores shared out, at least 1."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes CUDA where every rank can have it."""

    cpus_per_rank: float = Field(default=1.0, ge=0, le=4096)
    """Cores that the engine reserves for each rank."""

    gpus_per_rank: float | None = Field(default=None, ge=0, le=64)
    """GPUs that the engine reserves for each rank; by default 1 on CUDA and 0 on the CPU."""

    memory_per_rank: Size | None = None
    """Memory that the engine reserves for each rank, such as ``4GB``; by default none is reserved."""

    runs: Path = Field(default=Path("runs"), strict=False)
    """The folder in which run folders are made; relative to the folder that the command runs in."""

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, address: str | None) -> str | None:
        if address is None:
            return None
        match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", address)
        if match is None or not 0 < int(match[2]) < 65536:
            raise refuse(f"found {address!r}", mend="expected host:port, such as head-node:6379")
        return address

    @model_validator(mode="after")
    def _fits_together(self) -> Where:
        if self.engine == "cluster" and self.address is None:
            raise refuse(
                "engine: cluster has no address",
                mend="set where.address to the head node, as host:6379",
                key="address",
            )
        if self.engine != "cluster" and self.address is not None:
            raise refuse(
                f"engine: {self.engine} joins no cluster",
                mend="remove the key, or set engine: cluster",
                key="address",
            )
        if self.min_ranks is not None and self.max_ranks is not None and self.min_ranks > self.max_ranks:
            raise refuse(
                f"found {self.min_ranks}, more than where.max_ranks ({self.max_ranks})",
                mend=f"expected at most {self.max_ranks}",
                key="min_ranks",
            )
        if self.device == "cpu" and self.gpus_per_rank:
            raise refuse(
                "device: cpu uses no GPU", mend="remove the key, or set device: cuda", key="gpus_per_rank"
            )
        if self.device == "cuda" and self.gpus_per_rank == 0:
            raise refuse(
                "device: cuda without a GPU", mend="set it above 0, or remove the key", key="gpus_per_rank"
            )
        if self.device != "cuda" and not (self.cpus_per_rank or self.gpus_per_rank or self.memory_per_rank):
            raise refuse(
                "ranks that reserve neither a core nor a GPU have no place",
                mend="set it above 0, or set gpus_per_rank",
                key="cpus_per_rank",
            )
        return self
