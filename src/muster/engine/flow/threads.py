"""Tasks on threads of this process: for work that releases the interpreter's lock (NumPy, Numba with ``nogil``, files)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from muster.engine.flow.executor import Executor, run_task
from muster.errors import TaskRefused

if TYPE_CHECKING:
    from muster.engine.flow.node import Node
    from muster.engine.flow.session import Flow


class Threads(Executor):
    """A number of cores' worth of tasks at once.

    A task that waits for others gives its cores back meanwhile, and another thread takes its place: nested tasks cannot
    starve.

    Arguments:
        workers: cores to fill.

    Raises:
        TaskRefused: fewer than one.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise TaskRefused(f"workers: {workers}; at least 1 is needed")
        self._cores = workers
        self._free = workers
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._ending = False

    def open(self, flow: Flow) -> None:
        super().open(flow)
        self._work = threading.Condition(flow.lock)

    @property
    def cores(self) -> int:
        return self._cores

    def _fits(self, node: Node) -> bool:
        return node.cores <= self._free

    def look(self) -> None:
        with self.flow.lock:
            wanted = min(len(self.flow.graph.ready), self._free)
            if not wanted or self._ending:
                return
            if self._idle:
                self._work.notify(min(wanted, self._idle))
            for _ in range(min(wanted - self._idle, self._cores)):
                thread = threading.Thread(target=self._serve, name=f"muster-{self.flow.name}", daemon=True)
                self._threads.add(thread)
                thread.start()
                self._idle += 1  # it is, until it has a task

    def _serve(self) -> None:
        flow, waiting = self.flow, True
        while True:
            with flow.lock:
                if not waiting:
                    self._idle += 1
                while (node := flow.graph.ready.pop(self._fits)) is None:
                    if self._ending or self._idle > self._cores:
                        self._idle -= 1
                        self._threads.discard(threading.current_thread())
                        return
                    self._work.wait()
                self._idle -= 1
                waiting = False
                values = flow.begin(node)
                if values is None:
                    continue
                self._free -= node.cores
            try:
                run_task(flow, node, values)
            except BaseException:  # the flow has it, and this thread has nobody else to tell
                pass
            del values
            with flow.lock:
                self._free += node.cores
            del node

    def block(self, node: Node) -> None:
        self._free += node.cores
        self.look()

    def unblock(self, node: Node) -> None:
        self._free -= node.cores  # may be below zero for a while: nothing new starts until it is not

    def close(self) -> None:
        with self.flow.lock:
            self._ending = True
            self._work.notify_all()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
