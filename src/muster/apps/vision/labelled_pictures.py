"""Pictures with classes: found in folders or tar archives, looked at, decoded once into a memory-mapped cache.

A data set is a folder with ``train/<class>/*`` and ``test/<class>/*``, or tar archives with such members, plain or
compressed: one file, or a folder of several. What is decoded is kept in a folder named by a BLAKE2b digest of names and
contents, below ``$XDG_CACHE_HOME/muster/pictures`` (``~/.cache/muster/pictures``)::

    <key>/index.json     format, classes, height and width, mean and deviation, labels of both parts
    <key>/train.npy      uint8 [total], all training pictures [height, width, 3] one after the other
    <key>/test.npy       the same of the test pictures
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from muster.apps.vision.cache_folder import built, cache_root, flat_array, mapped, to_disk, writing
from muster.apps.vision.photographs import SUFFIXES, inspect_photograph, read_photograph
from muster.errors import DataError

PARTS: Final = ("train", "test")
ARCHIVES: Final = (".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz", ".txz")

# Part of the key: raise it when decoding or the layout changes, and old folders are no longer looked at.
_FORMAT: Final = 1
_SMALLEST: Final = 4  # pixels of a side that can be halved twice
_KIND: Final = "pictures"
_WHAT: Final = "decoded pictures"
_WANTED: Final = "give a folder with train/<class>/ and test/<class>/, or tar archives with such members"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size and their classes.

    Arguments:
        pixels: uint8 [n, height, width, channels].
        labels: int64 [n], positions in the data set's classes.
    """

    pixels: Pixels
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> Any:
        """For loader processes: they map a file again; a pickled memory map would carry all pixels."""
        base: Any = self.pixels
        while isinstance(base.base, np.ndarray):
            base = base.base
        if not isinstance(base, np.memmap):
            return Pictures, (self.pixels, self.labels)
        return _mapped_again, (Path(str(base.filename)), self.pixels.shape, self.labels)


