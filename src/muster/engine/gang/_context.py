"""What a function sees of the gang it runs in."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from muster.engine.run_folder import EventLog, RunFolder

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from muster.engine.clock import PillarClock


class Yielded(Exception):
    """A rank has saved its state and gives way, because it was asked to; carries the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Place:
    """Where a rank's process is, and a port that was free there a moment ago.

    Arguments:
        host: its name, for people.
        machine: equal for processes that share a kernel, its clock, a network and a file system.
        address, port: where the other ranks can reach it.
        cores: usable there.
    """

    host: str
    machine: str
    address: str
    port: int
    cores: int


@dataclass(frozen=True)
class RankPlan:
    """Everything a rank is told before it starts.

    Arguments:
        rank, world_size: its place in the gang.
        leader: whether it is the first rank on its machine.
        attempt: how often the run has been started before.
        address: where other ranks can reach this one.
        rendezvous: where the ranks meet, an init method of torch.distributed.
        threads: threads for kernels.
        device: ``cpu`` or ``cuda``.
        cuda_index: which GPU.
        epoch_unix_s: zero of the run-wide clock.
        machine, shift_s: the launching machine and its clock's shift; ranks on it take the shift as it is.
        timeout_s: of a collective.
        run: the run folder, or None.
        log: file for what the rank prints, or None.
        environment: variables to set first.
    """

    rank: int
    world_size: int
    leader: bool
    attempt: int
    address: str
    rendezvous: str
    threads: int
    device: str
    cuda_index: int
    epoch_unix_s: float
    machine: str
    shift_s: float
    timeout_s: float
    run: str | None
    log: str | None
    environment: dict[str, str]


class Line(Protocol):
    """A rank's line to its supervisor."""

    def beat(self) -> None: ...

    def asked_to_stop(self) -> str | None: ...


class RankContext:
    """One rank's view of its gang.

    Attributes:
        rank, world_size: this rank, and how many there are.
        leader: whether this is the first rank on its machine.
        attempt: 0 at the first start of the run, one more at each restart.
        address: of this machine, where ranks on others can reach it.
        device: where to compute.
        clock: the pillar clock.
        control: a Gloo group for small exchanges beside the gradients.
        run: the run folder, or None for a gang without one.
        events: writes to the run's `events`, or None.
    """

    def __init__(
        self,
        plan: RankPlan,
        line: Line,
        *,
        device: torch.device,
        clock: PillarClock,
        control: dist.ProcessGroup | None,
    ) -> None:
        self.rank, self.world_size, self.leader = plan.rank, plan.world_size, plan.leader
        self.attempt, self.address = plan.attempt, plan.address
        self.device, self.clock, self.control = device, clock, control
        self.run = RunFolder(plan.run) if plan.run else None
        self.events = EventLog(self.run, f"rank-{plan.rank:05d}", plan.attempt) if self.run else None
        self.timeout_s = plan.timeout_s
        self._line = line
        self._asked: str | None = None
        self._last_beat = 0.0

    def heartbeat(self) -> None:
        """Tells the supervisor that this rank makes progress; cheap enough for every step."""
        now = time.monotonic()
        if now - self._last_beat > 0.25:
            self._last_beat = now
            self._line.beat()

    @property
    def stop_asked(self) -> str | None:
        """Why this rank should save and yield (`preempted`, `stopped`, `grow`), or None.

        Ranks learn of it at different moments: agree on a step before acting on it.
        """
        if self._asked is None:
            self._asked = self._line.asked_to_stop()
        return self._asked

    def give_way(self, reason: str) -> None:
        """Ends this rank after it has saved its state.

        Raises:
            Yielded: always; let it pass.
        """
        raise Yielded(reason)

    def listen_for_preemption(self) -> None:
        """Lets SIGTERM, as a preempted instance gets it, ask this rank to save and yield."""

        def asked(*_: Any) -> None:
            self._asked = self._asked or "preempted"

        with contextlib.suppress(
            ValueError
        ):  # only a main thread can listen; a Ray actor's ranks run beside it
            signal.signal(signal.SIGTERM, asked)
