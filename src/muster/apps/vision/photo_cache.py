"""Decoded photographs in a memory-mapped cache, so that a training sample is a slice and not a JPEG decoder.

One folder for each distinct set of photographs, named by a BLAKE2b digest of their names and contents, below
``$XDG_CACHE_HOME/muster/photographs`` (``~/.cache/muster/photographs``)::

    <key>/index.json     format, and the name, height, width and offset of every photograph
    <key>/hr.npy         uint8 [total], all photographs [height, width, 3] one after the other
    <key>/lr-x2.npy      the same at low resolution, of each photograph cropped to a multiple of the scale
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from muster.apps.vision.cache_folder import built, cache_root, flat_array, mapped, to_disk, writing
from muster.apps.vision.photographs import read_photograph
from muster.apps.vision.resize import bicubic_downscale, crop_to_multiple
from muster.errors import DataError

# Part of the key: raise it when decoding or the layout changes, and old folders are no longer looked at.
_FORMAT: Final = 1
_KIND: Final = "photographs"
_WHAT: Final = "decoded photographs"


@dataclass(frozen=True)
class _Entry:
    name: str
    height: int
    width: int
    offset: int


@dataclass(frozen=True)
class CachedPhotograph:
    """A photograph and its low resolution, both views of memory-mapped files.

    Arguments:
        name: unique in its set.
        hr: uint8 [scale · h, scale · w, 3].
        lr: uint8 [h, w, 3].
    """

    name: str
    hr: npt.NDArray[np.uint8]
    lr: npt.NDArray[np.uint8]


class PhotoCache(Sequence[CachedPhotograph]):
    """The photographs of one set at one scale, in order of name; built on first use, then only mapped.

    Arguments:
        paths: the file of each photograph by name.
        scale: how much smaller the low resolution is.
        root: where the caches live; below the user's cache by default.

    Raises:
        DataError: a photograph cannot be used (named), or the cache cannot be written.
    """

    def __init__(self, paths: Mapping[str, Path], scale: int, root: Path | None = None) -> None:
        self.scale = scale
        self.folder = (root or cache_root(_KIND)) / content_key(paths)
        self._entries = _read_index(self.folder)
        if self._entries is None:
            with writing(self.folder, _WHAT):
                _build(self.folder, paths)
            self._entries = _read_index(self.folder)
        low = self.folder / f"lr-x{scale}.npy"
        if not low.is_file():
            with writing(self.folder, _WHAT):
                _build_low_resolution(low, mapped(self.folder / "hr.npy"), self._index(), scale)
        self._open()

    def _open(self) -> None:
        entries = self._index()
        self._hr, self._lr = mapped(self.folder / "hr.npy"), mapped(self.folder / f"lr-x{self.scale}.npy")
        sizes = [(e.height // self.scale) * (e.width // self.scale) * 3 for e in entries]
        self._low_offsets = [0, *itertools.accumulate(sizes)]
        total = sum(e.height * e.width * 3 for e in entries)
        if self._hr.size != total or self._lr.size != self._low_offsets[-1]:
            raise DataError(f"{self.folder}: the cache of decoded photographs is damaged; remove that folder")

    def __getstate__(self) -> dict[str, Any]:
        """For loader processes: they map the files again; a pickled memory map would carry all pixels."""
        return {"folder": self.folder, "scale": self.scale, "_entries": self._entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._index())

    def __getitem__(self, index: int) -> CachedPhotograph:  # type: ignore[override]
        entry = self._index()[index]
        hr = crop_to_multiple(_slice(self._hr, entry.offset, entry.height, entry.width), self.scale)
        height, width = hr.shape[0] // self.scale, hr.shape[1] // self.scale
        lr = _slice(self._lr, self._low_offsets[index], height, width)
        return CachedPhotograph(entry.name, hr, lr)

    def _index(self) -> list[_Entry]:
        if self._entries is None:
            raise DataError(f"{self.folder}: the cache vanished while it was made; run again")
        return self._entries


def content_key(paths: Mapping[str, Path]) -> str:
    """The digest of a set of photographs: 32 hexadecimal digits, from names and contents alone.

    Raises:
        DataError: a file cannot be read; names it.
    """
    digest = hashlib.blake2b(f"muster photographs {_FORMAT}".encode(), digest_size=16)
    for name in sorted(paths):
        try:
            with paths[name].open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b)
        except OSError as error:
            raise DataError(f"{paths[name]}: it cannot be read ({error.strerror})") from error
        digest.update(json.dumps(name).encode() + content.digest())
    return digest.hexdigest()


def _build(folder: Path, paths: Mapping[str, Path]) -> None:
    with built(folder, witness="index.json") as draft:
        entries: list[_Entry] = []
        with flat_array(draft / "hr.npy") as file:
            offset = 0
            for name in sorted(paths):
                pixels = read_photograph(paths[name])
                entries.append(_Entry(name, pixels.shape[0], pixels.shape[1], offset))
                offset += file.write(pixels.tobytes())
        index = {"format": _FORMAT, "photographs": [asdict(entry) for entry in entries]}
        with (draft / "index.json").open("w", encoding="utf-8") as text:
            json.dump(index, text)
            to_disk(text)


def _build_low_resolution(path: Path, hr: npt.NDArray[np.uint8], entries: list[_Entry], scale: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        with flat_array(draft) as file:
            for entry in entries:
                pixels = crop_to_multiple(_slice(hr, entry.offset, entry.height, entry.width), scale)
                file.write(bicubic_downscale(pixels, scale).tobytes())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _slice(flat: npt.NDArray[np.uint8], offset: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return flat[offset : offset + height * width * 3].reshape(height, width, 3)


def _read_index(folder: Path) -> list[_Entry] | None:
    try:
        content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return [_Entry(**entry) for entry in content["photographs"]]
