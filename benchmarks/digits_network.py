"""The network of `simulated_parties.py`, for Muster and for peers that have torch but not Muster."""

from __future__ import annotations

import torch
from torch import nn


def make() -> nn.Module:
    """Two convolutions and a linear layer for 8 x 8 pictures; 30 thousand weights, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
