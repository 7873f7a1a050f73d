"""A store of bytes by their content: what has a name has its bytes, and the name proves it.

Models and updates are cut into chunks of `CHUNK` bytes, each named by its BLAKE2b digest, and a list of those names describes
the whole. A transfer that was cut goes on with the chunks that are missing, and what two models share is kept once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from muster.errors import DataError

CHUNK: Final = 4 << 20
_DIGEST_BYTES: Final = 20
_NAME: Final = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}")


def digest(content: bytes | memoryview) -> str:
    """The name of some bytes: BLAKE2b of 20 bytes, in hex."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A whole as its chunks.

    Arguments:
        size: in bytes.
        chunks: names of its chunks, in order; all but the last hold `CHUNK` bytes.
    """

    size: int
    chunks: tuple[str, ...]

    @classmethod
    def of(cls, content: bytes | memoryview) -> Manifest:
        """Describes some bytes."""
        return cls(len(content), tuple(digest(piece) for piece in pieces(content)))

    @property
    def name(self) -> str:
        """The name of the whole: the digest of its description."""
        return digest(self.to_json().encode())

    def to_json(self) -> str:
        """As JSON, always the same bytes."""
        return json.dumps({"size": self.size, "chunks": self.chunks}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, most_bytes: int) -> Manifest:
        """Reads a description from elsewhere.

        Arguments:
            text: as `to_json` writes it.
            most_bytes: that the whole may have.

        Raises:
            DataError: it is none, or describes more than that.
        """
        try:
            told = json.loads(text)
            size, chunks = told["size"], tuple(told["chunks"])
            right = type(size) is int and size >= 0 and all(isinstance(each, str) for each in chunks)
        except (ValueError, TypeError, KeyError, RecursionError):
            right = False
        if not right or not all(_NAME.fullmatch(each) for each in chunks):
            raise DataError("a manifest is not what it should be: a size and names of chunks")
        if size > most_bytes:
            raise DataError(f"a manifest of {size:,} bytes; at most {most_bytes:,} are taken")
        if len(chunks) != -(-size // CHUNK):
            raise DataError(
                f"a manifest of {size:,} bytes has {len(chunks)} chunks instead of {-(-size // CHUNK)}"
            )
        return cls(size, chunks)


def pieces(content: bytes | memoryview) -> Iterable[memoryview]:
    """Some bytes cut into chunks."""
    view = memoryview(content)
    return (view[start : start + CHUNK] for start in range(0, len(view), CHUNK))


class BlobStore:
    """Bytes in a folder, each in a file that bears its digest.

    A file has its name only once its bytes are on the disk, so a kill at any moment leaves no wrong one; what is read is
    compared with its name.

    Arguments:
        folder: made if it is not there.
        durable: whether bytes are on the disk when `put` returns; a store that is thrown away need not be.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes | memoryview) -> str:
        """Stores some bytes; on the disk when it returns.

        Raises:
            OSError: there is no room, or the disk fails; nothing was stored.
        """
        name = digest(content)
        self._write(name, content)
        return name

    def put_named(self, name: str, content: bytes | memoryview) -> None:
        """Stores bytes that came from elsewhere under the name they came with.

        Raises:
            DataError: they are not the bytes of that name.
            OSError: as `put`.
        """
        if digest(content) != name:
            raise DataError(f"{len(content):,} bytes that came as {name[:12]} are others")
        self._write(name, content)

    def get(self, name: str) -> bytes:
        """The bytes of a name.

        Raises:
            KeyError: they are not there.
            DataError: the file has been damaged; names it.
        """
        path = self._path(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None
        if digest(content) != name:
            raise DataError(f"{path} is damaged: its bytes are not those of its name; remove it")
        return content

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are not there, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self]

    def put_whole(self, content: bytes | memoryview) -> Manifest:
        """Stores some bytes as chunks; who wants them back keeps the manifest."""
        manifest = Manifest.of(content)
        for name, piece in zip(manifest.chunks, pieces(content), strict=True):
            self._write(name, piece)
        return manifest

    def get_whole(self, manifest: Manifest) -> bytes:
        """The bytes that a manifest describes.

        Raises:
            KeyError: a chunk is not there.
            DataError: a chunk has been damaged, or the whole has another size than it should.
        """
        content = b"".join(self.get(name) for name in manifest.chunks)
        if len(content) != manifest.size:
            raise DataError(f"{len(content):,} bytes of chunks instead of {manifest.size:,}")
        return content

    def remove(self, names: Iterable[str]) -> None:
        """Removes some bytes; those that are not there are no error."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def keep_only(self, names: Sequence[str]) -> int:
        """Removes all others, and what an interrupted write has left; returns how many files."""
        kept, removed = set(names), 0
        for path in self._folder.glob("??/*"):
            if path.parent.name + path.name not in kept:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise DataError(f"{name[:60]!r} is no name of a blob")
        return self._folder / name[:2] / name[2:]

    def _write(self, name: str, content: bytes | memoryview) -> None:
        path = self._path(name)
        if path.is_file():
            return
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with draft.open("wb") as file:
                file.write(content)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        if not self._durable:
            return
        for folder in (path.parent, self._folder):  # so that the name is on the disk as well
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
