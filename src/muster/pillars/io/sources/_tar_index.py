"""Where the members of a tar lie: read once from its headers, kept in a folder of this machine.

A tar has no table of contents; its headers lie between the members. They are read with Python's `tarfile` through a file that
fetches ranges: larger ones while the headers lie close together, small ones while it hops over large members.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._index_cache import kept_table
from muster.pillars.io.sources._store import Store, StoredFile

_HOP_BYTES, _STRIDE_BYTES = 16_384, 4 << 20
_BLOCK_BYTES = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarMembers:
    """The regular files in a tar, in their order.

    Arguments:
        names: of the members.
        begins: where their data begin in the tar, in bytes, ``int64``.
        sizes: of their data in bytes, ``int64``.
    """

    names: list[str]
    begins: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def tar_members(store: Store, file: StoredFile, folder: Path) -> TarMembers:
    """The members of a tar: as kept in ``folder`` for a file of this address, size and version, else read and kept there.

    A file without a version (the store tells neither entity tag nor time) is read each time.

    Raises:
        DataError: not a tar, a compressed one, or a truncated one.
        OSError: the store failed.
    """
    if not file.version:
        return read_tar_members(store, file)

    def make() -> Any:
        import pyarrow as pa

        members = read_tar_members(store, file)
        return pa.table(
            {"name": pa.array(members.names, pa.string()), "begin": members.begins, "size": members.sizes}
        )

    table = kept_table(f"{store.shown(file.path)}\n{file.size}\n{file.version}", folder, make)
    return TarMembers(table["name"].to_pylist(), table["begin"].to_numpy(), table["size"].to_numpy())


def read_tar_members(store: Store, file: StoredFile) -> TarMembers:
    """The members of a tar, from its headers; raises as `tar_members` does."""
    shown = store.shown(file.path)
    names, begins, sizes = [], [], []
    with _opened(store, file) as stream:
        start = stream.read(6)
        for magic, compression in _COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(
                    f"{shown} is compressed with {compression}, so its members cannot be read singly; decompress it"
                )
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined] # tarfile would keep them all
                    if member.issparse():
                        raise DataError(
                            f"{shown}: member {member.name} is sparse; write the tar without --sparse"
                        )
                    if member.isreg():
                        names.append(member.name)
                        begins.append(member.offset_data)
                        sizes.append(member.size)
                end = int(tar.offset)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise DataError(f"{shown} is not a whole tar: {error}") from error
        # tarfile takes a damaged header for the end, and so would it take the end of a tar that was cut between members.
        stream.seek(end)
        if stream.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise DataError(
                f"{shown} is not a whole tar: at byte {end} of {file.size} there is neither a member nor the end mark"
            )
    return TarMembers(names, np.array(begins, dtype=np.int64), np.array(sizes, dtype=np.int64))


@contextmanager
def _opened(store: Store, file: StoredFile) -> Iterator[BinaryIO]:
    if not store.local:
        yield _RangedFile(store, file)  # type: ignore[misc] # has what tarfile uses of a BinaryIO
        return
    try:
        with open(file.path, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{file.path}: no such file") from None


class _RangedFile(io.RawIOBase):
    """A file in a store, fetched by ranges as it is read forwards."""

    def __init__(self, store: Store, file: StoredFile) -> None:
        self._store, self._file = store, file
        self._at = self._begin = 0
        self._buffer = b""
        self._ahead = 4 * _HOP_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._file.size if size < 0 else min(self._at + size, self._file.size)
        if end <= self._at:
            return b""
        if not (self._begin <= self._at and end <= self._begin + len(self._buffer)):
            self._fetch(end)
        found = self._buffer[self._at - self._begin : end - self._begin]
        self._at = end
        return found

    def _fetch(self, end: int) -> None:
        gap = self._at - (self._begin + len(self._buffer))
        self._ahead = min(2 * self._ahead, _STRIDE_BYTES) if gap <= self._ahead else _HOP_BYTES
        until = min(max(end, self._at + self._ahead), self._file.size)
        self._buffer, self._begin = self._store.read(self._file, self._at, until), self._at
