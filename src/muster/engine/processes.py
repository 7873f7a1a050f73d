"""Processes that Muster starts: their mark, their warden, their end."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from muster.engine import _warden
from muster.engine._warden import MARK_VARIABLE, marked_processes, reap

__all__ = ["MARK_VARIABLE", "Warded", "mark_of", "marked_processes", "reap"]


def mark_of(path: str | os.PathLike[str]) -> str:
    """The mark of a run folder; short, since the path of a socket below the private folder has at most 107 bytes."""
    return hashlib.blake2b(os.fsencode(path), digest_size=5).hexdigest()


class Warded:
    """A private folder and a warden for everything that carries ``mark``, for as long as this process lives.

    Leaving the context kills what is left; so does the death of this process, whatever causes it.

    Arguments:
        mark: goes into the environment of everything started below.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.folder = Path(tempfile.gettempdir()) / f"muster-{mark}"
        self._warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Warded:
        reap(self.mark)  # remains of an earlier life of the same run
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        self._start_warden()
        return self

    @property
    def mark_environment(self) -> dict[str, str]:
        """The variable by which everything started below is found again."""
        return {MARK_VARIABLE: self.mark}

    def watch_the_warden(self) -> None:
        """Starts the warden again if something killed it."""
        if self._warden is not None and self._warden.poll() is not None:
            self._start_warden()

    def clear(self) -> int:
        """Kills everything that carries the mark; returns how many processes."""
        return reap(self.mark)

    def __exit__(self, *_: object) -> None:
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        warden, self._warden = self._warden, None
        if warden is not None and warden.poll() is None:
            assert warden.stdin is not None
            warden.stdin.write(b"dismissed")
            warden.stdin.close()
            warden.wait()

    def _start_warden(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != MARK_VARIABLE}
        self._warden = subprocess.Popen(
            [sys.executable, "-S", "-E", _warden.__file__, self.mark, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
