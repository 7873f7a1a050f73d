"""Applications that make the engine's promises visible in the weights they train."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from muster.io import Folder, StoredSamples
from muster.merge import MergeRule
from muster.spec import What
from muster.training.application import Application


class Indices(Dataset):
    """Sample *i* is *i*."""

    def __init__(self, samples: int, delay_ms: float) -> None:
        self.samples, self.delay_ms = samples, delay_ms

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        time.sleep(self.delay_ms / 1e3)
        return index


class CountingWhat(What):
    samples: int = 64
    delay_ms: float = 0.0


class Weights(nn.Module):
    def __init__(self, samples: int) -> None:
        super().__init__()
        self.uses = nn.Parameter(torch.zeros(samples))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.uses[indices]


class Counting(Application):
    """The gradient of the mean of ``uses[i]`` over a batch of B is count/B: with SGD and lr = B, -uses[i] counts sample i.

    The count is in the checkpointed weights, so it is that of the lineage that survives.
    """

    What = CountingWhat

    def build_model(self) -> nn.Module:
        return Weights(self.what.samples)

    def training_data(self) -> Dataset:
        return Indices(self.what.samples, self.what.delay_ms)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).mean()


class NetworkWhat(What):
    delay_ms: float = 0.0
    fail_at_call: int = 0
    fail_on_rank: int = 1
    hang_at_call: int = 0
    width: int = 64
    depth: int = 1
    dropout: float = 0.1


class Noisy(Dataset):
    """Samples whose noise comes from torch's global generator."""

    def __init__(self, delay_ms: float) -> None:
        self.delay_ms = delay_ms
        self.inputs = torch.randn(200, 8, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.delay_ms / 1e3)
        clean = self.inputs[index]
        return clean + 0.1 * torch.randn(8), clean.sum().sin()


class Network(Application):
    """A network with dropout and buffers, of several gradient buckets if ``width`` is large; fails or hangs when asked to."""

    What = NetworkWhat
    quality = "closeness"
    calls = 0

    def build_model(self) -> nn.Module:
        width = self.what.width
        return nn.Sequential(
            nn.Linear(8, width),
            nn.ReLU(),
            nn.Dropout(self.what.dropout),
            *(layer for _ in range(self.what.depth) for layer in (nn.Linear(width, width), nn.ReLU())),
            nn.Linear(width, 1),
        )

    def training_data(self) -> Dataset:
        return Noisy(self.what.delay_ms)

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        rank = torch.distributed.get_rank()
        if self.calls == self.what.fail_at_call and rank == self.what.fail_on_rank:
            raise ZeroDivisionError("as the test asked")
        if self.calls == self.what.hang_at_call and rank == self.what.fail_on_rank:
            time.sleep(3600)
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs)[:, 0], targets)

    def evaluation_data(self) -> list[int]:
        return list(range(5))

    def evaluate(self, model: nn.Module, item: int) -> dict[str, float]:
        clean = Noisy(0).inputs[item].to(next(model.parameters()))
        return {"closeness": -float((model(clean)[0] - clean.sum().sin()).abs())}


class FilesWhat(What):
    folder: str
    width: int = 32


class Files:
    """Samples in files named by their number, each of which holds floats; decoding adds noise from torch's generator.

    A read of the store appends the number to the file ``reads`` beside the folder, in one `write`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._sizes = [path.stat().st_size for path in self._paths()]

    @classmethod
    def made(cls, folder: Path, samples: int) -> Files:
        folder.mkdir()
        generator = np.random.default_rng(2)
        for index in range(samples):
            (folder / f"{index:05d}").write_bytes(generator.standard_normal(8, np.float32).tobytes())
        return cls(str(folder))

    def _paths(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def reads(self) -> list[int]:
        return [int(line) for line in self.folder.with_name("reads").read_text().split()]

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decode(index, self.read(index))

    def sizes(self) -> np.ndarray:
        return np.array(self._sizes)

    def read(self, index: int) -> bytes:
        log = os.open(self.folder.with_name("reads"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{index}\n".encode())
        os.close(log)
        return (self.folder / f"{index:05d}").read_bytes()

    def decode(self, index: int, stored: bytes | memoryview) -> tuple[torch.Tensor, torch.Tensor]:
        clean = torch.tensor(np.frombuffer(stored, np.float32))
        return clean + 0.1 * torch.randn(8), clean.sum().sin()


class Filed(Network):
    """The network, trained on `Files`."""

    What = FilesWhat
    quality = None

    def build_model(self) -> nn.Module:
        width = self.what.width
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 1))

    def training_data(self) -> StoredSamples:
        return Files(self.what.folder)

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs)[:, 0], targets)

    def evaluation_data(self) -> list[int]:
        return []


class PicturesWhat(What):
    url: str
    features: int = 16


class Pictures(Application):
    """Learns to tell a picture's mean colour through convolutions; the pictures are files of a store."""

    What = PicturesWhat

    def build_model(self) -> nn.Module:
        features = self.what.features
        return nn.Sequential(
            nn.Conv2d(3, features, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(features, features, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(features, 3),
        )

    def training_data(self) -> StoredSamples:
        return Folder(self.what.url, labels=False)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        pictures = batch.permute(0, 3, 1, 2).to(torch.float32) / 255
        return nn.functional.mse_loss(model(pictures), pictures.mean((2, 3)))


class LabelledWhat(What):
    samples: int = 60
    named: bool = True
    hidden: int = 8


class Labels(Dataset):
    """Samples of three classes."""

    def __init__(self, samples: int, named: bool) -> None:
        generator = torch.Generator().manual_seed(11)
        self.inputs = torch.randn(samples, 5, generator=generator)
        self.classes = torch.arange(samples) % 3
        if named:
            self.labels = self.classes.tolist()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.classes[index]


class Labelled(Application):
    """A classifier with dropout; its data may name their classes."""

    What = LabelledWhat

    def build_model(self) -> nn.Module:
        hidden = self.what.hidden
        return nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3))

    def training_data(self) -> Dataset:
        return Labels(self.what.samples, self.what.named)

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluation_data(self) -> list[int]:
        return [0]

    def evaluate(self, model: nn.Module, item: int) -> dict[str, float]:
        data = Labels(self.what.samples, False)
        return {"accuracy": float((model(data.inputs).argmax(1) == data.classes).double().mean())}


@dataclass(frozen=True)
class Halfway(MergeRule):
    """A merge rule of another package: half of the way."""

    name: ClassVar[str] = "tests.halfway"
    arrival: ClassVar[str] = "each"

    def _merge(self, model, updates, state):
        return {key: (value + updates[0].arrays[key]) / 2 for key, value in model.items()}, state
