"""Where the members of a tar lie: read once from its headers, kept in a folder of this machine.

A tar has no table of contents; its headers lie between the members. They are read with Python's `tarfile` through a file that
fetches ranges: larger ones while the headers lie close together, small ones while it hops over large members.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
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


def default_index_folder() -> Path:
    """Where indexes are kept unless told otherwise: ``$XDG_CACHE_HOME/muster/tar-index``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muster" / "tar-index"


def tar_members(store: Store, file: StoredFile, folder: Path) -> TarMembers:
    """The members of a tar: as kept in ``folder`` for a file of this address, size and version, else read and kept there.

    Processes of this machine that want the same index at the same time read the tar once. A file without a version (the store
    tells neither entity tag nor time) is read each time.

    Raises:
        DataError: not a tar, a compressed one, or a truncated one.
        OSError: the store failed.
    """
    if not file.version:
        return read_tar_members(store, file)
    identity = f"{store.shown(file.path)}\n{file.size}\n{file.version}"
    kept = folder / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.parquet"
    members = _load(kept, identity)
    if members is not None:
        return members
    try:
        with _locked(kept.with_suffix(".lock")):
            members = _load(kept, identity)
            if members is None:
                members = read_tar_members(store, file)
                _keep(kept, identity, members)
            return members
    except _NotKept as error:
        warnings.warn(
            f"the index of {store.shown(file.path)} cannot be kept in {folder}: {error}", stacklevel=2
        )
        return error.members or read_tar_members(store, file)


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


class _NotKept(Exception):
    """The index cannot be written; carries it if it was read."""

    def __init__(self, error: OSError, members: TarMembers | None = None) -> None:
        super().__init__(str(error))
        self.members = members


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock among the processes of this machine; it goes with the process that holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise _NotKept(error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep(path: Path, identity: str, members: TarMembers) -> None:
    """Writes the index under a name of its own, then gives it its name, so that no reader meets half of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"name": pa.array(members.names, pa.string()), "begin": members.begins, "size": members.sizes},
        metadata={"tar": identity},
    )
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                pq.write_table(table, file, write_page_checksum=True)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise _NotKept(error, members) from error


def _load(path: Path, identity: str) -> TarMembers | None:
    """A kept index, or None where there is none that is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: Any = pq.read_table(path, page_checksum_verification=True)
        if (table.schema.metadata or {}).get(b"tar") != identity.encode():
            return None
        return TarMembers(
            table["name"].to_pylist(), table["begin"].to_numpy().copy(), table["size"].to_numpy().copy()
        )
    except (OSError, pa.ArrowException, KeyError):  # missing or damaged: read from the tar again
        return None
