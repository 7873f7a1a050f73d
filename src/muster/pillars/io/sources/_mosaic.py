"""Shards of MosaicML's streaming format (MDS), read at random; nothing of that package is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._mosaic_encodings import column_decoder
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store, StoredFile

_SHARDS_AT_ONCE = 16


class MosaicShards(Source):
    """Samples of an MDS data set of version 2, each by one range request, in the order of the shards.

    A sample is a dict from column to value, as ``streaming.StreamingDataset`` gives it, but images (``jpeg``,
    ``png``, ``pil``) are ``uint8`` arrays of shape (height, width, 3). To open it takes ``index.json``, and of each
    shard the table of offsets at its beginning.

    Shards that were written with compression are refused: they can only be read whole. So are columns of pickles.

    The format: https://docs.mosaicml.com/projects/streaming (MDS), as version 0.13 of mosaicml-streaming writes it.

    Arguments:
        url: of the folder with ``index.json``.
        decode: functions by column, of the column's stored bytes.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no index, another format, compressed shards, a shard that is missing, truncated or not that of the
            index, or a column of a kind that is not known or not safe.
        MissingExtra: the store needs a package that is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        decode: Mapping[str, Callable[[bytes], Any]] | None = None,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._store = Store(url, options, timeout_s)
        index = self._store.stat(f"{self._store.root}/index.json")
        where = self._store.shown(index.path)
        try:
            shards = json.loads(self._store.read(index))["shards"]
            first = _checked(shards[0], where)
            self.columns: list[str] = list(first["column_names"])
            """Names of the columns of a sample."""
            encodings = list(first["column_encodings"])
            self._column_sizes: list[int | None] = list(first["column_sizes"])
            for shard in shards:
                same = _checked(shard, where)
                if (same["column_names"], same["column_encodings"]) != (self.columns, encodings):
                    raise DataError(
                        f"{where}: {shard['raw_data']['basename']} has other columns than the first shard"
                    )
            names = [str(shard["raw_data"]["basename"]) for shard in shards]
            lengths = [int(shard["raw_data"]["bytes"]) for shard in shards]
            counts = [int(shard["samples"]) for shard in shards]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{where} is no index of an MDS data set: {error!r}") from error
        self._decoders = _column_decoders(self.columns, encodings, dict(decode or {}), where)

        self._files = self._store.stat_all(f"{self._store.root}/{name}" for name in names)
        for file, length in zip(self._files, lengths, strict=True):
            if file.size != length:
                raise DataError(
                    f"{self._store.shown(file.path)} has {file.size} bytes, and {length} by index.json: it is truncated, or "
                    "another file"
                )
        with ThreadPoolExecutor(min(_SHARDS_AT_ONCE, len(counts))) as pool:
            tables = list(pool.map(self._offsets, self._files, counts))
        self._begins = np.concatenate([table[:-1] for table in tables])
        self._sizes = np.concatenate([np.diff(table) for table in tables])
        self._shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def _offsets(self, file: StoredFile, count: int) -> npt.NDArray[np.int64]:
        """Where the samples of a shard begin, and where the last ends."""
        shown = self._store.shown(file.path)
        if file.size < 4 * (count + 2):
            raise DataError(f"{shown} is too short for the {count} samples that index.json says it has")
        table = np.frombuffer(self._store.read(file, 0, 4 * (count + 2)), "<u4").astype(np.int64)
        offsets = table[1:]
        if (
            table[0] != count
            or offsets[0] < 4 * (count + 2)
            or offsets[-1] != file.size
            or (np.diff(offsets) < 0).any()
        ):
            raise DataError(
                f"{shown} is corrupt: its table of {count} samples does not fit its {file.size} bytes"
            )
        return offsets

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each sample in its shard."""
        return self._sizes

    def place(self, index: int) -> Place:
        """Where sample ``index`` lies."""
        begin = int(self._begins[index])
        return Place(self._files[self._shards[index]], begin, begin + int(self._sizes[index]))

    def _decode(self, index: int, stored: bytes | memoryview) -> dict[str, Any]:
        view = memoryview(stored)
        variable = sum(1 for size in self._column_sizes if not size)
        lengths = iter(np.frombuffer(view[: 4 * variable], "<u4").tolist())
        sizes = [size or next(lengths) for size in self._column_sizes]
        at = 4 * variable
        if at + sum(sizes) != len(view):
            raise ValueError(f"its columns take {at + sum(sizes)} bytes of {len(view)}")
        sample = {}
        for column, size in zip(self.columns, sizes, strict=True):
            try:
                sample[column] = self._decoders[column](bytes(view[at : at + size]))
            except (OSError, ValueError, SyntaxError, LookupError) as error:
                raise ValueError(f"column {column}: {error}") from error
            at += size
        return sample


def _checked(shard: dict[str, Any], where: str) -> dict[str, Any]:
    """A shard's entry in the index.

    Raises:
        DataError: it is of another format or version, or compressed.
    """
    if shard["format"] != "mds" or shard["version"] != 2:
        raise DataError(
            f"{where}: shards of format {shard['format']} {shard['version']}; what is read is mds 2"
        )
    if shard.get("compression"):
        raise DataError(
            f"{where}: the shards are compressed ({shard['compression']}) and can only be read whole; write them with "
            "compression=None"
        )
    return shard


def _column_decoders(
    columns: list[str], encodings: list[str], chosen: dict[str, Callable[[bytes], Any]], where: str
) -> dict[str, Callable[[bytes], Any]]:
    unknown = set(chosen) - set(columns)
    if unknown:
        raise DataError(f"decode names column {min(unknown)}; the columns are {', '.join(columns)}")
    decoders = {}
    for column, encoding in zip(columns, encodings, strict=True):
        if column in chosen:
            decoders[column] = chosen[column]
            continue
        try:
            decoders[column] = column_decoder(encoding)
        except ValueError as error:
            raise DataError(f"{where}: column {column}: {error}") from error
    return decoders
