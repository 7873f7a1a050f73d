"""A Zarr array in a store, one sample for each index of its first axis."""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError, MissingExtra
from muster.pillars.io.sources._block_cache import BlockCache
from muster.pillars.io.sources._npy import checked_labels
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store, StoredFile, of_this_process, store_error


class Zarr(Source):
    """The rows of a Zarr array (format 2 or 3), read by the zarr package.

    Sample ``i`` is ``array[i]``, or ``(array[i], labels[i])``. Zarr stores chunks, so a read fetches the chunks that
    hold the row: one request if a chunk holds whole rows. The last ``cache_bytes`` of decoded chunks are kept in this
    process, for rows of the same chunk read soon after one another; for a random order over more data than that, one
    row per chunk (or a shard of such chunks) is the layout to write.

    What `read` returns is the decoded row, and so `sizes` is that of a decoded row. As the format has it, a chunk
    that is missing from the store stands for the array's fill value; it cannot be told from a chunk that was lost.

    Arguments:
        url: of the array.
        labels: a label for each row, in memory.
        cache_bytes: how much memory decoded chunks may take in each process.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no such array, an array without axes, one of Python objects or of strings, or labels of another number.
        MissingExtra: zarr, or a package for the store, is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        labels: npt.ArrayLike | None = None,
        cache_bytes: int = 256 << 20,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._store = Store(url, options, timeout_s)
        self._identity = secrets.token_hex(8)
        self._cache = BlockCache(cache_bytes)
        array = self._array()
        shown = self._store.shown(self._store.root)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        if self.dtype.kind not in "biufcmM":
            raise DataError(f"{shown} holds elements of type {self.dtype}; sources of arrays are of numbers")
        if not self.shape:
            raise DataError(f"{shown} is a single number, not an array of samples")
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._block_rows = int(array.chunks[0])  # in a shard, of its inner chunks
        self.labels = checked_labels(labels, self.shape[0], shown)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of a decoded row, the same for all."""
        return np.full(self.shape[0], self._row, dtype=np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def place(self, index: int) -> Place:
        """Where the row lies in its decoded chunk."""
        block, row = divmod(index, self._block_rows)
        file = StoredFile(self._store.root, 0)
        return Place(
            file, row * self._row, (row + 1) * self._row, f"row {row} of chunk {block} of the first axis"
        )

    def read(self, index: int) -> bytes:
        """The decoded row, from the cache or by reading its chunks.

        Raises:
            OSError: the store failed, or gave fewer bytes than it should.
            DataError: a chunk cannot be decoded.
        """
        block, row = divmod(index, self._block_rows)
        return bytes(np.ascontiguousarray(self._cache.get(block, self._read_block)[row]).data)

    def _decode(self, index: int, stored: bytes | memoryview) -> Any:
        row = np.frombuffer(stored, dtype=self.dtype).reshape(self.shape[1:]).copy()
        return row if self.labels is None else (row, self.labels[index])

    def _read_block(self, block: int) -> npt.NDArray[Any]:
        """The rows that share chunks with others, decoded."""
        begin = block * self._block_rows
        where = f"chunk {block} of the first axis of {self._store.shown(self._store.root)}"
        try:
            return np.asarray(self._array()[begin : begin + self._block_rows])
        except (ValueError, RuntimeError, TypeError, LookupError) as error:  # what codecs raise
            raise DataError(f"{where} is corrupt: {error}") from error
        except Exception as error:  # each of fsspec's stores raises errors of its own libraries
            raise store_error(f"{where}: {str(error) or type(error).__name__}", error) from error

    def _array(self) -> Any:
        """This process's array; its store has connections, which no fork survives."""
        return of_this_process(("zarr", self._identity), lambda: _open(self._store))


def _open(store: Store) -> Any:
    """The array at the root of a store."""
    try:
        import zarr
        from zarr.storage import FsspecStore, LocalStore
    except ImportError as error:
        raise MissingExtra("zarr", "zarr", "reading a Zarr array") from error
    shown = store.shown(store.root)
    place: Any
    if store.local:
        place = LocalStore(store.root, read_only=True)
    else:
        place = FsspecStore.from_url(shown, storage_options=store.filesystem_options(), read_only=True)
    try:
        return zarr.open_array(place, mode="r")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{shown} is no Zarr array: {str(error) or type(error).__name__}") from error
    except Exception as error:
        raise store_error(f"{shown}: {error}", error) from error
