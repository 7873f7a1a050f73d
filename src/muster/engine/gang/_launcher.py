"""What a launcher is: starts the processes of a gang and says how they fare."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muster.engine.gang._context import Place, RankPlan
from muster.engine.gang._rank import Outcome
from muster.errors import EngineLost


class RoomLost(EngineLost):
    """There was room for the ranks a moment ago, and there is not any more."""


@dataclass
class RankState:
    """How one rank fares.

    Arguments:
        outcome: how it ended, or None while it runs.
        died: what is known of its process's death without an outcome, or None.
        beat: when its last heartbeat came (monotonic seconds).
        seen: when its end was noticed (monotonic seconds).
        beating: whether it has sent any heartbeat yet.
    """

    outcome: Outcome | None = None
    died: str | None = None
    beat: float = 0.0
    seen: float = 0.0
    beating: bool = False

    @property
    def ended(self) -> bool:
        return self.outcome is not None or self.died is not None

    def beat_now(self) -> None:
        self.beat, self.beating = time.monotonic(), True


class Launcher(ABC):
    """Starts and watches the processes of one gang at a time.

    Implementations are final: `local` forks processes on this machine, `ray` places actors. They move bytes and report; every
    decision is the supervision's.
    """

    #: Whether each rank's process sees only its own GPUs, so that its first one is device 0.
    isolates_gpus = False

    def __init__(self) -> None:
        #: Polled by a rank that runs in this very process, where nothing else can tell it to stop.
        self.stop_asked: Callable[[], str | None] = lambda: None

    @abstractmethod
    def room_for(self, ranks: int) -> int:
        """How many ranks, at most ``ranks``, could be placed now."""

    def capacity(self) -> int | None:
        """How many ranks the machines there are could hold, were nothing else on them; None: no bound."""
        return None

    @abstractmethod
    def place(self, ranks: int) -> Sequence[Place]:
        """Reserves processes for that many ranks and says where each is.

        Raises:
            RoomLost: they could not be placed in time.
            EngineLost: their processes did not start.
        """

    @abstractmethod
    def start(self, plans: Sequence[RankPlan], function: bytes) -> None:
        """Starts the ranks; ``function`` is a cloudpickle of ``fn(context)``."""

    @abstractmethod
    def poll(self) -> Sequence[RankState]:
        """The state of every rank, in order; returns within about 50 ms."""

    @abstractmethod
    def ask_to_stop(self, reason: str) -> None:
        """Asks every rank to save and yield."""

    @abstractmethod
    def kill(self) -> None:
        """Ends every rank at once and waits until they are gone."""
