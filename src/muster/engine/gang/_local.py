"""Ranks as processes on this machine, without Ray; one rank alone runs in the calling process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle

from muster.engine.gang._context import Place, RankPlan
from muster.engine.gang._launcher import Launcher, RankState
from muster.engine.gang._rank import Outcome, run_rank, this_place


class LocalLauncher(Launcher):
    """Forks ranks from a server process that has torch imported already, so that a gang starts in a fraction of a second.

    Arguments:
        preload: modules to import in the server process beside torch.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        super().__init__()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "torch.distributed", "muster.engine.gang", *preload])
        self._processes: list[Any] = []
        self._lines: list[multiprocessing.connection.Connection] = []
        self._states: list[RankState] = []

    def room_for(self, ranks: int) -> int:
        return ranks

    def place(self, ranks: int) -> Sequence[Place]:
        return [this_place()] * ranks

    def start(self, plans: Sequence[RankPlan], function: bytes) -> None:
        self._processes, self._lines, self._states = [], [], []
        if len(plans) == 1:
            self._run_here(plans[0], function)
            return
        for plan in plans:
            ours, theirs = self._context.Pipe()
            # Not a daemon: such a process may have no children, and a loader's workers are a rank's children.
            process = self._context.Process(target=_rank_main, args=(plan, function, theirs))
            with _without_main():
                process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)
            self._states.append(RankState(beat=time.monotonic()))

    def _run_here(self, plan: RankPlan, function: bytes) -> None:
        """One rank alone needs no process of its own, and a debugger reaches it here."""
        here = dataclasses.replace(plan, log=None)
        outcome = run_rank(
            here, cloudpickle.loads(function), _SameProcessLine(self.stop_asked), own_process=False
        )
        self._states = [RankState(outcome, seen=time.monotonic())]

    def poll(self) -> Sequence[RankState]:
        open_lines = [line for line in self._lines if not line.closed]
        if open_lines:
            multiprocessing.connection.wait(open_lines, timeout=0.05)
        if not self._processes:
            return self._states
        for line, process, state in zip(self._lines, self._processes, self._states, strict=True):
            self._drain(line, state)
            if not state.ended and not process.is_alive():
                self._drain(line, state)
                if not state.ended:
                    state.died, state.seen = _how_it_died(process.exitcode), time.monotonic()
        return self._states

    def ask_to_stop(self, reason: str) -> None:
        for line in self._lines:
            if not line.closed:
                try:
                    line.send(reason)
                except (BrokenPipeError, ConnectionResetError):  # that rank has just ended
                    continue

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for line in self._lines:
            line.close()

    @staticmethod
    def _drain(line: multiprocessing.connection.Connection, state: RankState) -> None:
        try:
            while not line.closed and line.poll():
                message = line.recv()
                state.beat_now()
                if isinstance(message, bytes):
                    state.outcome, state.seen = cloudpickle.loads(message), time.monotonic()
        except (EOFError, ConnectionResetError):
            line.close()


class _PipeLine:
    """A rank's end of the pipe to its launcher."""

    def __init__(self, connection: multiprocessing.connection.Connection) -> None:
        self._connection = connection

    def beat(self) -> None:
        self._connection.send(None)

    def asked_to_stop(self) -> str | None:
        return self._connection.recv() if self._connection.poll() else None


class _SameProcessLine:
    """The line of a rank that runs in the launching process."""

    def __init__(self, stop_asked: Callable[[], str | None]) -> None:
        self.asked_to_stop = stop_asked

    def beat(self) -> None:
        """Nobody could act on a hang of the process that would have to."""


def _rank_main(plan: RankPlan, function: bytes, connection: multiprocessing.connection.Connection) -> None:
    outcome = run_rank(plan, cloudpickle.loads(function), _PipeLine(connection))
    connection.send(_packed(outcome))
    connection.close()


def _packed(outcome: Outcome) -> bytes:
    try:
        return cloudpickle.dumps(outcome)
    except Exception as error:
        return cloudpickle.dumps(
            Outcome(
                "raised",
                None,
                f"the rank's result cannot be sent back: {error}",
                "",
                False,
                outcome.when_unix_s,
            )
        )


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code}"
    return f"exited with code {exit_code}"


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides ``__main__`` while a process starts: what it runs arrives by value, and running a script again would be wrong."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
