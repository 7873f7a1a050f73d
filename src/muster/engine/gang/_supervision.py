"""Starts a gang, watches it, and starts it again: the same code whatever launches the processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from muster.engine.gang._context import Place, RankPlan
from muster.engine.gang._launcher import Launcher, RankState, RoomLost
from muster.engine.gang._rank import this_place
from muster.engine.run_folder import EventLog, RunFolder
from muster.errors import EngineLost, JobError, Preempted, RankFailed, Stopped

SETTLE_S = 1.0  # after a first failure, how long to wait for others, to find the one at fault
ECHO_S = 20.0  # the same where all errors so far echo another rank's end, and a whole node's takes Ray long to notice
JOIN_S = 60.0  # what a rank may take at least to import torch and to join, which no heartbeat can interrupt
GROW_EVERY_S = 5.0
PLACEMENTS = 5  # how often ranks are placed anew when there is less room than it seemed


@dataclass
class Limits:
    """What a gang may do without asking.

    Arguments:
        ranks: how many ranks are wanted.
        min_ranks: with how few it may go on.
        max_ranks: to how many it may grow where there is room.
        max_restarts: how many failures are forgiven.
        hang_timeout_s: longest time between two heartbeats of a rank; None: never.
        threads: kernel threads per rank; None: the cores shared out.
        device: `cpu` or `cuda`.
        resource_patience_s: how long to wait for `min_ranks` before giving up.
        environment: variables that ranks are given.
        folder: where ranks of one machine meet; a folder that is removed with the run, so that a kill leaves nothing.
    """

    ranks: int
    min_ranks: int
    max_ranks: int
    max_restarts: int = 0
    hang_timeout_s: float | None = None
    threads: int | None = None
    device: str = "cpu"
    resource_patience_s: float = 120.0
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Supervision:
    """Runs one function as a gang until it has returned on every rank.

    Arguments:
        launcher: starts the processes.
        limits: what it may do.
        run: a run folder to keep the books in, or None.
        stop_asked: polled; a reason (`preempted`, `stopped`) once somebody wants the gang to save and stop.
        engine_alive: polled; a sentence once the engine has lost a part it cannot do without.
    """

    def __init__(
        self,
        launcher: Launcher,
        limits: Limits,
        *,
        run: RunFolder | None = None,
        stop_asked: Callable[[], str | None] = lambda: None,
        engine_alive: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._launcher, self._limits, self._run = launcher, limits, run
        self._stop_asked, self._engine_alive = stop_asked, engine_alive
        launcher.stop_asked = stop_asked
        state = run.state() if run else {}
        self._attempt = int(state.get("attempt", 0))
        self._restarts = int(state.get("restarts", 0))
        self._epoch = float(state.get("epoch_unix_s", time.time()))
        self._log: EventLog | None = None

    def supervise(self, function: Callable[[Any], Any]) -> list[Any]:
        """Returns what ``function`` returned on each rank, in order.

        Raises:
            MusterError: one that a rank raised itself: no restart would mend it.
            RankFailed: a rank failed and no restart was left; carries that rank's own traceback.
            Stopped, Preempted: the ranks saved and yielded, as they were asked to.
            EngineLost: the engine died, or has no room for `min_ranks`.
            JobError: the cluster could not hold `min_ranks` even if it were idle; nothing has been started.
        """
        payload = cloudpickle.dumps(function)
        if self._restarts == 0:
            self._check_capacity()
        while True:
            if self._run is not None:
                self._log = EventLog(self._run, "supervisor", self._attempt)
            try:
                result = self._one_life(self._place(), payload)
            finally:
                self._launcher.kill()
            if result is not None:
                return result
            self._attempt += 1

    # ---- one life of the gang -----------------------------------------------------------------------------------

    def _one_life(self, places: Sequence[Place], payload: bytes) -> list[Any] | None:
        """Results, or None if the gang is to be started again."""
        world = len(places)
        if self._run is not None:
            self._run.update(attempt=self._attempt, world_size=world, restarts=self._restarts)
        with tempfile.TemporaryDirectory(prefix="muster-rendezvous-", dir=self._limits.folder) as folder:
            self._launcher.start(self._plans(places, Path(folder)), payload)
            self._event("ranks_started", world_size=world, hosts=sorted({place.host for place in places}))
            return self._watch(world)

    def _watch(self, world: int) -> list[Any] | None:
        asked: str | None = None
        next_look = time.monotonic() + GROW_EVERY_S
        while True:
            states = self._launcher.poll()
            lost = self._engine_alive()
            if lost is not None:
                raise EngineLost(lost)
            failed = self._first_failure(states)
            if failed is not None:
                self._forgive(states, failed)
                return None
            if all(state.ended for state in states):
                return self._after_end(states)
            if asked in (None, "grow") and (wanted := self._stop_asked()) is not None:
                asked = wanted
                self._launcher.ask_to_stop(asked)
            if asked is None and world < self._limits.max_ranks and time.monotonic() > next_look:
                next_look = time.monotonic() + GROW_EVERY_S
                if self._launcher.room_for(self._limits.max_ranks) > world:
                    asked = "grow"
                    self._launcher.ask_to_stop(asked)

    def _after_end(self, states: Sequence[RankState]) -> list[Any] | None:
        outcomes = [state.outcome for state in states]
        reasons = {outcome.value for outcome in outcomes if outcome is not None and outcome.kind == "yielded"}
        if not reasons:
            return [outcome.value for outcome in outcomes if outcome is not None]
        if "preempted" in reasons:
            self._event("preempted")
            raise Preempted("preempted after saving a checkpoint; `muster resume` continues the run")
        if "stopped" in reasons:
            self._event("stopped")
            raise Stopped("stopped after saving a checkpoint; `muster resume` continues the run")
        self._event("grown", room_for=self._launcher.room_for(self._limits.max_ranks))
        return None

    def _first_failure(self, states: Sequence[RankState]) -> int | None:
        """A rank that has failed or hangs, or None."""
        now = time.monotonic()
        for rank, state in enumerate(states):
            if state.died is not None or (
                state.outcome is not None and state.outcome.kind in ("raised", "refused")
            ):
                return rank
        limit = self._limits.hang_timeout_s
        if limit is not None:
            silent = [
                (state.beat, rank)
                for rank, state in enumerate(states)
                if not state.ended and now - state.beat > (limit if state.beating else max(limit, JOIN_S))
            ]
            if silent:
                return min(silent)[1]
        return None

    def _forgive(self, states: Sequence[RankState], first: int) -> None:
        """Finds the rank at fault, and forgives or raises."""
        states = self._settle(states)
        for state in states:
            if state.outcome is not None and state.outcome.kind == "refused":
                raise state.outcome.value
        rank = _at_fault(states, first)
        state = states[rank]
        if state.outcome is not None:
            kind, what, text = "rank_failed", f"raised {state.outcome.error}", state.outcome.traceback
        elif state.died is not None:
            kind, what, text = "rank_lost", f"died ({state.died})", ""
        else:
            kind, text = "rank_hung", ""
            what = f"sent no heartbeat for {time.monotonic() - state.beat:.0f} s"
        self._event(kind, rank=rank, what=what, traceback=text)
        if self._restarts >= self._limits.max_restarts:
            forgiven = f" after {self._restarts} restarts" if self._restarts else ""
            raise RankFailed(f"rank {rank} {what}{forgiven}", rank=rank, traceback=text)
        self._restarts += 1
        self._event(
            "restart", number=self._restarts, of=self._limits.max_restarts, because=f"rank {rank} {what}"
        )

    def _settle(self, states: Sequence[RankState]) -> Sequence[RankState]:
        """Gives the other ranks time to fail too; ends at once when all have ended."""
        began = time.monotonic()
        while not all(state.ended for state in states):
            echo = all(state.outcome.in_collective for state in states if state.outcome is not None)
            only_echo = echo and not any(state.died for state in states) and any(s.ended for s in states)
            if time.monotonic() - began > (ECHO_S if only_echo else SETTLE_S):
                break
            states = self._launcher.poll()
        return states

    # ---- how many, where, told what ---------------------------------------------------------------------------------

    def _check_capacity(self) -> None:
        """Refuses a gang that the cluster could not hold; one that has lost machines since waits for them instead."""
        capacity, least, wanted = self._launcher.capacity(), self._limits.min_ranks, self._limits.ranks
        if capacity is not None and capacity < least:
            raise JobError(
                f"the cluster has room for {capacity} ranks, and the job wants {wanted}, at least {least}",
                mend="add machines to it, or lower how.ranks or where.min_ranks",
                key="how.ranks",
            )

    def _place(self) -> Sequence[Place]:
        """Places for as many ranks as there is room for, chosen again when the room goes while they are placed."""
        for _ in range(PLACEMENTS):
            world = self._choose_world()
            try:
                places = self._launcher.place(world)
            except RoomLost as error:
                lost = error
                continue
            if world < self._limits.ranks:
                self._event("shrunk", world_size=world, wanted=self._limits.ranks)
            return places
        raise lost

    def _choose_world(self) -> int:
        """As many ranks as there is room for, waiting a while for the wanted number, longer for the least."""
        start = time.monotonic()
        wanted, least = self._limits.ranks, self._limits.min_ranks
        while True:
            room = self._launcher.room_for(self._limits.max_ranks)
            waited = time.monotonic() - start
            if room >= wanted or (room >= least and waited > min(5.0, self._limits.resource_patience_s)):
                return room
            if waited > self._limits.resource_patience_s:
                raise EngineLost(
                    f"room for {room} ranks only, and where.min_ranks is {least}; "
                    "add machines or lower how.ranks and where.min_ranks"
                )
            lost = self._engine_alive()
            if lost is not None:
                raise EngineLost(lost)
            if self._stop_asked() is not None:
                raise Stopped("stopped while waiting for machines; `muster resume` continues the run")
            time.sleep(0.5)

    def _plans(self, places: Sequence[Place], folder: Path) -> list[RankPlan]:
        here = this_place()
        alone = {place.machine for place in places} == {here.machine}
        rendezvous = f"file://{folder}/store" if alone else f"tcp://{places[0].address}:{places[0].port}"
        per_machine = {
            machine: sum(place.machine == machine for place in places)
            for machine in {p.machine for p in places}
        }
        seen: dict[str, int] = {}
        plans = []
        for rank, place in enumerate(places):
            local_rank = seen.get(place.machine, 0)
            seen[place.machine] = local_rank + 1
            run = self._run
            plans.append(
                RankPlan(
                    rank=rank,
                    world_size=len(places),
                    leader=local_rank == 0,
                    attempt=self._attempt,
                    address=place.address,
                    rendezvous=rendezvous,
                    threads=self._limits.threads or max(1, place.cores // per_machine[place.machine]),
                    device=self._limits.device,
                    cuda_index=0 if self._launcher.isolates_gpus else local_rank,
                    epoch_unix_s=self._epoch,
                    machine=here.machine,
                    shift_s=time.time() - self._epoch - time.perf_counter(),
                    timeout_s=self._limits.hang_timeout_s or 1800.0,
                    run=str(run.path) if run else None,
                    log=str(run.path / "logs" / f"rank-{rank:05d}.log") if run else None,
                    environment=self._limits.environment | ({"GLOO_SOCKET_IFNAME": "lo"} if alone else {}),
                )
            )
        return plans

    def _event(self, kind: str, **detail: Any) -> None:
        if self._log is not None:
            self._log(kind, **detail)


def _at_fault(states: Sequence[RankState], first: int) -> int:
    """The rank whose failure caused the others': a death first, then an error outside collectives, then the earliest."""

    def order(rank: int) -> tuple[int, float]:
        state = states[rank]
        if state.died is not None:
            return 0, state.seen
        if state.outcome is not None and state.outcome.kind == "raised":
            return (2 if state.outcome.in_collective else 1), state.outcome.when_unix_s
        return (3 if rank == first else 4), state.beat

    return min(range(len(states)), key=order)
