"""The reaper of a run, and the process that reaps when the run's supervisor is killed.

Everything that a run starts is found again by its *mark*, in three ways, since no single one holds: the mark stands
in the environment (Ray's agents overwrite theirs when they change their title), in the path of an open file
below the engine's private folder (a bare rank has none), or in that of an ancestor that is still alive.

Runs as a script, ``python -S _warden.py MARK FOLDER`` with the supervisor at the other end of standard input, on the
standard library alone: it must start in milliseconds and outlive everything else.
"""

import os
import shutil
import signal
import sys
import time

MARK_VARIABLE = "MUSTER_MARK"


def marked_processes(mark: str) -> set[int]:
    """Process ids of everything alive that carries ``mark``, the calling process and its threads excepted."""
    own, needle = os.getpid(), f"{MARK_VARIABLE}={mark}".encode()
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == own:
            continue
        pid = int(entry)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):  # dead, waiting for its parent to ask
                continue
            parents[pid] = int(fields[1])
            with open(f"/proc/{pid}/environ", "rb") as file:
                if needle in file.read().split(b"\0"):
                    marked.add(pid)
                    continue
            if _holds_file_of(pid, f"/muster-{mark}/"):
                marked.add(pid)
        except OSError:  # it ended while we looked, or is another user's
            continue
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in marked and pid not in marked}
        marked |= children
        grown = bool(children)
    return marked


def _holds_file_of(pid: int, part: str) -> bool:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if part in os.readlink(f"/proc/{pid}/fd/{fd}"):
                return True
        except FileNotFoundError:  # closed while we looked
            continue
    return False


def reap(mark: str, *, spare: frozenset[int] = frozenset(), patience_s: float = 20.0) -> int:
    """Kills everything that carries ``mark`` until two looks in a row find nothing.

    Arguments:
        mark: the mark of the run.
        spare: process ids to leave alone.
        patience_s: gives up after this long (a process in uninterruptible sleep cannot be killed).

    Returns:
        How many processes were killed.
    """
    killed: set[int] = set()
    quiet, deadline = 0, time.monotonic() + patience_s
    while quiet < 2 and time.monotonic() < deadline:
        found = marked_processes(mark) - spare
        quiet = 0 if found else quiet + 1
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    return len(killed)


def _watch(mark: str, folder: str) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    while True:
        word = os.read(0, 64)
        if word == b"dismissed":  # an orderly end: the supervisor has reaped by itself
            return
        if not word:
            break
    reap(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _watch(sys.argv[1], sys.argv[2])
