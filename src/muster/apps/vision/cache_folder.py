"""Folders of decoded pixels below the user's cache: how they come into being, whoever is killed meanwhile.

A folder or file is complete on disk under another name before it takes its own, so a kill leaves nothing
half done, and processes that build the same one at once do the work twice but disturb nobody.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from muster.errors import DataError

_ABANDONED_AFTER_S: Final = 24 * 3600


def cache_root(kind: str) -> Path:
    """``$XDG_CACHE_HOME/muster/<kind>``, or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "muster" / kind


@contextlib.contextmanager
def built(folder: Path, *, witness: str) -> Iterator[Path]:
    """A new folder to write into; it takes the name ``folder`` when the context ends well.

    Arguments:
        folder: the final name.
        witness: a file that is in every complete one; if it is there already, another process was quicker.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / witness).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Removes what processes that were killed left behind; a live one finishes within a day."""
    for draft in root.glob(".draft-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def flat_array(path: Path) -> Iterator[IO[bytes]]:
    """A new .npy file for uint8 [total], written as a stream; the header is corrected at the end.

    Writing through a memory map instead would end a process with SIGBUS when the disk is full.
    """
    with path.open("wb") as file:
        _write_header(file, 0)
        start = file.tell()
        yield file
        total = file.tell() - start
        file.seek(0)
        _write_header(file, total)
        if file.tell() != start:  # NumPy pads a header so that it has room for a longer first axis
            raise AssertionError("NumPy wrote headers of two lengths")
        to_disk(file)


def _write_header(file: IO[bytes], total: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (total,)}
    np.lib.format.write_array_header_1_0(file, header)


def to_disk(file: IO[bytes] | IO[str]) -> None:
    """Makes sure that what was written to a file outlives a power cut."""
    file.flush()
    os.fsync(file.fileno())


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """An array of a cache, mapped and not read."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Names a cache that cannot be written.

    Raises:
        DataError: with the way out.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the cache of {what} cannot be written ({error.strerror or error}); "
            "make room or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
