"""Rows of Parquet files, read at random through their row groups."""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._addresses import expand
from muster.pillars.io.sources._block_cache import BlockCache
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store, StoredFile

_FOOTER_BYTES = 65_536
_WASTE = 2.0  # runs of columns are read in one piece unless that reads more than this times the bytes wanted


class Parquet(Source):
    """The rows of Parquet files, in the order of the files given and of the rows within.

    A sample is a dict from column to value: Python numbers, strings, bytes and dicts; lists of numbers become arrays.
    Parquet stores no rows: the least that can be read is the chosen columns of a row group. `read` fetches that by
    one request (by several if columns in between would double the bytes) and keeps the last ``cache_bytes`` of row
    groups in this process, so rows of the same group that are read soon after one another cost one request. In a
    random order over a data set larger than that, each row costs its row group: write small groups (about 1 MB;
    ``row_group_size`` of ``pyarrow.parquet.write_table``). `rows_per_request` says how many rows a request brings.

    What `read` returns is the row as an Arrow record batch in the IPC format; `sizes` is its expected length, the
    mean of its row group, as the rows' own lengths are not known without reading them.

    Arguments:
        urls: one or several; ``{000..012}`` stands for a sequence and ``*``, ``?`` and ``[...]`` for what matches, sorted.
        columns: which columns of the top level; None for all.
        decode: functions by column, of the column's value (for images in the form of the Hugging Face Hub
            ``{"image": lambda value: decode_image(value["bytes"])}``, by a function of a module).
        cache_bytes: how much memory decoded row groups may take in each process.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no such file, no whole Parquet file, a column that is not there, files with different columns, no rows.
        MissingExtra: the store needs a package that is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        columns: Sequence[str] | None = None,
        decode: Mapping[str, Callable[[Any], Any]] | None = None,
        cache_bytes: int = 256 << 20,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._store, paths = expand(urls, options, timeout_s)
        self._files = self._store.stat_all(paths)
        self._footers = [_footer(self._store, file) for file in self._files]
        self._schema: Any = None
        for file, footer in zip(self._files, self._footers, strict=True):
            schema = _chosen(footer.schema.to_arrow_schema(), columns, self._store.shown(file.path))
            if self._schema is None:
                self._schema = schema
            elif not self._schema.equals(schema):
                raise DataError(
                    f"{self._store.shown(file.path)} has other columns than {self._store.shown(self._files[0].path)}: "
                    f"{_told(schema)}; there {_told(self._schema)}"
                )
        self.columns: list[str] = list(self._schema.names)
        """Names of the columns of a sample."""
        unknown = set(decode or {}) - set(self.columns)
        if unknown:
            raise DataError(f"decode names column {min(unknown)}; the columns are {', '.join(self.columns)}")
        self._decoders = dict(decode or {})
        self._cache = BlockCache(cache_bytes)

        self._groups = [
            (number, group)
            for number, footer in enumerate(self._footers)
            for group in range(footer.num_row_groups)
        ]
        rows = [self._footers[number].row_group(group).num_rows for number, group in self._groups]
        self._ends = [int(end) for end in np.cumsum(rows, dtype=np.int64)]
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{self._store.shown(self._files[0].path)}: no rows")
        overhead = _empty_size(self._schema)
        mean = [
            sum(column.total_uncompressed_size for column in self._chunks(number, group)) / max(count, 1)
            + overhead
            for (number, group), count in zip(self._groups, rows, strict=True)
        ]
        self._sizes = np.repeat(np.ceil(mean).astype(np.int64), rows)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Expected length of what `read` returns, in bytes: the mean over the row's group."""
        return self._sizes

    @property
    def rows_per_request(self) -> float:
        """How many rows a row group holds, in the mean."""
        return len(self) / len(self._groups)

    def place(self, index: int) -> Place:
        """Where the row group of sample ``index`` lies."""
        group, row = self._group_of(index)
        number, within = self._groups[group]
        spans = self._spans(number, within)
        return Place(self._files[number], spans[0][0], spans[-1][1], f"row {row} of row group {within}")

    def read(self, index: int) -> bytes:
        """The row as an Arrow record batch in the IPC format, from the cache or by reading its row group.

        Raises:
            OSError: the store failed, or gave fewer bytes than it should.
            DataError: the row group is corrupt, or the file has changed since it was opened.
        """
        group, row = self._group_of(index)
        table = self._cache.get(group, self._read_group)
        # A slice shares the buffers of its table, and IPC writes what the slice needs of them.
        return bytes(table.slice(row, 1).combine_chunks().to_batches()[0].serialize())

    def _decode(self, index: int, stored: bytes | memoryview) -> dict[str, Any]:
        import pyarrow as pa

        batch = pa.ipc.read_record_batch(pa.py_buffer(stored), self._schema)
        if batch.num_rows != 1:
            raise ValueError(f"{batch.num_rows} rows")
        return {
            name: self._decoders[name](value) if name in self._decoders else value
            for name, value in ((name, _value(batch.column(name)[0])) for name in self.columns)
        }

    def _group_of(self, index: int) -> tuple[int, int]:
        """The row group of a sample, counted over all files, and its row within."""
        group = bisect.bisect_right(self._ends, index)
        return group, int(index) - (self._ends[group - 1] if group else 0)

    def _chunks(self, number: int, group: int) -> list[Any]:
        """Metadata of the chosen column chunks of a row group."""
        row_group = self._footers[number].row_group(group)
        chunks = (row_group.column(position) for position in range(row_group.num_columns))
        return [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in self.columns]

    def _spans(self, number: int, group: int) -> list[tuple[int, int]]:
        """Which bytes of the file are read for a row group."""
        exact = []
        for chunk in self._chunks(number, group):
            begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
            exact.append((begin, begin + chunk.total_compressed_size))
        exact.sort()
        whole = exact[-1][1] - exact[0][0]
        if whole <= _WASTE * sum(end - begin for begin, end in exact):
            return [(exact[0][0], exact[-1][1])]
        runs = exact[:1]
        for begin, end in exact[1:]:
            if begin <= runs[-1][1]:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((begin, end))
        return runs

    def _read_group(self, group: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, within = self._groups[group]
        file = self._files[number]
        spans = [(begin, self._store.read(file, begin, end)) for begin, end in self._spans(number, within)]
        try:
            reader = pq.ParquetFile(
                pa.PythonFile(_Spans(file.size, spans), mode="r"),
                metadata=self._footers[number],
                pre_buffer=False,
                page_checksum_verification=True,
            )
            # Rows are asked for from several threads already.
            table = reader.read_row_group(within, columns=self.columns, use_threads=False)
            return table if table.schema.equals(self._schema) else table.cast(self._schema)
        except (OSError, pa.ArrowException) as error:
            begin, end = spans[0][0], spans[-1][0] + len(spans[-1][1])
            raise DataError(
                f"row group {within} in {self._store.shown(file.path)}, bytes {begin} to {end}, is corrupt: {error}"
            ) from error


class _Spans(io.RawIOBase):
    """A file of which only some stretches are there."""

    def __init__(self, size: int, spans: list[tuple[int, bytes]]) -> None:
        self._size, self._spans, self._at = size, spans, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        for begin, content in self._spans:
            if begin <= self._at <= begin + len(content):
                found = content[self._at - begin : None if size < 0 else self._at - begin + size]
                self._at += len(found)
                return found
        raise OSError(f"byte {self._at} is outside what the footer says of this row group")


def _footer(store: Store, file: StoredFile) -> Any:
    """The metadata at a file's end, by one request, two where it is large."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = store.shown(file.path)
    tail = store.read(file, max(0, file.size - _FOOTER_BYTES), file.size) if file.size else b""
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise DataError(f"{shown} is not a whole Parquet file: its {file.size} bytes do not end with PAR1")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > file.size:
        raise DataError(f"{shown} is not a whole Parquet file: its footer should have {length} bytes")
    if length > len(tail):
        tail = store.read(file, file.size - length, file.size)
    try:
        footer: Any = pq.read_metadata(pa.BufferReader(tail[-length:]))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shown} is not a whole Parquet file: {error}") from error
    return footer


def _chosen(schema: Any, columns: Sequence[str] | None, where: str) -> Any:
    """The part of an Arrow schema that has the chosen columns, in the file's order."""
    import pyarrow as pa

    missing = [name for name in columns or () if name not in schema.names]
    if missing:
        raise DataError(f"{where} has no column {missing[0]}; it has {', '.join(schema.names)}")
    # A dictionary would be no part of a row's record batch.
    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in schema
    ]
    return pa.schema([field for field in plain if columns is None or field.name in columns])


def _told(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _empty_size(schema: Any) -> int:
    """What a record batch takes besides its values, in bytes."""
    import pyarrow as pa

    return len(pa.RecordBatch.from_pylist([], schema=schema).serialize())


def _value(scalar: Any) -> Any:
    """A value of a row; lists of numbers as arrays."""
    import pyarrow as pa

    kind = scalar.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        numeric = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
        if numeric and scalar.is_valid and not scalar.values.null_count:
            return scalar.values.to_numpy(zero_copy_only=False).copy()
    return scalar.as_py()
