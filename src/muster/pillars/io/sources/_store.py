"""Files in a store, read by ranges through fsspec: from threads, after a fork, never half.

fsspec serves asynchronous stores (HTTP, S3) from an event loop in a thread. A forked child has neither the thread nor
a connection of its own, so every process makes its own file systems. Those that a child inherits stay untouched until
it ends: closing them would close sockets, and deregister them from an epoll set, which the parent still uses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from muster.errors import DataError, MissingExtra

_EXTRAS = {
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
}
_VERSION_KEYS = (
    "ETag",
    "etag",
    "checksum",
    "md5Hash",
    "Last-Modified",
    "LastModified",
    "mtime",
    "modified",
    "created",
)
_REQUESTS_AT_ONCE = 32

_connected: dict[tuple[str, str], Any] = {}
_sessions: list[Any] = []
_inherited: list[Any] = []


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it was when it was found.

    Arguments:
        path: as the store's file system knows it.
        size: in bytes.
        version: what changes when the file does (an entity tag, a time of modification), or empty if not known.
    """

    path: str
    size: int
    version: str = ""


class Store:
    """Where files are, and how they are reached; picklable, and usable from any thread and process.

    Arguments:
        url: of a file or a folder: a path, or a URL that fsspec knows.
        options: what fsspec's file system for that protocol takes (``key``, ``secret``, ``endpoint_url``, ``headers``...).
        timeout_s: how long a connection over HTTP or S3 may deliver nothing before the read fails.

    Raises:
        DataError: no such protocol.
        MissingExtra: the protocol needs a package that is not installed.
    """

    def __init__(
        self, url: str | os.PathLike[str], options: dict[str, Any] | None = None, timeout_s: float = 60.0
    ) -> None:
        from fsspec.utils import get_protocol  # type: ignore[import-untyped]

        text = os.fspath(url)
        if "::" in text:
            raise DataError(f"{text}: chained URLs are not read by ranges; give the store's own URL")
        self.protocol: str = get_protocol(text)
        self.options, self.timeout_s = dict(options or {}), timeout_s
        self.root: str = self._filesystem()._strip_protocol(text).rstrip("/")

    @property
    def local(self) -> bool:
        """Whether the files are on this machine's file systems."""
        return self.protocol in ("file", "local")

    def path(self, url: str) -> str:
        """The path of another URL of the same store."""
        return str(self._filesystem()._strip_protocol(url))

    def shown(self, path: str) -> str:
        """A path as messages show it."""
        return path if self.local else str(self._filesystem().unstrip_protocol(path))

    def stat(self, path: str) -> StoredFile:
        """The file at ``path``.

        Raises:
            DataError: there is no such file, or the store does not tell its size.
            OSError: the store failed.
        """
        if self.local:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                raise DataError(f"{path}: no such file") from None
            return StoredFile(path, status.st_size, str(status.st_mtime_ns))
        try:
            info = self._filesystem().info(path)
        except Exception as error:
            cause = error.__cause__ or error  # fsspec's HTTP calls every failure a missing file
            if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
                raise DataError(f"{self.shown(path)}: no such file") from error
            raise store_error(f"{self.shown(path)}: {_reason(cause)}", cause) from error
        return self._stored_file(path, info)

    def _stored_file(self, path: str, info: dict[str, Any]) -> StoredFile:
        if info.get("size") is None:
            raise DataError(
                f"{self.shown(path)}: the store does not tell its size, which reading by ranges needs"
            )
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return StoredFile(path, int(info["size"]), version)

    def stat_all(self, paths: Iterable[str]) -> list[StoredFile]:
        """The files at ``paths``, asked for side by side; raises as `stat` does."""
        wanted = list(paths)
        if self.local or len(wanted) < 2:
            return [self.stat(path) for path in wanted]
        with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(wanted))) as pool:
            return list(pool.map(self.stat, wanted))

    def find(self, path: str | None = None) -> tuple[dict[str, int | None], list[str]]:
        """All files below a folder with their sizes in bytes (None where the listing has none), and all folders.

        Raises:
            DataError: there is no such folder.
            OSError: the store failed.
        """
        root = self.root if path is None else path
        filesystem = self._filesystem()
        try:
            found = filesystem.find(root, detail=True, withdirs=True)
        except FileNotFoundError:
            raise DataError(f"{self.shown(root)}: no such folder") from None
        except Exception as error:
            raise store_error(f"{self.shown(root)}: {_reason(error)}", error) from error
        files, folders = {}, []
        for name, info in found.items():
            if name.rstrip("/") == root:
                continue
            if info.get("type") == "directory":
                folders.append(name.rstrip("/"))
            else:
                files[name] = info.get("size")
        if not found or (not files and not folders and not filesystem.isdir(root)):
            raise DataError(f"{self.shown(root)}: no such folder, or nothing in it")
        return files, folders

    def children(self) -> list[str]:
        """The paths of what lies directly in the root.

        Raises:
            DataError: there is no such folder.
            OSError: the store failed.
        """
        try:
            return [str(path) for path in self._filesystem().ls(self.root, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self.shown(self.root)}: no such folder") from None
        except Exception as error:
            raise store_error(f"{self.shown(self.root)}: {_reason(error)}", error) from error

    def glob(self, pattern: str) -> list[str]:
        """The files whose paths match a shell pattern, in sorted order."""
        return sorted(self._filesystem().glob(pattern))

    def read(self, file: StoredFile, begin: int = 0, end: int | None = None) -> bytes:
        """The bytes ``[begin, end)`` of a file, by one request.

        Raises:
            DataError: the file is not the one that was found: its size, modification time or entity tag is another.
            OSError: the store failed, or gave fewer bytes than it should.
        """
        end = file.size if end is None else end
        if self.local:
            return self._read_local(file, begin, end)
        if begin == end and file.size:
            return b""  # no range is empty
        filesystem = self._filesystem()
        arguments: dict[str, Any] = {}
        if (begin, end) != (0, file.size):  # a file that grew is noticed when the whole is asked for
            arguments = {"start": begin, "end": end}
        if self.protocol in ("http", "https") and file.version.startswith('"'):
            arguments["headers"] = {**self.options.get("headers", {}), "If-Match": file.version}
        try:
            stored = filesystem.cat_file(file.path, **arguments)
        except Exception as error:  # each of fsspec's stores raises errors of its own libraries
            if getattr(error, "status", None) == 412 or self._is_shorter(file, error):
                raise self._changed(file) from error
            where = f"{self.shown(file.path)}, bytes {begin} to {end}"
            raise store_error(f"{where}: {_reason(error)}", error) from error
        if len(stored) != end - begin:
            if self.stat(file.path).size != file.size:
                raise self._changed(file)
            raise OSError(
                f"{self.shown(file.path)}, bytes {begin} to {end}: the store gave {len(stored)} bytes "
                f"where {end - begin} were asked for"
            )
        return bytes(stored)

    def _read_local(self, file: StoredFile, begin: int, end: int) -> bytes:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_size != file.size or file.version not in ("", str(status.st_mtime_ns)):
                raise self._changed(file)
            stored = os.pread(descriptor, end - begin, begin)
            while len(stored) < end - begin:  # Linux reads 2 GiB at most at once
                more = os.pread(descriptor, end - begin - len(stored), begin + len(stored))
                if not more:
                    raise OSError(
                        f"{file.path}, bytes {begin} to {end}: only {len(stored)} bytes could be read"
                    )
                stored += more
            return stored
        finally:
            os.close(descriptor)

    def _is_shorter(self, file: StoredFile, error: BaseException) -> bool:
        """Whether a range could not be had because the file has another size now."""
        if getattr(error, "status", None) != 416 and getattr(error, "errno", None) != errno.EINVAL:
            return False
        return self.stat(file.path).size != file.size

    def _changed(self, file: StoredFile) -> DataError:
        return DataError(
            f"{self.shown(file.path)} has changed since it was opened with {file.size} bytes; open the source anew"
        )

    def _filesystem(self) -> Any:
        """This process's file system for the protocol and options."""
        key = (self.protocol, repr((sorted(self.options.items()), self.timeout_s)))
        return of_this_process(key, self._make_filesystem)

    def _make_filesystem(self) -> Any:
        import fsspec  # type: ignore[import-untyped]

        try:
            kind = fsspec.get_filesystem_class(self.protocol)
        except ImportError as error:
            package, extra = _EXTRAS.get(self.protocol, ("", ""))
            if package:
                raise MissingExtra(package, extra, f"a store at {self.protocol}://") from error
            raise DataError(f"{self.protocol}://: {error}") from error
        except ValueError as error:
            raise DataError(f"{self.protocol}://: fsspec knows no such protocol") from error
        return kind(skip_instance_cache=True, **self.filesystem_options())

    def filesystem_options(self) -> dict[str, Any]:
        """What fsspec's file system is made with: the options given, and the patience."""
        options = dict(self.options)
        if self.protocol in ("http", "https"):
            import aiohttp

            patience = aiohttp.ClientTimeout(
                total=None, sock_connect=self.timeout_s, sock_read=self.timeout_s
            )
            options["client_kwargs"] = {"timeout": patience, **options.get("client_kwargs", {})}
            options.setdefault("get_client", _http_session)
        elif self.protocol in ("s3", "s3a"):
            patience_s = {"connect_timeout": self.timeout_s, "read_timeout": self.timeout_s}
            options["config_kwargs"] = patience_s | options.get("config_kwargs", {})
        return options


def of_this_process(key: tuple[str, str], make: Callable[[], Any]) -> Any:
    """What this process has under a key, by ``make`` the first time: things with connections, which no fork survives."""
    # Kept for good: what a child inherits must never be collected, see the module's text.
    found = _connected.get(key)
    return found if found is not None else _connected.setdefault(key, make())


async def _http_session(**arguments: Any) -> Any:
    import aiohttp

    session = aiohttp.ClientSession(**arguments)
    _sessions.append(session)
    return session


def _leave_inherited_alone() -> None:
    """In a forked child: nothing may close the parent's connections, not even the end of the process."""
    for session in _sessions:
        _inherited.append(session.connector)
        session.detach()
    _sessions.clear()
    _inherited.append(dict(_connected))
    _connected.clear()


os.register_at_fork(after_in_child=_leave_inherited_alone)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def store_error(message: str, error: BaseException) -> OSError:
    """An OSError of the nearest kind; the libraries under fsspec have errors that are none."""
    for kind in (FileNotFoundError, PermissionError, TimeoutError, ConnectionError):
        if isinstance(error, kind):
            return kind(message)
    return OSError(message)
