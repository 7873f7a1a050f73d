"""Ranks as Ray actors in a placement group."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cloudpickle
import psutil

from muster.engine.gang._context import Place, RankPlan
from muster.engine.gang._launcher import Launcher, RankState, RoomLost
from muster.engine.gang._local import _packed
from muster.engine.gang._rank import run_rank, this_place
from muster.engine.ray_engine import Session
from muster.errors import EngineLost

PULSE_EVERY_S = 0.5


class RayLauncher(Launcher):
    """Places one actor per rank; each sees only the GPUs that it was given.

    Arguments:
        session: a started engine.
        cpus, gpus, memory: what one rank takes (cores, devices, bytes).
        patience_s: how long to wait for a placement.
    """

    isolates_gpus = True

    def __init__(
        self, session: Session, *, cpus: float = 1, gpus: float = 0, memory: int = 0, patience_s: float = 60.0
    ) -> None:
        super().__init__()
        self._session, self._ray = session, session.ray
        self._bundle: dict[str, float] = {"CPU": cpus}
        if gpus:
            self._bundle["GPU"] = gpus
        if memory:
            self._bundle["memory"] = memory
        self._patience_s = patience_s
        self._group: Any = None
        self._actors: list[Any] = []
        self._results: list[Any] = []
        self._pulses: list[Any] = []
        self._states: list[RankState] = []
        self._asked_at = 0.0

    def room_for(self, ranks: int) -> int:
        if self._session.embedded:  # nobody else is on it
            return min(ranks, sum(self._ranks_on(node["Resources"]) for node in self._nodes()))
        from ray._private.state import available_resources_per_node

        free, held = available_resources_per_node(), self._held()
        room = sum(
            held[node["NodeID"]] + self._ranks_on(free.get(node["NodeID"], {})) for node in self._nodes()
        )
        return min(ranks, room)

    def capacity(self) -> int | None:
        if self._session.embedded:
            return None
        return sum(self._ranks_on(node["Resources"]) for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _held(self) -> Counter[str]:
        """How many of this gang's own bundles lie on each node."""
        from ray.util import placement_group_table

        if self._group is None:
            return Counter()
        bundles = placement_group_table(self._group)["bundles_to_node_id"]
        return Counter(node for node in bundles.values() if node)

    def _ranks_on(self, resources: dict[str, float]) -> int:
        return int(min(resources.get(name, 0.0) / amount for name, amount in self._bundle.items() if amount))

    def place(self, ranks: int) -> Sequence[Place]:
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._group = placement_group([self._bundle] * ranks, strategy="PACK")
        deadline = time.monotonic() + self._patience_s
        while not self._group.wait(timeout_seconds=1.0):
            # A node that has died counts as alive until its silence is noticed, which takes Ray some 15 s.
            capacity = self.capacity()
            if time.monotonic() > deadline or (capacity is not None and capacity < ranks):
                self._drop_group()
                raise RoomLost(f"no room for {ranks} ranks of {self._bundle}")
        actor_class = self._ray.remote(_RankActor)
        self._actors = [
            actor_class.options(
                num_cpus=self._bundle["CPU"],
                num_gpus=self._bundle.get("GPU", 0),
                memory=self._bundle.get("memory") or None,
                max_concurrency=2,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index
                ),
            ).remote()
            for index in range(ranks)
        ]
        if self._session.embedded:
            return [this_place()] * ranks
        try:
            return self._ray.get([actor.place.remote() for actor in self._actors], timeout=self._patience_s)
        except Exception as error:
            raise EngineLost(f"the ranks' processes did not start: {error}") from error

    def start(self, plans: Sequence[RankPlan], function: bytes) -> None:
        self._states = [RankState(beat=time.monotonic()) for _ in plans]
        self._results = [
            actor.run.remote(plan, function) for actor, plan in zip(self._actors, plans, strict=True)
        ]
        self._pulses = [None] * len(plans)
        self._asked_at = 0.0

    def poll(self) -> Sequence[RankState]:
        running = [ref for ref, state in zip(self._results, self._states, strict=True) if not state.ended]
        if running:
            self._ray.wait(running, num_returns=1, timeout=0.05, fetch_local=False)
        self._take_pulses()
        for result, state in zip(self._results, self._states, strict=True):
            if not state.ended and self._ray.wait([result], timeout=0, fetch_local=False)[0]:
                state.seen = time.monotonic()
                try:
                    state.outcome = cloudpickle.loads(self._ray.get(result))
                except self._ray.exceptions.RayError as error:
                    state.died = _first_line(error)
        return self._states

    def _take_pulses(self) -> None:
        """Asks each rank every half second when it last made progress; never waits for the answer."""
        now = time.monotonic()
        ask = now - self._asked_at > PULSE_EVERY_S
        if ask:
            self._asked_at = now
        for index, (actor, state) in enumerate(zip(self._actors, self._states, strict=True)):
            if state.ended:
                continue
            pulse = self._pulses[index]
            if pulse is not None and self._ray.wait([pulse], timeout=0)[0]:
                self._pulses[index] = None
                try:
                    age = self._ray.get(pulse)
                except self._ray.exceptions.RayError:  # its end is told by its result
                    continue
                if age is not None:
                    state.beat, state.beating = max(state.beat, now - age), True
            elif pulse is None and ask:
                self._pulses[index] = actor.pulse.remote()

    def ask_to_stop(self, reason: str) -> None:
        for actor in self._actors:
            actor.ask_to_stop.remote(reason)

    def kill(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor, no_restart=True)
        if self._results:
            self._ray.wait(self._results, num_returns=len(self._results), timeout=10.0, fetch_local=False)
        self._actors, self._results = [], []
        self._drop_group()

    def _drop_group(self) -> None:
        from ray.util import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


class _RankActor:
    """Holds one rank; `run` takes one thread, its line to the supervisor the other."""

    def __init__(self) -> None:
        self._line = _SharedLine()

    def place(self) -> Place:
        import ray.util

        return this_place(ray.util.get_node_ip_address())

    def run(self, plan: RankPlan, function: bytes) -> bytes:
        if "GLOO_SOCKET_IFNAME" not in plan.environment:
            # Left alone, Gloo takes the address of the host's name, which is a loopback one in many an /etc/hosts.
            import ray.util

            os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_of(ray.util.get_node_ip_address()))
        return _packed(run_rank(plan, cloudpickle.loads(function), self._line))

    def pulse(self) -> float | None:
        return self._line.age()

    def ask_to_stop(self, reason: str) -> None:
        self._line.reason = reason


class _SharedLine:
    """A line made of memory that both threads of an actor see."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._beat: float | None = None
        self._lock = threading.Lock()

    def beat(self) -> None:
        with self._lock:
            self._beat = time.monotonic()

    def age(self) -> float | None:
        with self._lock:
            return None if self._beat is None else time.monotonic() - self._beat

    def asked_to_stop(self) -> str | None:
        return self.reason


def _interface_of(address: str) -> str:
    """The network interface of this machine that has ``address``."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    raise EngineLost(
        f"no network interface of {socket.gethostname()} has the address {address} of its Ray node"
    )


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."
