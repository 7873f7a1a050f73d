"""Your own model under Muster: two interleaved spirals, told apart by a small network."""

import torch
from torch import nn
from torch.utils.data import Dataset

from muster.spec import What
from muster.training.application import Application


class SpiralsWhat(What):
    """The ``what`` section of the job file."""

    width: int = 32
    """Hidden units per layer."""

    points: int = 2000
    """Points on the two spirals together."""


class SpiralPoints(Dataset):
    """Points [2] on one of two spirals, and which."""

    def __init__(self, points: int, noise: float = 0.02) -> None:
        self.points, self.noise = points, noise

    def __len__(self) -> int:
        return self.points

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        turn = 0.25 + 2.75 * torch.tensor(index / self.points) * torch.pi
        point = torch.stack([turn.cos(), turn.sin()]) * turn / 9 * (1 if index % 2 else -1)
        return point + self.noise * torch.randn(2), index % 2


class Spirals(Application):
    What = SpiralsWhat
    quality = "accuracy"

    def build_model(self) -> nn.Module:
        width = self.what.width
        return nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def training_data(self) -> Dataset:
        return SpiralPoints(self.what.points)

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluation_data(self) -> list[tuple[torch.Tensor, int]]:
        clean = SpiralPoints(200, noise=0.0)
        return [clean[index] for index in range(200)]

    def evaluate(self, model: nn.Module, item: tuple[torch.Tensor, int]) -> dict[str, float]:
        return {"accuracy": float(model(item[0]).argmax() == item[1])}
