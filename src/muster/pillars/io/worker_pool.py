"""Worker processes that make batches, seen from the process that uses them."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import selectors
import socket
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import cloudpickle

from muster.errors import MusterError
from muster.pillars.io.batches import BatchMaker, Entry, Made
from muster.pillars.io.decoding_worker import Channel, Result, Task, work
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

    def __init__(self, process: Any, channel: Channel) -> None:
        self.process, self.channel = process, channel
        self.busy = 0
        self.sending = threading.Lock()
        self.free: list[int] = []
        self.maps: dict[int, mmap.mmap] = {}

    def give_back(self, memory: int) -> None:
        """Nobody looks at that result any more."""
        self.free.append(memory)


class WorkerPool:
    """Some worker processes; each has its own copy of the data set.

    Arguments:
        workers: how many.
        maker: what each of them does.
        holdings: what they read.

    Attributes:
        listener: who is told of results; what comes while there is none is dropped.
    """

    def __init__(self, workers: int, maker: BatchMaker, holdings: Holdings) -> None:
        self.listener: Listener | None = None
        self._closed = False
        self._lock = threading.Lock()
        # By value: what is defined in a script or a notebook arrives too, and no script runs a second time.
        prepared = cloudpickle.dumps(maker)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.utils.data", "muster.pillars.io.decoding_worker"])
        self._workers = [self._started(context, prepared) for _ in range(workers)]
        for area, descriptors in holdings.shared():
            described = area.capacity if isinstance(area, StagingArea) else area
            for worker in self._workers:
                worker.channel.send(described, descriptors)
        threading.Thread(target=self._collect, daemon=True, name="muster-io-collect").start()

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [worker.process.pid for worker in self._workers]

    def make(self, number: int, entries: list[Entry], epoch: int, words: tuple[int, ...]) -> None:
        """Gives a batch to the worker that has least to do."""
        with self._lock:
            worker = min(self._workers, key=lambda each: each.busy)
            worker.busy += 1
            free, worker.free = worker.free, []
        try:
            with worker.sending:
                worker.channel.send(Task(number, entries, epoch, words, free))
        except OSError:
            if not self._closed:
                self._lost(worker)

    def close(self) -> None:
        """Ends the workers."""
        self._closed = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.channel.socket.shutdown(socket.SHUT_RDWR)
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _started(self, context: Any, prepared: bytes) -> _Worker:
        ours, theirs = socket.socketpair()
        process = context.Process(target=work, args=(theirs, prepared, 1), name="muster-io-decode")
        with _without_main(), _not_daemonic():
            process.start()
        # It ends with our end of the socket, so nobody need wait for it at exit.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        theirs.close()
        return _Worker(process, Channel(ours))

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
        worker.process.join(1)
        code = worker.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        error = MusterError(
            f"a worker process of the loader (process {worker.process.pid}) {how}; "
            "if the system killed it for want of memory, take fewer workers or less memory_bytes"
        )
        if self.listener is not None:
            self.listener.failed(None, error)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides ``__main__`` while a process starts, so that it does not run the script again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _not_daemonic() -> Iterator[None]:
    """Lets a daemonic process (a rank of a local gang) have children: these end with it of their own accord."""
    process = multiprocessing.current_process()
    daemonic = process.daemon
    if daemonic:
        process.daemon = False
    try:
        yield
    finally:
        if daemonic:
            process.daemon = True
