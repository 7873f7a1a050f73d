"""A store for tests: a folder of files, whose every read is written down where all processes can count it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from muster.errors import DataError


class CountedStore:
    """Samples in files of a folder: four bytes of the sample's number, then noise; a `StoredSamples`.

    A read appends the sample's number to the file ``reads`` of the folder, in one `write`, so that reads of all
    processes are counted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes = np.load(folder / "sizes.npy")

    @classmethod
    def made(
        cls, folder: Path, samples: int, low: int = 2000, high: int = 2001, seed: int = 0
    ) -> CountedStore:
        """Makes ``samples`` files of ``low`` to ``high - 1`` bytes."""
        generator = np.random.default_rng(seed)
        sizes = generator.integers(low, high, samples)
        (folder / "samples").mkdir(parents=True)
        for index, size in enumerate(sizes.tolist()):
            noise = generator.integers(0, 256, size - 4, dtype=np.uint8).tobytes()
            (folder / "samples" / str(index)).write_bytes(index.to_bytes(4, "little") + noise)
        np.save(folder / "sizes.npy", sizes)
        (folder / "reads").touch()
        return cls(folder)

    def path(self, index: int) -> Path:
        return self.folder / "samples" / str(index)

    def reads(self) -> Counter[int]:
        """How often each sample was read, by all processes."""
        return Counter(int(line) for line in (self.folder / "reads").read_text().split())

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.decode(index, self.read(index))

    def sizes(self) -> np.ndarray:
        return self._sizes.astype(np.int64)

    def read(self, index: int) -> bytes:
        stored = self.path(index).read_bytes()
        log = os.open(self.folder / "reads", os.O_WRONLY | os.O_APPEND)
        os.write(log, f"{index}\n".encode())
        os.close(log)
        return stored

    def decode(self, index: int, stored: bytes | memoryview) -> torch.Tensor:
        if int.from_bytes(stored[:4], "little") != index:
            raise DataError(f"{self.path(index)}: not sample {index}")
        return torch.tensor([index, int(np.frombuffer(stored, np.uint8).sum())])

    def expected(self, index: int) -> list[int]:
        """What sample ``index`` decodes to, from its file."""
        return [index, sum(self.path(index).read_bytes())]
