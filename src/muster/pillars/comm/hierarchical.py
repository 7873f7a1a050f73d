"""Hierarchical all-reduce: within each machine, then between their leaders, then back.

Between machines only one rank per machine communicates, so the slow link carries ``2 (M-1)/M`` times the tensor per machine
instead of per rank (Jia et al., "Highly scalable deep learning training system with mixed-precision", 2018, section 3.3)::

    exchange = Exchange(model.named_parameters(), wire=HierarchicalWire)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from muster.pillars.comm.compress.wire import Wire


def machine_name() -> str:
    """Equal for processes that share a kernel and its loopback; two containers on one kernel are two machines."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}-{os.stat('/proc/self/ns/net').st_ino}"


class HierarchicalWire(Wire):
    """The collectives of an exchange, with all-reduces in two levels; all others as in `Wire`.

    All ranks of the *default* group must make it at the same point, since it makes process groups. The sum is the
    same bits on all ranks, though not those of a flat all-reduce: the order of summation is another.

    Arguments:
        group: the ranks; None for the default group.
        machine: names this rank's machine; ranks with equal names are on one. By default the kernel and network it runs in.

    Attributes:
        machines: the ranks of ``group`` on each machine, the machine of rank 0 first.
        leader: whether this rank is the first on its machine.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, machine: Callable[[], str] = machine_name
    ) -> None:
        super().__init__(group)
        names: list[Any] = [None] * self.world_size
        dist.all_gather_object(names, machine(), group=group)
        by_name: dict[str, list[int]] = {}
        for rank, name in enumerate(names):
            by_name.setdefault(name, []).append(rank)
        self.machines = list(by_name.values())
        mine = by_name[names[self.rank]]
        self.leader = mine[0] == self.rank
        self._near = self._far = None
        self._leader_rank = self._global(mine[0])
        backend = dist.get_backend(group)
        for ranks in self.machines:
            if len(ranks) > 1:
                made = dist.new_group([self._global(rank) for rank in ranks], backend=backend)
                if ranks == mine:
                    self._near = made
        if len(self.machines) > 1:
            made = dist.new_group([self._global(ranks[0]) for ranks in self.machines], backend=backend)
            self._far = made if self.leader else None
        self._near_size = len(mine)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sums ``tensor`` over ranks, in place."""
        size = tensor.numel() * tensor.element_size()
        if self._near is not None:
            dist.reduce(tensor, dst=self._leader_rank, group=self._near)
            self.sent_bytes += 0 if self.leader else size
        if self._far is not None:
            machines = len(self.machines)
            dist.all_reduce(tensor, group=self._far)
            self.sent_bytes += 2 * size * (machines - 1) // machines
        if self._near is not None:
            dist.broadcast(tensor, src=self._leader_rank, group=self._near)
            self.sent_bytes += size * (self._near_size - 1) if self.leader else 0

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)
