"""Gangs: N ranks in lockstep with a process group. May import the rest of the engine, spec and errors.

from muster import gang

def pi(context):
    ...                      # context.rank, context.world_size, torch.distributed is ready
results = gang.run(pi, ranks=4)
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muster.engine import hardware, ray_engine
from muster.engine.gang._context import Place, RankContext, RankPlan, Yielded
from muster.engine.gang._launcher import Launcher
from muster.engine.gang._supervision import Limits, Supervision
from muster.engine.processes import MARK_VARIABLE, Warded
from muster.errors import JobError

__all__ = [
    "Engine",
    "Launcher",
    "Limits",
    "Place",
    "RankContext",
    "RankPlan",
    "Supervision",
    "Yielded",
    "engine",
    "run",
]


class Engine:
    """A started engine that gangs can be run on; made by `engine`.

    Arguments:
        kind: `local`, `embedded` or `cluster`.
        session: with Ray; None for `local`.
        preload: as in `engine`.
    """

    def __init__(self, kind: str, session: ray_engine.Session | None, preload: Sequence[str]) -> None:
        self.kind, self.session, self._preload = kind, session, preload

    def launcher(self, *, cpus: float = 1, gpus: float = 0, memory: int = 0) -> Launcher:
        """A launcher of ranks that take that much each (cores, GPUs, bytes)."""
        if self.session is None:
            from muster.engine.gang._local import LocalLauncher

            return LocalLauncher(self._preload)
        from muster.engine.gang._ray import RayLauncher

        return RayLauncher(self.session, cpus=cpus, gpus=gpus, memory=memory)

    def lost(self) -> str | None:
        """A sentence if a daemon of the embedded engine has died, else None."""
        return None if self.session is None else self.session.lost()

    def environment(self) -> dict[str, str]:
        """Variables that ranks are given."""
        return {} if self.session is None else {"HOME": self.session.home}

    def run(
        self,
        function: Callable[[RankContext], Any],
        ranks: int = 2,
        *,
        max_restarts: int = 0,
        min_ranks: int | None = None,
        hang_timeout_s: float | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> list[Any]:
        """Runs ``function`` as a gang on this engine; see `run`."""
        limits = Limits(
            ranks=ranks,
            min_ranks=min_ranks or ranks,
            max_ranks=ranks,
            max_restarts=max_restarts,
            hang_timeout_s=hang_timeout_s,
            threads=threads,
            device=device,
            environment=self.environment(),
        )
        gpus = 1 if device == "cuda" else 0
        return Supervision(self.launcher(gpus=gpus), limits, engine_alive=self.lost).supervise(function)


@contextlib.contextmanager
def engine(
    kind: str = "embedded",
    *,
    cpus: int | None = None,
    address: str | None = None,
    private: tuple[str, Path] | None = None,
    preload: Sequence[str] = (),
) -> Iterator[Engine]:
    """Starts (or joins) an engine for as long as the context lasts.

    Arguments:
        kind: `local` (processes of this machine, no Ray), `embedded` (Ray, on loopback) or `cluster`.
        cpus: logical cores of the embedded engine; by default those of the machine.
        address: ``host:port`` of a cluster's head.
        private: mark and private folder, where a `Warded` is kept already; by default one is made.
        preload: modules that ranks of the local engine have imported before they are forked.

    Raises:
        EngineLost: it could not be started.
        JobError: no such kind.
    """
    if kind == "local":
        yield Engine(kind, None, preload)
    elif kind == "embedded":
        with contextlib.ExitStack() as stack:
            if private is None:
                warded = stack.enter_context(Warded(secrets.token_hex(5)))
                private = warded.mark, warded.folder
            mark, folder = private
            started = ray_engine.embedded(cpus or hardware.cores(), folder, {MARK_VARIABLE: mark})
            yield Engine(kind, stack.enter_context(started), preload)
    elif kind == "cluster" and address:
        with ray_engine.cluster(address, {}) as session:
            yield Engine(kind, session, preload)
    else:
        raise JobError(
            f"no engine {kind!r}", mend="use local, embedded or cluster (with an address)", key="where.engine"
        )


_started = engine  # `run` has an argument of that name


def run(
    function: Callable[[RankContext], Any],
    ranks: int = 2,
    *,
    engine: str = "embedded",
    address: str | None = None,
    max_restarts: int = 0,
    min_ranks: int | None = None,
    hang_timeout_s: float | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> list[Any]:
    """Runs ``function(context)`` on ``ranks`` ranks that share a process group, and returns what each returned.

    Arguments:
        function: any callable; it travels by value (cloudpickle), and so must its result.
        ranks: how many.
        engine: `local`, `embedded` or `cluster`.
        address: of the cluster.
        max_restarts: how often the whole gang is started again after a rank dies, hangs or raises.
        min_ranks: with how few it may go on then; by default all.
        hang_timeout_s: longest silence between two calls of ``context.heartbeat()``; None: no limit.
        threads: kernel threads per rank; by default the cores shared out.
        device: `cpu` (Gloo) or `cuda` (NCCL; one GPU per rank).

    Raises:
        RankFailed: carries the traceback of the rank at fault.
        EngineLost: the engine died or could not start.
    """
    with _started(engine, address=address, cpus=max(ranks, hardware.cores())) as started:
        return started.run(
            function,
            ranks,
            max_restarts=max_restarts,
            min_ranks=min_ranks,
            hang_timeout_s=hang_timeout_s,
            threads=threads,
            device=device,
        )
