"""A NumPy array in a store, one sample for each index of its first axis."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._source import Place, Source
from muster.pillars.io.sources._store import Store

_HEADER_BYTES = 4096  # NumPy's own headers take 128 bytes, those of large structured types some more


class Npy(Source):
    """The rows of an array in an ``.npy`` file; nothing but the header is read to open it.

    Sample ``i`` is ``array[i]``, a writable copy, or ``(array[i], labels[i])``.

    Arguments:
        url: of the file.
        labels: a label for each row, in memory.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.

    Raises:
        DataError: no such file, no array, an array without axes, one of Python objects (a pickle), one in
            column-major order, a truncated one, or labels of another number.
        MissingExtra: the store needs a package that is not installed.
        OSError: the store failed.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        labels: npt.ArrayLike | None = None,
        options: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._store = Store(url, options, timeout_s)
        self._file = self._store.stat(self._store.root)
        shown = self._store.shown(self._file.path)
        header = io.BytesIO(self._store.read(self._file, 0, min(_HEADER_BYTES, self._file.size)))
        try:
            version = np.lib.format.read_magic(header)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, column_major, self.dtype = read_header(header)
        except ValueError as error:
            raise DataError(f"{shown} is no array in NumPy's format: {error}") from error
        if self.dtype.hasobject:
            raise DataError(
                f"{shown} holds Python objects, a pickle, which runs code when read; store numbers"
            )
        if not self.shape:
            raise DataError(f"{shown} is a single number, not an array of samples")
        if column_major and len(self.shape) > 1:
            raise DataError(f"{shown} is in column-major order; save numpy.ascontiguousarray of it")
        self._data = header.tell()
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        if self._file.size != self._data + self._row * self.shape[0]:
            raise DataError(
                f"{shown} has {self._file.size} bytes; an array of {self.shape} {self.dtype} takes "
                f"{self._data + self._row * self.shape[0]}"
            )
        self.labels = checked_labels(labels, self.shape[0], shown)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of a row, the same for all."""
        return np.full(self.shape[0], self._row, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.shape[0])

    def place(self, index: int) -> Place:
        """Where sample ``index`` lies."""
        begin = self._data + index * self._row
        return Place(self._file, begin, begin + self._row)

    def _decode(self, index: int, stored: bytes | memoryview) -> Any:
        row = np.frombuffer(stored, dtype=self.dtype).reshape(self.shape[1:]).copy()
        return row if self.labels is None else (row, self.labels[index])


def checked_labels(labels: npt.ArrayLike | None, count: int, where: str) -> npt.NDArray[Any] | None:
    """``labels`` as an array.

    Raises:
        DataError: there are not ``count`` of them.
    """
    if labels is None:
        return None
    checked = np.asarray(labels)
    if checked.shape[:1] != (count,):
        raise DataError(f"{where} has {count} samples, labels are of shape {checked.shape}")
    return checked
