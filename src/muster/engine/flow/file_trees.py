"""Files and folders: their digests, copies of them, and one taking the place of another as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from muster.errors import DataError

# A file that changes again within one tick of the file system's clock looks the same; see "racy git" in Git's documentation.
_FINE_TICK_NS: Final = 100_000_000
_COARSE_TICK_NS: Final = 2_000_000_000
_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)


OURS: Final = "muster-"


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path itself: of a link, what it leads to, so that the link stays one."""
    return Path(os.path.realpath(path))


def tree_digest(place: Path, digest: Callable[[Path], str]) -> tuple[str, int]:
    """The digest and size of a file, or of a folder with all in it; links within a folder are kept as links."""
    try:
        status = place.lstat()
        if stat.S_ISREG(status.st_mode):
            return digest(place), status.st_size
        if not stat.S_ISDIR(status.st_mode):
            raise DataError(f"{place} is neither a file nor a folder; tasks can only take those")
        whole, size = hashlib.blake2b(b"directory", digest_size=20), 0
        for entry in sorted(os.scandir(place), key=lambda each: os.fsencode(each.name)):
            if entry.is_symlink():
                kind, found, part = b"link", os.fsencode(os.readlink(entry.path)), 0
            else:
                told, part = tree_digest(Path(entry.path), digest)
                kind, found = b"directory" if entry.is_dir() else b"file", told.encode()
            for word in (kind, os.fsencode(entry.name), found):
                whole.update(len(word).to_bytes(8, "little") + word)
            size += part
    except FileNotFoundError:
        raise DataError(f"{place} is not there; a task is to read it") from None
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or error}") from error
    return whole.hexdigest(), size


def status_of(file: Path) -> str:
    told = file.stat()
    return f"{told.st_size} {told.st_mtime_ns} {told.st_ctime_ns} {told.st_ino} {told.st_dev}"


def file_digest(file: Path) -> tuple[str, str, bool]:
    """Digest and status of a file, and whether a later change of it is sure to change its status.

    Raises:
        DataError: it changes all the time.
    """
    for _ in range(3):
        status = status_of(file)
        began_ns = time.time_ns()
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=20)).hexdigest()  # type: ignore[arg-type, return-value]
        if status_of(file) == status:
            told = file.stat()
            changed_ns = max(told.st_mtime_ns, told.st_ctime_ns)
            coarse = told.st_mtime_ns % 1_000_000_000 == 0 and told.st_ctime_ns % 1_000_000_000 == 0
            return found, status, began_ns - changed_ns > (_COARSE_TICK_NS if coarse else _FINE_TICK_NS)
    raise DataError(f"{file} changes while it is read; start again once nobody writes to it")


# ---- files and folders -----------------------------------------------------------------------------------------------


def copy_tree(source: Path, target: Path, *, link: bool = False) -> None:
    """Copies a file or folder so that the copy may be changed; with `link` its files are the same ones, where that can be."""
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        target.mkdir()
        for each in os.scandir(source):
            copy_tree(Path(each.path), target / each.name, link=link)
    else:
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(source, target)
                return
        _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    """Within the kernel, which shares the blocks on file systems that can (Btrfs, XFS, NFS 4.2); else byte by byte."""
    executable = source.stat().st_mode & 0o111
    with source.open("rb") as read, target.open("xb") as written:
        try:
            while os.copy_file_range(read.fileno(), written.fileno(), 1 << 30):
                pass
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                raise
            read.seek(0)
            written.seek(0)
            written.truncate()
            shutil.copyfileobj(read, written, 1 << 20)
    if executable:
        mode = target.stat().st_mode
        target.chmod(mode | (mode & 0o444) >> 2)


def make_read_only(place: Path) -> None:
    """Makes all files read-only. Folders stay writable to their owner, who could not move or remove them otherwise."""
    for file in _files(place):
        file.chmod(file.stat().st_mode & 0o555)


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    for folder, _, names in os.walk(place):
        yield from (path for name in names if not (path := Path(folder, name)).is_symlink())


def sync(place: Path) -> None:
    for file in _files(place):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def remove_tree(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def swap(draft: Path, place: Path) -> None:
    """Puts the draft in its place; what was there is at the draft's path then, or gone."""
    if not (place.is_dir() or draft.is_dir()) or not place.exists():
        draft.rename(place)
    elif not _exchange(draft, place):
        # Without the exchange a kill between the two renames leaves the old one beside its place, where `restore` finds it.
        old = place.with_name(f".{place.name}.{OURS}old")
        place.rename(old)
        draft.rename(place)
        remove_tree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot."""
    try:
        call: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library before glibc 2.28 or musl 1.2.4
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def restore(place: Path) -> None:
    """Puts back what a kill between the two renames of `swap` has left beside its place."""
    old = place.with_name(f".{place.name}.{OURS}old")
    if not place.exists() and old.exists():
        old.rename(place)


def clear_drafts(place: Path) -> None:
    """Removes drafts that a kill has left beside a path."""
    if place.parent.is_dir():
        for left in place.parent.glob(f".{glob.escape(place.name)}.{OURS}*"):
            remove_tree(left)
