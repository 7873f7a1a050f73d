"""A folder of files, one sample each."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._decoders import IMAGE_EXTENSIONS, Decode, decoder_for, refuse_unsafe
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store, StoredFile


class Folder(Source):
    """The files below a folder; those of class sub-folders are labelled as torchvision's ``ImageFolder`` labels them.

    With labels, a class is a folder directly below the root, classes are numbered in sorted order, a sample is
    ``(value, label)``, and the order is by class, then by the path of the file's folder, then by its name; files
    directly in the root are refused. Without, a sample is the value alone and the order is by folder and name. Names
    are compared character by character.

    Over HTTP the folder's pages of links are followed, and each file's size is asked for with a HEAD request (32 at a
    time); other stores list sizes themselves.

    Arguments:
        url: of the folder.
        pattern: shell pattern that the path below the root must match, such as ``train/*/*.png``; ``*`` crosses slashes.
        extensions: which files count, upper and lower case alike; None for all.
        decode: a function of a file's bytes, or such functions by extension; see `muster.pillars.io.sources.decode_image` and
            the others. The default goes by extension, images to RGB.
        labels: whether class sub-folders give labels; None to find out: they do if no file lies directly in the root.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no such folder, no files, a class without files, files both in the root and in sub-folders, a pickle.
        MissingExtra: the store needs a package that is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        pattern: str = "*",
        extensions: Sequence[str] | None = IMAGE_EXTENSIONS,
        decode: Decode = None,
        labels: bool | None = None,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._store = Store(url, options, timeout_s)
        self._decode_option = decode
        where = self._store.shown(self._store.root)
        files, folders = self._store.find()
        wanted = None if extensions is None else {each.lower().lstrip(".") for each in extensions}
        found: dict[str, int | None] = {
            path[len(self._store.root) + 1 :]: size
            for path, size in files.items()
            if wanted is None or _extension(path) in wanted
        }
        found = {name: size for name, size in found.items() if fnmatch.fnmatchcase(name, pattern)}
        if not found:
            kinds = "" if wanted is None else f" with extension {', '.join(sorted(wanted))}"
            raise DataError(f"{where}: no files{kinds} that match {pattern!r}")
        refuse_unsafe(map(_extension, found), decode, where)

        in_root = [name for name in found if "/" not in name]
        if labels is None:
            labels = len(in_root) < len(found)
        if labels and in_root:
            raise DataError(
                f"{where}: {in_root[0]} is in no class folder, other files are; pass labels=False, or a pattern"
            )
        self.names: list[str] = sorted(found, key=lambda name: _order(name, labelled=bool(labels)))
        """Path of each sample's file below the root."""
        self.classes: list[str] = sorted({name.partition("/")[0] for name in found}) if labels else []
        """Names of the classes, in the order of their labels; empty without labels."""
        self.targets: list[int] = []
        """Label of each sample; empty without labels."""
        if labels:
            below = {folder[len(self._store.root) + 1 :] for folder in folders}
            empty = sorted({folder for folder in below if "/" not in folder} - set(self.classes))
            if empty and pattern == "*":
                raise DataError(
                    f"{where}: class folder {empty[0]} holds no files that count; remove or fill it"
                )
            number = {name: label for label, name in enumerate(self.classes)}
            self.targets = [number[name.partition("/")[0]] for name in self.names]
        self.classes = [unquote(name) if self._quoted else name for name in self.classes]

        unknown = [name for name in self.names if found[name] is None]
        stats = self._store.stat_all(self._path(name) for name in unknown)
        found.update({name: stat.size for name, stat in zip(unknown, stats, strict=True)})
        self._sizes = np.array([found[name] for name in self.names], dtype=np.int64)

    @property
    def _quoted(self) -> bool:
        return self._store.protocol in ("http", "https")

    def _path(self, name: str) -> str:
        return f"{self._store.root}/{name}"

    def sizes(self) -> npt.NDArray[np.int64]:
        """Size of each file in bytes, of shape ``(len(self),)``."""
        return self._sizes

    def place(self, index: int) -> Place:
        """Where sample ``index`` lies."""
        size = int(self._sizes[index])
        return Place(StoredFile(self._path(self.names[index]), size), 0, size)

    def _decode(self, index: int, stored: bytes | memoryview) -> Any:
        if len(stored) != self._sizes[index]:
            raise ValueError(f"{len(stored)} bytes")
        decoder = decoder_for(_extension(self.names[index]), self._decode_option)
        value = decoder(bytes(stored))
        return (value, self.targets[index]) if self.targets else value


def _extension(path: str) -> str:
    """What follows the last dot of the file's name, in lower case."""
    return path.rpartition("/")[2].rpartition(".")[2].lower()


def _order(name: str, *, labelled: bool) -> tuple[str, str, str]:
    folder, _, file = name.rpartition("/")
    return (name.partition("/")[0] if labelled else "", folder, file)
