"""The results of tasks on the disk, each in a file that bears the digest of its bytes.

A result is pickled (protocol 5, by cloudpickle), with the memory of its arrays beside the pickle instead of in it:
written from where it is, and read back as a read-only map of the file. The file has its name only once it is whole, so
a kill at any moment leaves no wrong one; what is read is compared with its name. Nothing is synced: after a power cut a
result may be missing or damaged, which is noticed when it is read, and its task runs again.

Reading a pickle runs what it says. The run folder is the user's own, as the program is: whoever can write there can run code
as the user, here as in any folder that Python imports from.

::

    16 bytes   "muster result 1\\n"
    8          n, the number of buffers; all numbers are little-endian and unsigned
    8          length of the pickle
    n * 16     offset and length of each buffer
               the pickle, then the buffers, each at a multiple of 64 bytes
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import pickle
import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cloudpickle
import numpy as np

from muster.engine.pool.blobs import BlobStore
from muster.errors import BlobDamaged, CannotStore, NotStorable

_MAGIC: Final = b"muster result 1\n"
_HEAD: Final = struct.Struct("<16sQQ")
_PLACE: Final = struct.Struct("<QQ")
_ALIGNED: Final = 64  # a cache line, and the widest vector of today's processors
_MAPPED: Final = 1 << 20  # bytes from which on a file is mapped instead of read
_NAME: Final = re.compile(r"[0-9a-f]{40}")


@contextlib.contextmanager
def storing(what: str, folder: Path) -> Iterator[None]:
    """Says in one sentence what a disk that does not take what is written means.

    Raises:
        CannotStore: instead of `OSError`.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "make room there and start again" if full else "see to that and start again"
        raise CannotStore(
            f"{what} cannot be stored in {folder}: {error.strerror or error}; {mend}: what is finished is kept"
        ) from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A result that is on the disk.

    Arguments:
        name: digest of the file's bytes (BLAKE2b of 20 bytes, in hex).
        size: of the file, in bytes.
    """

    name: str
    size: int


class ResultStore:
    """Values in a folder, by the digest of their bytes.

    May be used by several threads and processes at once. The files are those of a `BlobStore`, which can send them elsewhere.

    Arguments:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storing("results", folder):
            self._blobs = BlobStore(folder, durable=False)

    def put(self, value: Any) -> Stored:
        """Stores a value. Of arrays only those that are not contiguous are copied before they are written.

        Raises:
            NotStorable: it cannot be pickled; says why.
            CannotStore: the disk is full, or fails; nothing was stored.
        """
        content = _pickled(value)
        size = sum(len(piece) for piece in content)
        name = _digest(content)
        path = self._path(name)
        with storing(f"a result of {size:,} bytes", self._folder):
            if not _has_size(path, size):
                _write(path, content)
        return Stored(name, size)

    def get(self, name: str) -> Any:
        """The value of that name. Its arrays are read-only; those of large values are maps of the file.

        Raises:
            BlobDamaged: it is missing, or damaged and has been set aside, or what it is an object of has gone.
        """
        if not _NAME.fullmatch(name):
            raise BlobDamaged(name, "has a name that is none")
        content = self._read(name)
        if _digest([content]) != name:
            self._set_aside(name)
            raise BlobDamaged(name, f"is damaged, and was set aside in {self._folder / 'damaged'}")
        try:
            return _unpickled(content)
        except Exception as error:  # whatever the value's own classes raise, as where one was renamed
            raise BlobDamaged(name, f"cannot be read back ({type(error).__name__}: {error})") from error

    def check(self, name: str) -> bool:
        """Whether a value is there and whole; one that is damaged is set aside."""
        try:
            whole = bool(_NAME.fullmatch(name)) and _digest([self._read(name)]) == name
        except BlobDamaged:
            return False
        if not whole and _NAME.fullmatch(name):
            self._set_aside(name)
        return whole

    def __contains__(self, name: str) -> bool:
        return bool(_NAME.fullmatch(name)) and self._path(name).is_file()

    def remove(self, names: Iterable[str]) -> None:
        """Removes values; those that are not there are no error. Arrays that were read from them stay."""
        self._blobs.remove(names)

    def keep_only(self, names: Sequence[str]) -> int:
        """Removes all others, and what writes that were killed have left; returns how many files."""
        return self._blobs.keep_only(names)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name[2:]

    def _read(self, name: str) -> memoryview:
        try:
            with self._path(name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _MAPPED:
                    return memoryview(file.read())
                return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise BlobDamaged(name, f"is missing from {self._folder}") from None
        except (OSError, ValueError) as error:
            raise BlobDamaged(name, f"cannot be read ({error})") from error

    def _set_aside(self, name: str) -> None:
        aside = self._folder / "damaged"
        with contextlib.suppress(OSError):  # another reader was first, or the disk is read-only
            aside.mkdir(exist_ok=True)
            self._path(name).rename(aside / f"{name}.{secrets.token_hex(4)}")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Gives the memory of every array to the buffers, also where the array is no contiguous piece of it."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.memmap:
            value = value.view(np.ndarray)
        if type(value) is np.ndarray and not value.dtype.hasobject:
            if not (value.flags.c_contiguous or value.flags.f_contiguous):
                value = np.ascontiguousarray(value)
            if value.dtype.kind in "mM":  # NumPy gives the memory of dates away as numbers only
                return np.ndarray.view, (value.view(np.int64), value.dtype)
            return value.__reduce_ex__(5)
        return super().reducer_override(value)


def _pickled(value: Any) -> list[bytes | memoryview]:
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        raw = [buffer.raw() for buffer in buffers]
    except Exception as error:  # whatever the value's own classes raise
        raise NotStorable(
            f"a {type(value).__module__}.{type(value).__qualname__} cannot be stored ({type(error).__name__}: {error}); "
            "return what it is made from"
        ) from error
    pickled = stream.getbuffer()
    place = _HEAD.size + len(raw) * _PLACE.size + len(pickled)
    places, content = [], [pickled]
    for piece in raw:
        padding = -place % _ALIGNED
        places.append(_PLACE.pack(place + padding, len(piece)))
        content += [memoryview(bytes(padding)), piece]
        place += padding + len(piece)
    return [_HEAD.pack(_MAGIC, len(raw), len(pickled)), *places, *content]


def _unpickled(content: memoryview) -> Any:
    magic, count, length = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise ValueError("it was written by another version of Muster")
    start = _HEAD.size + count * _PLACE.size
    places = [_PLACE.unpack_from(content, _HEAD.size + number * _PLACE.size) for number in range(count)]
    return pickle.loads(
        content[start : start + length], buffers=[content[at : at + size] for at, size in places]
    )


def _digest(content: Iterable[bytes | memoryview]) -> str:
    found = hashlib.blake2b(digest_size=20)
    for piece in content:
        found.update(piece)
    return found.hexdigest()


def _has_size(path: Path, size: int) -> bool:
    """Whether the file is there; one that a power cut has made shorter is not."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(path: Path, content: Iterable[bytes | memoryview]) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            file = draft.open("wb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
            file = draft.open("wb", buffering=0)
        with file:
            for piece in content:
                rest = memoryview(piece)
                while rest:  # one call writes 2 GiB at most
                    rest = rest[file.write(rest) :]
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
