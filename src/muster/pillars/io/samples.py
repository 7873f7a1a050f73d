"""The contract between a store of samples and whoever reads ahead of it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@runtime_checkable
class StoredSamples(Protocol):
    """A map-style data set whose samples lie in a store as bytes, apart from their decoding.

    A reader that looks ahead moves and caches the bytes, and decodes where and when it suits. A plain map-style
    data set (``__len__``, ``__getitem__``) has no such bytes; of it only whole samples can be cached.

    Instances are picklable without open files or connections, and the same bytes always decode to the same sample
    unless the decoding draws random numbers.
    """

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``: ``decode(index, read(index))``."""

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes that each sample takes in the store, of shape ``(len(self),)``; known without reading a sample."""

    def read(self, index: int) -> bytes:
        """The stored bytes of a sample, by one request of the store; safe to call from several threads.

        Raises:
            OSError: the store failed, or gave fewer bytes than it should.
        """

    def decode(self, index: int, stored: bytes | memoryview) -> Any:
        """The sample that the bytes stand for.

        Raises:
            muster.errors.DataError: the bytes are not a sample; names it and where it lies.
        """
