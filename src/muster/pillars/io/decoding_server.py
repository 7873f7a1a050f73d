"""A process that forks workers: it has torch imported and no threads, so a fork of it is quick and safe.

`multiprocessing`'s own fork server leaves a folder with a socket behind when its parent is killed, starts a tracker of
named semaphores beside it, and refuses ranks that are daemonic processes. This one has only the socket that it was
given: it ends when the other end is closed, and so do its workers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

from muster.pillars.io.channel import Channel


class DecodingServer:
    """The server, seen from the process that wants workers."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), *sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = sys.argv[2:]; {_START}", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._channel = Channel(ours)
        self._lock = threading.Lock()

    def fork(self, prepared: bytes) -> tuple[int, Channel]:
        """A new worker: its process id and the channel to it.

        Arguments:
            prepared: a pickled `muster.pillars.io.batches.BatchMaker`.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            self._channel.send(prepared, [theirs.fileno()])
            pid, _ = self._channel.receive()
        return pid, Channel(ours)

    def how_it_ended(self, pid: int) -> str:
        """How a worker that has gone came to its end."""
        try:
            with self._lock:
                self._channel.send(pid)
                code, _ = self._channel.receive()
        except (OSError, EOFError):
            return "ended together with the process that started it"
        if code is None:
            return "stopped answering"
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    @property
    def running(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the server; its workers end when their channels are closed."""
        self._channel.socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_servers: dict[int, DecodingServer] = {}


def decoding_server() -> DecodingServer:
    """The server of this process: started when first asked for, ended with the process, for all its loaders."""
    pid = os.getpid()  # a fork of this process needs one of its own
    if pid not in _servers or not _servers[pid].running:
        _servers.clear()
        _servers[pid] = DecodingServer()
        atexit.register(_servers[pid].close)
    return _servers[pid]


_START = "from muster.pillars.io.decoding_server import serve; serve(int(sys.argv[1]))"


def serve(descriptor: int) -> None:
    """Forks workers until the socket is closed."""
    import torch.utils.data  # noqa: F401  # before the forks, so that they share it

    from muster.pillars.io.decoding_worker import work

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; its end is ours
    channel = Channel(socket.socket(fileno=descriptor))
    codes: dict[int, int | None] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            message, descriptors = channel.receive()
            if isinstance(message, int):
                if codes.get(message) is None:
                    codes[message] = _exit_code(message)
                channel.send(codes[message])
                continue
            end = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    channel.socket.close()
                    work(end, message, threads=1)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            end.close()
            channel.send(pid)


def _exit_code(pid: int) -> int | None:
    """The exit code of a child that is about to end or has; minus the signal that killed it."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None
