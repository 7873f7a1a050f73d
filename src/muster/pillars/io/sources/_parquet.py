"""Rows of Parquet files, read at random through their row groups."""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._addresses import expand
from muster.pillars.io.sources._block_cache import BlockCache
from muster.pillars.io.sources._index_cache import index_folder as default_folder
from muster.pillars.io.sources._index_cache import kept_table
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store, StoredFile

_FOOTER_BYTES = 65_536
_GROUPS_AT_ONCE = 4
_WASTE = 2.0  # runs of columns are read in one piece unless that reads more than this times the bytes wanted


class Parquet(Source):
    """The rows of Parquet files, in the order of the files given and of the rows within.

    A sample is a dict from column to value: Python numbers, strings, bytes and dicts; lists of numbers become arrays.
    Parquet stores no rows: the least that can be read is the chosen columns of a row group. `read` fetches that by
    one request (by several if columns in between would double the bytes) and keeps the last ``cache_bytes`` of row
    groups in this process, so rows of the same group that are read soon after one another cost one request. In a
    random order over a data set larger than that, each row costs its row group: write small groups (about 1 MB;
    ``row_group_size`` of ``pyarrow.parquet.write_table``). `rows_per_request` says how many rows a request brings.

    What `read` returns is the row as an Arrow record batch in the IPC format, and `sizes` its exact length. Where all
    columns are numbers, or lists of a fixed number of them, without nulls, one row tells it. Otherwise the chosen columns
    are read once, when `sizes` is first asked for, by one process of this machine, and the lengths kept in
    ``index_folder``; a Parquet file does not say how long its values are.

    Arguments:
        urls: one or several; ``{000..012}`` stands for a sequence and ``*``, ``?`` and ``[...]`` for what matches, sorted.
        columns: which columns of the top level; None for all.
        decode: functions by column, of the column's value (for images in the form of the Hugging Face Hub
            ``{"image": lambda value: decode_image(value["bytes"])}``, by a function of a module).
        cache_bytes: how much memory decoded row groups may take in each process.
        index_folder: where lengths are kept; ``$XDG_CACHE_HOME/muster/row-index`` by default.
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
        index_folder: str | os.PathLike[str] | None = None,
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
        self._row_sizes: npt.NDArray[np.int64] | None = None
        self._index_folder = default_folder("row-index") if index_folder is None else Path(index_folder)

    def __len__(self) -> int:
        return self._ends[-1]

    def sizes(self) -> npt.NDArray[np.int64]:
        """Length of what `read` returns, in bytes; the first call may read the columns once, see the class.

        Raises:
            DataError: a row group is corrupt, or a file has changed since it was opened.
            OSError: the store failed.
        """
        if self._row_sizes is None:
            if self._fixed_size():
                self._row_sizes = np.full(len(self), len(self.read(0)), dtype=np.int64)
            else:
                self._row_sizes = np.concatenate(
                    [self._lengths(number) for number in range(len(self._files))]
                )
        return self._row_sizes

    def _fixed_size(self) -> bool:
        """Whether all rows have the same length: no nulls, and types that say how long their values are."""
        if not all(_is_fixed(field.type) for field in self._schema):
            return False
        chunks = (chunk for number, group in self._groups for chunk in self._chunks(number, group))
        return all(
            chunk.is_stats_set and chunk.statistics.has_null_count and chunk.statistics.null_count == 0
            for chunk in chunks
        )

    def _lengths(self, number: int) -> npt.NDArray[np.int64]:
        """Length of each row of a file."""
        import pyarrow as pa

        file = self._files[number]
        groups = [group for group, (of, _) in enumerate(self._groups) if of == number]

        def make() -> Any:
            with ThreadPoolExecutor(_GROUPS_AT_ONCE) as pool:
                lengths = [length for each in pool.map(self._lengths_in_group, groups) for length in each]
            return pa.table({"size": pa.array(lengths, pa.int64())})

        if not file.version:
            return np.asarray(make()["size"])
        of = (self._store.shown(file.path), file.size, file.version, pa.__version__, _told(self._schema))
        return np.asarray(kept_table("\n".join(map(str, of)), self._index_folder, make)["size"])

    def _lengths_in_group(self, group: int) -> list[int]:
        table = self._read_group(group)
        return [len(_row(table, row)) for row in range(table.num_rows)]

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
        return bytes(_row(table, row))

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


def _row(table: Any, row: int) -> Any:
    """A row as a record batch in the IPC format, the same wherever the row lies in its row group."""
    # Of a mere slice IPC writes up to 64 bytes of the neighbours, depending on where they lie.
    return table.take([row]).combine_chunks().to_batches()[0].serialize()


def _is_fixed(kind: Any) -> bool:
    """Whether all values of an Arrow type have the same length."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return _is_fixed(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_fixed(field.type) for field in kind)
    return bool(
        pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind)
    )


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
