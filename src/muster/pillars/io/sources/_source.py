"""What all sources have in common: one request per read, and errors that say which sample, which file, which bytes."""

from __future__ import annotations

import operator
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.errors import DataError
from muster.pillars.io.sources._store import Store, StoredFile

# What decoders raise over bytes that are no sample. Other errors, such as a TypeError, are mistakes in a decoder and pass.
_CORRUPT = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: the bytes ``[begin, end)`` of a file."""

    file: StoredFile
    begin: int
    end: int
    name: str = ""


class Source(ABC):
    """A data set whose samples are stored bytes (`muster.pillars.io.samples.StoredSamples`), one request each.

    Sources are opened in the constructor, which reads an index at most; they hold no open file or connection, can be
    pickled, and may be read from several threads and after a fork.
    """

    _store: Store

    @abstractmethod
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each sample, of shape ``(len(self),)``."""

    @abstractmethod
    def place(self, index: int) -> Place:
        """Where sample ``index`` lies."""

    @abstractmethod
    def _decode(self, index: int, stored: bytes | memoryview) -> Any:
        """The sample; raises one of the errors of corrupt bytes if they are no sample."""

    def __len__(self) -> int:
        return len(self.sizes())

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``, counted from the end if negative.

        Raises:
            IndexError: there are not that many samples.
            OSError: the store failed, or gave fewer bytes than it should.
            DataError: the bytes are not a sample, or the file has changed.
        """
        index = self._checked(index)
        return self.decode(index, self.read(index))

    def read(self, index: int) -> bytes:
        """The stored bytes of a sample, by one request of the store; safe to call from several threads.

        Raises:
            OSError: the store failed, or gave fewer bytes than it should.
            DataError: the file has changed since the source was opened.
        """
        place = self.place(index)
        return self._store.read(place.file, place.begin, place.end)

    def decode(self, index: int, stored: bytes | memoryview) -> Any:
        """The sample that the bytes stand for.

        Raises:
            DataError: the bytes are not a sample; names it, its file and its bytes.
        """
        try:
            return self._decode(index, stored)
        except _CORRUPT as error:
            place = self.place(index)
            name = f" ({place.name})" if place.name else ""
            raise DataError(
                f"sample {index}{name} in {self._store.shown(place.file.path)}, bytes {place.begin} to {place.end}, "
                f"is corrupt: {str(error) or type(error).__name__}"
            ) from error

    def _checked(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of a data set of {len(self)}")
        return position % len(self)
