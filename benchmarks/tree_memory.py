"""How much memory a command and all processes that it starts take at most."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO


class PeakMemory:
    """Looks at a process and its descendants now and then.

    Memory is PSS: pages that several processes share count once, a part for each (``smaps_rollup``, Linux).

    Arguments:
        pid: of the process.
        every_s: between two looks.
    """

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self.bytes, self.processes = 0, 0
        self._pid, self._every_s = pid, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            family = descendants(self._pid)
            self.processes = max(self.processes, len(family))
            self.bytes = max(self.bytes, sum(map(proportional_set, family)))


def descendants(pid: int) -> list[int]:
    """A process and all that come from it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for each in found:
        found.extend(parents.get(each, ()))
    return found


def proportional_set(pid: int) -> int:
    """PSS of a process, bytes; 0 for one that is gone."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:")), 0)


def output_and_peak(
    command: Sequence[str], *, limit_s: float = 900.0, errors: IO[str] | None = None
) -> tuple[str, float, PeakMemory]:
    """Runs a command; returns what it has printed, how long it took in seconds, and its memory.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired: it failed, or took too long.
    """
    began = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        PeakMemory(process.pid) as memory,
    ):
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return output, time.perf_counter() - began, memory
