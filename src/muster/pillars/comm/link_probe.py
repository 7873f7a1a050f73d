"""Measures the link of a process group, in at most about two seconds.

Few messages of each size, medians of them, the slowest rank's median counts; and every decision (how often, up to what size)
is taken on times that all ranks have agreed on, so that all do the same and hold the same `Link` afterwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.distributed as dist

from muster.pillars.comm.link import KINDS, Curve, Link

_SIZES: Final = tuple(1 << power for power in range(10, 25, 2))  # 1 KiB to 16 MiB
_SURELY: Final = 1 << 16  # what latency and noise hide no longer is measured on every link
_REPEATS: Final = 7
_LEAST_REPEATS: Final = 3
_SHARES: Final = {
    "all_reduce": 3.0,
    "all_gather": 1.5,
    "all_to_all": 1.0,
    "reduce_scatter": 1.0,
    "broadcast": 1.0,
}
_TWO_WAY_BYTES: Final = 1 << 18


def measure_link(
    group: dist.ProcessGroup | None = None,
    *,
    device: torch.device | str | None = None,
    kinds: Sequence[str] = KINDS,
    budget_s: float = 2.0,
    sizes: Sequence[int] | None = None,
) -> Link:
    """Measures what collectives cost on ``group`` now. All its ranks must call it together; nothing is cached.

    Arguments:
        group: a process group; by default the default one.
        device: where the tensors are; by default ``cuda`` for NCCL, else ``cpu``.
        kinds: which collectives, of `KINDS`; one that the backend does not have is left out.
        budget_s: about how long it may take; on a slow link the largest sizes are left out and the last piece is continued.
        sizes: rising numbers of bytes to measure at, all of them, whatever time it takes; by default 1 KiB to 16 MiB.

    Raises:
        ValueError: no such kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"no such collective: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    ranks, backend = dist.get_world_size(group), dist.get_backend(group)
    if ranks == 1:
        return Link(1, {}, 0.0, backend)
    where = torch.device(device or ("cuda" if backend == "nccl" else "cpu"))
    probe = _Probe(group, where)
    total = sum(_SHARES[kind] for kind in kinds)
    curves: dict[str, Curve] = {}
    for kind in kinds:
        curve = probe.curve(kind, budget_s * 0.9 * _SHARES[kind] / total, sizes)
        if curve is not None:
            curves[kind] = curve
    return Link(ranks, curves, probe.shared() if sizes is None else 0.0, backend)


class _Probe:
    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group, self._device = group, device
        self._ranks = dist.get_world_size(group)
        self._rank = dist.get_rank(group)
        self._root = dist.get_global_rank(group, 0) if group is not None else 0

    def curve(self, kind: str, budget_s: float, wanted: Sequence[int] | None) -> Curve | None:
        sizes: list[float] = []
        times: list[float] = []
        spent = 0.0
        for size in wanted or _SIZES:
            repeats = _REPEATS
            if times and wanted is None:
                repeats = min(_REPEATS, int((budget_s - spent) / (times[-1] * 4)) - 1)
                if size > _SURELY and repeats < _LEAST_REPEATS:
                    break
            repeats = max(repeats, _LEAST_REPEATS)
            act = self._collective(kind, size)
            if act is None:
                return None
            took = self._median(act, repeats)
            sizes.append(size)
            times.append(took)
            spent += took * (repeats + 1)
        return Curve.fitted(sizes, times)

    def shared(self) -> float:
        """How much of their rate two directions take from each other, seen between the first two ranks; 0 to 1."""
        peer = 1 - self._rank
        inbox = torch.empty(_TWO_WAY_BYTES, dtype=torch.uint8, device=self._device)
        outbox = torch.zeros_like(inbox)
        talks = self._rank < 2

        def to_peer(sends: bool, receives: bool) -> None:
            if not talks:
                return
            other = dist.get_global_rank(self._group, peer) if self._group is not None else peer
            works = []
            if sends:
                works.append(dist.P2POp(dist.isend, outbox, other, self._group))
            if receives:
                works.append(dist.P2POp(dist.irecv, inbox, other, self._group))
            for work in dist.batch_isend_irecv(works):
                work.wait()

        one_way = self._median(lambda: to_peer(self._rank == 0, self._rank == 1), _LEAST_REPEATS + 2)
        both_ways = self._median(lambda: to_peer(True, True), _LEAST_REPEATS + 2)
        return min(max(both_ways / one_way - 1.0, 0.0), 1.0)

    def _collective(self, kind: str, size: int) -> Callable[[], object] | None:
        """One collective of ``size`` bytes as `Link.seconds` counts them, or None if the backend has no such one."""
        count = max(size // 4 // self._ranks, 1) * self._ranks
        full = torch.zeros(count, device=self._device)
        part, chunks = torch.zeros(count // self._ranks, device=self._device), list(full.chunk(self._ranks))
        group = self._group
        if kind == "all_gather":
            wide = list(torch.zeros(self._ranks, count, device=self._device))
            acts: Callable[[], object] = lambda: dist.all_gather(wide, full, group=group)  # noqa: E731
        elif kind == "all_reduce":
            acts = lambda: dist.all_reduce(full, group=group)  # noqa: E731
        elif kind == "reduce_scatter":
            acts = lambda: dist.reduce_scatter(part, chunks, group=group)  # noqa: E731
        elif kind == "all_to_all":
            other = torch.zeros_like(full)
            acts = lambda: dist.all_to_all_single(other, full, group=group)  # noqa: E731
        else:
            acts = lambda: dist.broadcast(full, src=self._root, group=group)  # noqa: E731
        try:
            acts()  # opens connections, and finds out whether the backend can
        except (RuntimeError, NotImplementedError) as error:
            if "not supported" in str(error) or "not implemented" in str(error).lower():
                return None
            raise
        return acts

    def _median(self, act: Callable[[], object], repeats: int) -> float:
        """The slowest rank's median time of ``act``; equal on all ranks."""
        times = []
        for _ in range(repeats):
            dist.barrier(group=self._group)
            self._settle()
            begin = time.perf_counter()
            act()
            self._settle()
            times.append(time.perf_counter() - begin)
        agreed = torch.tensor([statistics.median(times)], dtype=torch.float64, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self._group)
        return float(agreed)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
