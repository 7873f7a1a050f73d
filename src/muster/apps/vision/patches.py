"""Training samples: aligned pairs of random patches, flipped and turned at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from muster.apps.vision.photo_cache import PhotoCache


class Patches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random patches of photographs, as a map-style data set.

    Sample ``index`` is cut from photograph ``index`` modulo their number, at a place and in one of the 8
    orientations drawn from torch's global generator. Samples are uint8, a quarter of the bytes of float32.

    Arguments:
        photographs: both resolutions of every photograph.
        patch: sides of the high-resolution patch in pixels; a multiple of the scale, at most the smallest
            photograph. per_photograph: patches of each photograph in one epoch.
    """

    def __init__(self, photographs: PhotoCache, patch: int, per_photograph: int) -> None:
        self.photographs, self.patch, self.per_photograph = photographs, patch, per_photograph

    def __len__(self) -> int:
        return len(self.photographs) * self.per_photograph

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Low and high resolution: uint8 [3, patch / scale, patch / scale] and [3, patch, patch]."""
        photograph = self.photographs[index % len(self.photographs)]
        scale = self.photographs.scale
        side = self.patch // scale
        height, width = photograph.lr.shape[:2]
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        orientation = int(torch.randint(8, ()))
        lr = photograph.lr[top : top + side, left : left + side]
        hr = photograph.hr[scale * top : scale * (top + side), scale * left : scale * (left + side)]
        return _oriented(lr, orientation), _oriented(hr, orientation)


def _oriented(pixels: npt.NDArray[Any], orientation: int) -> torch.Tensor:
    pixels = np.rot90(pixels, orientation % 4)
    if orientation >= 4:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