def _mapped_again(path: Path, shape: tuple[int, ...], labels: npt.NDArray[np.int64]) -> Pictures:
    return Pictures(mapped(path).reshape(shape), labels)


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures to learn from, and others to measure on.

    Arguments:
        classes: their names, in order.
        train, test: the pictures.
        mean, deviation: of all training pixels in 0..1, for each channel.
    """

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        height, width, channels = self.train.pixels.shape[1:]
        return channels, height, width


def channel_statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pictures in 0..1, from exact counts of all levels.

    Arguments:
        pixels: uint8 [n, height, width, channels].

    Returns:
        Both, one number for each channel; a deviation of 0 is given as 1, so that it can be divided by.
    """
    levels, means, deviations = np.arange(256) / 255, [], []
    for channel in range(pixels.shape[-1]):
        share = np.bincount(pixels[..., channel].ravel(), minlength=256) / (pixels.size // pixels.shape[-1])
        mean = float(share @ levels)
        means.append(mean)
        deviations.append(float(np.sqrt(share @ (levels - mean) ** 2)) or 1.0)
    return tuple(means), tuple(deviations)


# ---- what there is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A picture: where it is, its bytes, and what it is for."""

    path: Path
    part: str
    label: str
    content: bytes


@dataclass(frozen=True)
class PictureFiles:
    """A data set on the disk, not decoded; pictures come in order of archive, then of name.

    Arguments:
        path: the folder or the archive.

    Raises:
        DataError: there is nothing of the kind.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise DataError(f"{self.path}: no such folder or archive; {_WANTED}")
        if not self.path.is_dir():
            if not self.path.name.lower().endswith(ARCHIVES):
                raise DataError(f"{self.path}: neither a folder nor a tar archive; {_WANTED}")
        elif not self._unpacked() and not self.archives():
            raise DataError(f"{self.path}: it holds no folder 'train' and no tar archive; {_WANTED}")

    def _unpacked(self) -> bool:
        return (self.path / "train").is_dir()

    def archives(self) -> list[Path]:
        """The archives in order of name; none where the pictures are files of their own."""
        if not self.path.is_dir():
            return [self.path]
        if self._unpacked():
            return []
        return sorted(path for path in self.path.iterdir() if path.name.lower().endswith(ARCHIVES))

    def members(self) -> Iterator[_Member]:
        """All pictures.

        Raises:
            DataError: a file or an archive cannot be read, or a picture lies in no class; names it.
        """
        if self._unpacked():
            yield from self._of_folder()
        for archive in self.archives():
            yield from sorted(pictures_of_archive(archive), key=lambda member: member.path.as_posix())

    def _of_folder(self) -> Iterator[_Member]:
        for path in sorted(self.path.rglob("*"), key=lambda path: path.relative_to(self.path).as_posix()):
            inside = path.relative_to(self.path)
            if place := _place(PurePosixPath(inside.as_posix()), self.path):
                try:
                    yield _Member(path, *place, path.read_bytes())
                except OSError as error:
                    raise DataError(f"{path}: it cannot be read ({error.strerror})") from error

    def key(self) -> str:
        """A digest of the data set, from names and contents alone; archives count as they are."""
        digest = hashlib.blake2b(f"muster pictures {_FORMAT}".encode(), digest_size=16)
        if archives := self.archives():
            for archive in archives:
                try:
                    with archive.open("rb") as file:
                        digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
                except OSError as error:
                    raise DataError(f"{archive}: it cannot be read ({error.strerror})") from error
        else:
            for member in self.members():
                name = member.path.relative_to(self.path).as_posix()
                digest.update(json.dumps(name).encode() + hashlib.blake2b(member.content).digest())
        return digest.hexdigest()


def pictures_of_archive(archive: Path) -> Iterator[_Member]:
    """The pictures of a tar archive in the order in which they are in it.

    Raises:
        DataError: it cannot be read, or a picture lies in no class.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = _place(PurePosixPath(member.name), archive) if member.isfile() else None
                file = tar.extractfile(member) if place else None
                if place and file is not None:
                    yield _Member(archive / member.name, *place, file.read())
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{archive}: it cannot be read as a tar archive ({error}); copy it again") from error


def _place(name: PurePosixPath, whole: Path) -> tuple[str, str] | None:
    """Part and class of a picture, by its path in the data set; None for what is no picture."""
    if not name.name.lower().endswith(SUFFIXES) or any(part.startswith(".") for part in name.parts):
        return None
    part = next((each for each in name.parts[:-1] if each in PARTS), None)
    if part is None:
        return None
    after = name.parts[name.parts.index(part) + 1 :]
    if len(after) < 2:
        raise DataError(f"{whole / name}: it lies in no class; move it to {part}/<class>/")
    return part, after[0]


# ---- looked at, decoded ---------------------------------------------------------------------------------------------


def check_pictures(files: PictureFiles, size: int | None = None) -> None:
    """Looks at every picture without decoding it, unless all have been decoded before.

    Arguments:
        files: the data set.
        size: as of `read_pictures`.

    Raises:
        DataError: as `read_pictures`, as far as that can be seen without decoding.
    """
    if (_folder(files, size) / "index.json").is_file():
        return
    seen = _Seen(files.path)
    for member in files.members():
        found = inspect_photograph(member.path, content=member.content)
        seen.add(member, (found.height, found.width) if size is None else (size, size))
    seen.check()


def read_pictures(files: PictureFiles, size: int | None = None) -> LabelledPictures:
    """A data set, decoded on first use and then only mapped.

    Arguments:
        files: the data set.
        size: scale every picture so that its shorter side has as many pixels, and cut out the middle square; None:
            all are of one size already.

    Raises:
        DataError: a picture cannot be read or has another size than the first; a class has no pictures, or is in one
            part alone; the cache cannot be written. Names what it is.
    """
    folder = _folder(files, size)
    if not (folder / "index.json").is_file():
        with writing(folder, _WHAT):
            _build(folder, files, size)
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        labels = {part: np.array(index["labels"][part], dtype=np.int64) for part in PARTS}
        train, test = (
            Pictures(
                mapped(folder / f"{part}.npy").reshape(len(labels[part]), index["height"], index["width"], 3),
                labels[part],
            )
            for part in PARTS
        )
        return LabelledPictures(
            tuple(index["classes"]), train, test, tuple(index["mean"]), tuple(index["deviation"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: the cache of {_WHAT} is damaged ({error}); remove that folder") from error


def _folder(files: PictureFiles, size: int | None) -> Path:
    return cache_root(_KIND) / (files.key() + ("" if size is None else f"-{size}"))


class _Seen:
    """What has been found so far: that all has one size, and every class is in both parts."""

    def __init__(self, whole: Path) -> None:
        self.whole = whole
        self.size: tuple[int, int] | None = None
        self.first: Path | None = None
        self.labels: dict[str, list[str]] = {part: [] for part in PARTS}

    def add(self, member: _Member, size: tuple[int, int]) -> None:
        if self.size is None:
            self.size, self.first = size, member.path
        if min(size) < _SMALLEST:
            raise DataError(
                f"{member.path}: {size[1]}x{size[0]} pixels are too few; give at least {_SMALLEST} on each side"
            )
        if size != self.size:
            raise DataError(
                f"{member.path}: it has {size[1]}x{size[0]} pixels where {self.first} has {self.size[1]}x{self.size[0]}; "
                "give pictures of one size, or say in what.size to what size to bring them"
            )
        self.labels[member.part].append(member.label)

    def check(self) -> list[str]:
        """The classes in order of name."""
        train, test = (set(self.labels[part]) for part in PARTS)
        for part, found in (("train", train), ("test", test)):
            if not found:
                raise DataError(f"{self.whole}: it holds no pictures in {part}/; {_WANTED}")
        if unknown := sorted(test - train):
            raise DataError(
                f"{self.whole}: test/{unknown[0]} is a class without pictures in train/; add some, or remove it"
            )
        if missing := sorted(train - test):
            raise DataError(
                f"{self.whole}: the class {missing[0]!r} has no pictures in test/; add test/{missing[0]}/ with held-out ones"
            )
        if len(train) < 2:
            raise DataError(f"{self.whole}: all pictures are of one class, {min(train)!r}; give two or more")
        return sorted(train)


def _build(folder: Path, files: PictureFiles, size: int | None) -> None:
    seen = _Seen(files.path)
    with built(folder, witness="index.json") as draft:
        with contextlib.ExitStack() as stack:
            arrays = {part: stack.enter_context(flat_array(draft / f"{part}.npy")) for part in PARTS}
            for member in files.members():
                pixels = read_photograph(member.path, member.content)
                if size is not None:
                    pixels = middle_square(pixels, size)
                seen.add(member, (pixels.shape[0], pixels.shape[1]))
                arrays[member.part].write(pixels.tobytes())
        classes = seen.check()
        assert seen.size is not None  # there are pictures
        height, width = seen.size
        mean, deviation = channel_statistics(mapped(draft / "train.npy").reshape(-1, height, width, 3))
        number = {name: position for position, name in enumerate(classes)}
        index = {
            "format": _FORMAT,
            "classes": classes,
            "height": height,
            "width": width,
            "mean": mean,
            "deviation": deviation,
            "labels": {part: [number[label] for label in seen.labels[part]] for part in PARTS},
        }
        with (draft / "index.json").open("w", encoding="utf-8") as text:
            json.dump(index, text)
            to_disk(text)


def middle_square(pixels: Pixels, size: int) -> Pixels:
    """A picture scaled so that its shorter side has ``size`` pixels, and the square in its middle.

    Arguments:
        pixels: uint8 [height, width, 3].
        size: sides of the result.
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    picture = Image.fromarray(pixels).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(picture)


def archived_pictures(archives: Sequence[Path]) -> Pictures:
    """The pictures of some archives in memory, with neither cache nor parts; labels by order of name of their classes.

    Raises:
        DataError: as `pictures_of_archive`, or a picture cannot be read.
    """
    found = [
        (member.label, read_photograph(member.path, member.content))
        for archive in archives
        for member in pictures_of_archive(archive)
    ]
    number = {name: position for position, name in enumerate(sorted({label for label, _ in found}))}
    return Pictures(
        np.stack([pixels for _, pixels in found]), np.array([number[label] for label, _ in found])
    )
