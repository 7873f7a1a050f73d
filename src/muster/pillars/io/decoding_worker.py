"""A worker process: makes batches from samples in shared memory, into shared memory.

Parent and worker talk over one socket pair: frames of a pickled message, with the descriptors of shared memory beside it. The
worker ends when the other end of its socket is closed, so it outlives its parent by no more than one batch, however
that ends. Nothing has a name: no semaphore, no shared-memory segment, no file.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import select
import signal
import socket
import threading
import traceback
from typing import Any, NamedTuple

from muster.pillars.io.batches import BatchMaker, Entry, Made
from muster.pillars.io.channel import Channel
from muster.pillars.io.raw_samples import RawSample
from muster.pillars.io.shelf import ShelfFiles, ShelfReader
from muster.pillars.io.staging import StagingArea

_PAGE = mmap.PAGESIZE


class Task(NamedTuple):
    """A batch to be made.

    Arguments:
        number: of the batch.
        entries: its samples.
        words: seed the generators with these.
        free: results whose memory may be used again.
    """

    number: int
    entries: list[Entry]
    words: tuple[int, ...]
    free: list[int]


class Result(NamedTuple):
    """A batch that was made.

    Arguments:
        number: of the batch.
        memory: number of the worker's memory that it lies in; -1: there is no batch.
        size: of that memory in bytes.
        used: bytes of it.
        made: what else there is to say about it.
        error: what went wrong, as an exception and its traceback.
    """

    number: int
    memory: int = -1
    size: int = 0
    used: int = 0
    made: Made | None = None
    error: tuple[BaseException, str] | None = None


class _ResultMemory:
    """Pieces of shared memory for results, used again when the parent has done with them."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._free: set[int] = set()

    def give_back(self, numbers: list[int]) -> None:
        self._free.update(numbers)

    def fill(self, raw: RawSample) -> tuple[int, int, list[int]]:
        """Writes a result; returns the number and size of its memory, and the descriptor if the parent has not got it."""
        fitting = [number for number in self._free if len(self._maps[number]) >= raw.size]
        new: list[int] = []
        if fitting:
            number = min(fitting, key=lambda each: len(self._maps[each]))
            self._free.discard(number)
        else:
            number, size = len(self._maps), max(_PAGE, -(-raw.size // _PAGE) * _PAGE)
            new = [os.memfd_create("muster-batch")]
            os.ftruncate(new[0], size)
            self._maps[number] = mmap.mmap(new[0], size)
        raw.write_into(memoryview(self._maps[number]))
        return number, len(self._maps[number]), new


def work(end: socket.socket, prepared: bytes, threads: int) -> None:
    """Serves tasks until the parent closes the socket.

    Arguments:
        end: the worker's end of the socket pair.
        prepared: a pickled `BatchMaker`.
        threads: for kernels.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; its end is ours
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, args=(end,), daemon=True).start()
    channel, memory = Channel(end), _ResultMemory()
    with contextlib.suppress(EOFError, OSError):
        maker: BatchMaker = pickle.loads(prepared)
        while True:
            message, descriptors = channel.receive()
            if isinstance(message, Task):
                memory.give_back(message.free)
                _serve(channel, memory, maker, message)
            else:
                maker.areas.append(_mapped(message, descriptors))


def _serve(channel: Channel, memory: _ResultMemory, maker: BatchMaker, task: Task) -> None:
    new: list[int] = []
    try:
        made = maker.make(task.entries, task.words)
        if made.batch is None:
            result = Result(task.number, made=made)
        else:
            raw = RawSample(made.batch)
            made.batch = None
            number, size, new = memory.fill(raw)
            result = Result(task.number, number, size, raw.size, made)
    except Exception as error:
        result = Result(task.number, error=(_picklable(error), traceback.format_exc()))
    channel.send(result, new)
    for descriptor in new:
        os.close(descriptor)


def _mapped(described: Any, descriptors: list[int]) -> ShelfReader | StagingArea:
    if isinstance(described, ShelfFiles):
        data, index = descriptors
        return ShelfReader(ShelfFiles(described.storage, data, index, described.capacity, described.samples))
    return StagingArea(described, descriptors[0])


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.load(io.BytesIO(pickle.dumps(error)))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent(end: socket.socket) -> None:
    """Ends this process when the parent's end of the socket is gone, also in the middle of a batch."""
    poll = select.poll()
    poll.register(end.fileno(), select.POLLRDHUP)
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
