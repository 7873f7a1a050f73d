"""WebDataset tars, read at random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._addresses import expand
from muster.pillars.io.sources._decoders import Decode, decoder_for, refuse_unsafe
from muster.pillars.io.sources._index_cache import index_folder as default_folder
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._tar_index import TarMembers, tar_members

_TARS_AT_ONCE = 16


class WebDatasetTar(Source):
    """Samples in tars of the WebDataset convention, each by one range request, in any order.

    A sample is the run of consecutive members with the same key: the member's path up to the first dot of its file
    name. Its value is a dict from what follows that dot, in lower case, to the decoded member, and ``__key__`` to the
    key. As in the webdataset package, members that are no regular files, have no extension, or are called
    ``__like_this__`` do not count. Samples are in the order of the tars given and of the members within.

    The headers of each tar are read once, which for small members is most of the tar; the index is then kept in
    ``index_folder``, and valid as long as the tar's address, size and entity tag (or time of modification) stay.

    The convention: Aizman, Maltby and Breuel 2019, "High Performance I/O For Large Scale Deep Learning", and the
    documentation of the webdataset package.

    Arguments:
        urls: one or several; ``{000..012}`` stands for a sequence and ``*``, ``?`` and ``[...]`` for what matches, sorted.
        decode: a function of a member's bytes, or such functions by extension; ``bytes`` leaves all as they are.
        index_folder: where indexes are kept; `$XDG_CACHE_HOME/muster/tar-index` by default.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no such tar, a compressed or truncated one, one without samples, one in which a key comes back
            after another or has an extension twice, a pickle.
        MissingExtra: the store needs a package that is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        decode: Decode = None,
        index_folder: str | os.PathLike[str] | None = None,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        folder = default_folder("tar-index") if index_folder is None else Path(index_folder)
        self._store, paths = expand(urls, options, timeout_s)
        self._decode_option = decode
        self._files = self._store.stat_all(paths)
        with ThreadPoolExecutor(min(_TARS_AT_ONCE, len(paths))) as pool:
            indexes = list(pool.map(lambda file: tar_members(self._store, file, folder), self._files))

        self.keys: list[str] = []
        """Key of each sample."""
        tars: list[int] = []
        firsts: list[int] = []
        suffixes: list[str] = []
        begins: list[npt.NDArray[np.int64]] = []
        sizes: list[npt.NDArray[np.int64]] = []
        counted = 0
        for number, (file, members) in enumerate(zip(self._files, indexes, strict=True)):
            where = self._store.shown(file.path)
            kept, keys, starts, found = _grouped(members, where)
            if not keys:
                raise DataError(f"{where} holds no samples: no member is called KEY.EXTENSION")
            refuse_unsafe(found, decode, where)
            self.keys += keys
            tars += [number] * len(keys)
            firsts += [counted + start for start in starts]
            suffixes += found
            begins.append(members.begins[kept])
            sizes.append(members.sizes[kept])
            counted += len(kept)
        self._tars = np.array(tars, dtype=np.int32)
        self._firsts = np.array([*firsts, counted], dtype=np.int64)
        self._member_begins, self._member_sizes = np.concatenate(begins), np.concatenate(sizes)
        self.extensions: list[str] = sorted(set(suffixes))
        """All extensions that occur."""
        number_of = {extension: number for number, extension in enumerate(self.extensions)}
        self._member_extensions = np.array([number_of[suffix] for suffix in suffixes], dtype=np.int32)
        lasts = self._firsts[1:] - 1
        self._begins = self._member_begins[self._firsts[:-1]]
        self._sizes = self._member_begins[lasts] + self._member_sizes[lasts] - self._begins

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes from each sample's first member to the end of its last, headers between them included."""
        return self._sizes

    def place(self, index: int) -> Place:
        """Where sample ``index`` lies."""
        begin = int(self._begins[index])
        return Place(self._files[self._tars[index]], begin, begin + int(self._sizes[index]), self.keys[index])

    def _decode(self, index: int, stored: bytes | memoryview) -> dict[str, Any]:
        view = memoryview(stored)
        if len(view) != self._sizes[index]:
            raise ValueError(f"{len(view)} bytes")
        sample: dict[str, Any] = {"__key__": self.keys[index]}
        for member in range(self._firsts[index], self._firsts[index + 1]):
            extension = self.extensions[self._member_extensions[member]]
            begin = int(self._member_begins[member] - self._begins[index])
            content = bytes(view[begin : begin + int(self._member_sizes[member])])
            try:
                sample[extension] = decoder_for(extension, self._decode_option)(content)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise ValueError(f".{extension}: {error}") from error
        return sample


def _grouped(members: TarMembers, where: str) -> tuple[list[int], list[str], list[int], list[str]]:
    """Which members count, the keys of the samples, at which of those members each begins, and the members' extensions."""
    kept: list[int] = []
    keys: list[str] = []
    starts: list[int] = []
    suffixes: list[str] = []
    seen: set[str] = set()
    for position, name in enumerate(members.names):
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot or (not slash and name.startswith("__") and name.endswith("__")):
            continue
        key, extension = folder + slash + stem, extension.lower()
        if not keys or keys[-1] != key:
            if key in seen:
                raise DataError(
                    f"{where}: members of sample {key} are not next to each other; write the tar sorted by name"
                )
            seen.add(key)
            keys.append(key)
            starts.append(len(kept))
        elif extension in suffixes[starts[-1] :]:
            raise DataError(f"{where}: sample {key} has two members .{extension}")
        kept.append(position)
        suffixes.append(extension)
    return kept, keys, starts, suffixes
