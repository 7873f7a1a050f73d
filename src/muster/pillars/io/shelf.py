"""Samples kept in memory or on a disk, in files without a name.

A shelf is two files: the bytes, one sample after the other, and an index with an entry for each sample of the data set. Both
are anonymous (`memfd_create`, ``O_TMPFILE``), so they are gone with the last process that has them open, however it
dies. Other processes of the machine read a shelf through its file descriptors, memory without a copy; only its
owner writes.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.batches import Place
from muster.pillars.io.plan import StorageClass
from muster.pillars.io.raw_samples import Buffer

# `end` is written last and is never 0 for a sample that is there: an entry is seen whole or not at all.
_ENTRY = np.dtype([("end", "<u8"), ("length", "<u4"), ("checksum", "<u4")])

# The end of a sample that will not be kept after all, so that nobody waits for it.
_REFUSED = np.iinfo(np.uint64).max

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


def checksum(stored: Buffer) -> int:
    """CRC-32, three times as fast here as BLAKE2b and meant for the same: accidents, not adversaries."""
    return zlib.crc32(stored)


@dataclass(frozen=True)
class ShelfFiles:
    """What another process needs to read a shelf.

    Arguments:
        storage: memory or disk.
        data, index: file descriptors.
        capacity: bytes.
        samples: length of the data set.
    """

    storage: StorageClass
    data: int
    index: int
    capacity: int
    samples: int


class ShelfReader:
    """Reads a shelf, one's own or another process's.

    Arguments:
        files: of the shelf; the descriptors are this object's from now on.
    """

    def __init__(self, files: ShelfFiles) -> None:
        self.files = files
        self._index_map = mmap.mmap(files.index, files.samples * _ENTRY.itemsize)
        self._index: npt.NDArray[np.void] = np.frombuffer(self._index_map, dtype=_ENTRY)
        self._end = self._index["end"]
        self._data = (
            mmap.mmap(files.data, files.capacity, prot=mmap.PROT_READ)
            if files.storage is StorageClass.MEMORY and files.capacity
            else None
        )
        self._view = memoryview(self._data) if self._data is not None else None

    def __contains__(self, index: int) -> bool:
        return self._end[index] not in (0, _REFUSED)

    def refuses(self, index: int) -> bool:
        """Whether a sample will not be kept after all."""
        return bool(self._end[index] == _REFUSED)

    def get(self, index: int, *, check: bool) -> memoryview | None:
        """A sample's bytes, from memory without a copy; None if they are not there or not intact.

        Arguments:
            index: of the sample.
            check: compare the checksum; bytes from a disk are always compared.
        """
        end, length, expected = self._index[index].item()
        if end in (0, _REFUSED):
            return None
        if self._view is not None:
            found = self._view[end - length : end]
        else:
            found, check = memoryview(os.pread(self.files.data, length, end - length)), True
        if check and (len(found) != length or checksum(found) != expected):
            return None
        return found

    def read(self, place: Place) -> memoryview | None:
        """The bytes at a place that `where` told; None if they do not have the checksum that they should have."""
        if self._view is not None:
            found = self._view[place.start : place.start + place.length]
        else:
            found = memoryview(os.pread(self.files.data, place.length, place.start))
        intact = place.checksum is None or (len(found) == place.length and checksum(found) == place.checksum)
        return found if intact else None

    def where(self, index: int) -> tuple[int, int, int] | None:
        """Start, length and checksum of a sample in the shelf's data, if it is there."""
        end, length, expected = self._index[index].item()
        return None if end in (0, _REFUSED) else (end - length, length, expected)


class Shelf(ShelfReader):
    """A shelf of this process.

    Arguments:
        capacity: bytes.
        samples: length of the data set.
        folder: keep the bytes on the disk of this folder; None: in memory.

    Attributes:
        bytes_kept: of all samples on the shelf.
        full: whether it has stopped growing before its capacity.

    Raises:
        DataError: nothing can be written in ``folder``.
    """

    def __init__(self, capacity: int, samples: int, folder: str | os.PathLike[str] | None = None) -> None:
        storage = StorageClass.MEMORY if folder is None else StorageClass.DISK
        data = os.memfd_create("muster-samples") if folder is None else _nameless_file(Path(folder))
        if folder is None:
            os.ftruncate(data, capacity)
        index = os.memfd_create("muster-index")
        os.ftruncate(index, samples * _ENTRY.itemsize)
        super().__init__(ShelfFiles(storage, data, index, capacity, samples))
        self._folder = folder
        self._lock = threading.Lock()
        self._reserved = self.bytes_kept = 0
        self.full = False

    def put(self, index: int, stored: Buffer) -> bool:
        """Keeps a sample; False if there is no room (any more), which is said once."""
        length = len(stored)
        with self._lock:
            if index in self:
                return True
            if self.full or self._reserved + length > self.files.capacity:
                return False
            start = self._reserved
            self._reserved += length
        try:
            written = 0
            view = memoryview(stored)
            while written < length:
                written += os.pwrite(self.files.data, view[written:], start + written)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._stop_growing(error)
            return False
        entry = self._index[index]
        entry["length"], entry["checksum"] = length, checksum(stored)
        entry["end"] = start + length
        with self._lock:
            self.bytes_kept += length
        return True

    def forget(self, index: int) -> None:
        """Takes a sample off the shelf; its room is not used again."""
        self._end[index] = 0

    def refuse(self, index: int) -> None:
        """Lets everybody know that a sample will not be kept, because there is no room or because it is corrupt."""
        if index not in self:
            self._end[index] = _REFUSED

    def _stop_growing(self, error: OSError) -> None:
        with self._lock:
            first, self.full = not self.full, True
        if first:
            where = f"the disk cache in {self._folder}" if self._folder is not None else "the memory cache"
            warnings.warn(
                f"{where} stops growing at {self.bytes_kept:,} of {self.files.capacity:,} bytes: {error.strerror}; "
                "what does not fit is read from the store again",
                RuntimeWarning,
                stacklevel=3,
            )


def _nameless_file(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
        descriptor, name = tempfile.mkstemp(dir=folder)  # a file system without O_TMPFILE
        os.unlink(name)
        return descriptor
    except OSError as error:
        raise DataError(
            f"disk cache {folder}: {error.strerror}; give a folder that this process can write in"
        ) from error
