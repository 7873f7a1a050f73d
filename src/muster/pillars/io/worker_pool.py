"""Worker processes that make batches, seen from the process that uses them."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import selectors
import socket
import threading
import weakref
from typing import Any, Protocol

import cloudpickle

from muster.errors import MusterError
from muster.pillars.io.batches import BatchMaker, Entry, Made
from muster.pillars.io.channel import Channel
from muster.pillars.io.decoding_server import decoding_server
from muster.pillars.io.decoding_worker import Result, Task
from muster.pillars.io.holdings import Holdings
from muster.pillars.io.raw_samples import from_raw
from muster.pillars.io.staging import StagingArea


class Listener(Protocol):
    """Who is told, in threads of the pool, what workers have done."""

    def done(self, number: int, made: Made) -> None:
        """A batch was made, or its cached samples were damaged."""

    def failed(self, number: int | None, error: BaseException) -> None:
        """A batch cannot be made; or, without a number, nothing more will come."""


class _Worker:
    """One worker process and the memory that it has sent results in."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid, self.channel = pid, channel
        self.busy = 0
        self.sending = threading.Lock()
        self.free: list[int] = []
        self.maps: dict[int, mmap.mmap] = {}

    def give_back(self, memory: int) -> None:
        """Nobody looks at that result any more."""
        self.free.append(memory)


class WorkerPool:
    """Some worker processes; each has its own copy of the data set, as it is now.

    They start at once and in the background, so that what they import is there when the first batch is wanted; `share`
    gives them what they read.

    Arguments:
        workers: how many.
        maker: what each of them does.

    Attributes:
        listener: who is told of results; what comes while there is none is dropped.
    """

    def __init__(self, workers: int, maker: BatchMaker) -> None:
        self.listener: Listener | None = None
        self.size = workers
        self._closed = False
        self._shared: queue.SimpleQueue[list[tuple[Any, list[int]]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # By value: what is defined in a script or a notebook arrives too, and no script runs a second time.
        prepared = cloudpickle.dumps(maker)
        self._server = decoding_server()
        self._workers: list[_Worker] = []
        self._open = threading.Event()
        # Not here: the samples of the first batches can be fetched while the server still imports torch.
        threading.Thread(
            target=self._run,
            args=(workers, prepared),
            daemon=True,
            name="muster-io-collect",
        ).start()

    def share(self, holdings: Holdings) -> None:
        """Says where samples lie; once, before the first batch."""
        self._shared.put(holdings.shared())

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        self._open.wait()
        return [worker.pid for worker in self._workers]

    def make(self, number: int, entries: list[Entry], words: tuple[int, ...]) -> None:
        """Gives a batch to the worker that has least to do."""
        self._open.wait()
        with self._lock:
            if not self._workers:
                return  # they could not be started, which has been told
            worker = min(self._workers, key=lambda each: each.busy)
            worker.busy += 1
            free, worker.free = worker.free, []
        try:
            with worker.sending:
                worker.channel.send(Task(number, entries, words, free))
        except OSError:
            if not self._closed:
                self._lost(worker)

    def close(self) -> None:
        """Ends the workers."""
        self._closed = True
        self._shared.put(None)
        self._open.wait(30)
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.channel.socket.shutdown(socket.SHUT_RDWR)

    def _run(self, workers: int, prepared: bytes) -> None:
        try:
            self._workers = [_Worker(*self._server.fork(prepared)) for _ in range(workers)]
            areas = self._shared.get()
            if areas is None:  # closed before anything was wanted
                return
            for area, descriptors in areas:
                described = area.capacity if isinstance(area, StagingArea) else area
                for worker in self._workers:
                    worker.channel.send(described, descriptors)
        except (OSError, EOFError) as error:
            self._workers = []
            if self.listener is not None and not self._closed:
                self.listener.failed(
                    None,
                    MusterError(f"worker processes of the loader cannot be started: {error or 'they ended'}"),
                )
            return
        finally:
            self._open.set()
        self._collect()

    def _collect(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.channel.socket, selectors.EVENT_READ, worker)
            while not self._closed:
                for key, _ in selector.select(timeout=1.0):
                    worker = key.data
                    try:
                        result, descriptors = worker.channel.receive()
                    except (EOFError, OSError):
                        if not self._closed:
                            self._lost(worker)
                        return
                    with self._lock:
                        worker.busy -= 1
                    self._take(worker, result, descriptors)

    def _take(self, worker: _Worker, result: Result, descriptors: list[int]) -> None:
        if result.error is not None:
            error, told = result.error
            error.add_note(f"in a worker process of the loader:\n{told}")
            if self.listener is not None:
                self.listener.failed(result.number, error)
            return
        made = result.made
        assert made is not None
        if result.memory >= 0:
            if descriptors:
                worker.maps[result.memory] = mmap.mmap(descriptors[0], result.size)
                os.close(descriptors[0])
            view = memoryview(worker.maps[result.memory])[: result.used]
            # Tensors of the batch keep this very view alive; when the last has gone, the memory is used again.
            weakref.finalize(view, worker.give_back, result.memory).atexit = False
            made.batch = from_raw(view, copy=False)
        if self.listener is not None:
            self.listener.done(result.number, made)

    def _lost(self, worker: _Worker) -> None:
        error = MusterError(
            f"a worker process of the loader (process {worker.pid}) {self._server.how_it_ended(worker.pid)}; "
            "if the system killed it for want of memory, take fewer workers or less memory_bytes"
        )
        if self.listener is not None:
            self.listener.failed(None, error)
