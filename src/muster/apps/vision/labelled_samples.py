"""Training samples of classification: pictures with their classes, shifted and mirrored at random."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from muster.apps.vision.labelled_pictures import Pictures

Augmentation = Literal["none", "crop", "crop-flip"]


class LabelledSamples(Dataset[tuple[torch.Tensor, int]]):
    """Pictures and their classes, as a map-style data set; what it draws comes from torch's global generator.

    Arguments:
        pictures: decoded.
        augmentation: `crop` surrounds a picture with an eighth of its sides of black (4 pixels of 32, as He et al. 2016)
            and cuts out a random part of its size; `crop-flip` mirrors every second one, too.

    Attributes:
        labels: int64 [samples], the classes of all samples, without reading a picture.
    """

    def __init__(self, pictures: Pictures, augmentation: Augmentation = "none") -> None:
        self.pictures, self.augmentation = pictures, augmentation

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.pictures.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """A picture, uint8 [channels, height, width], and its class."""
        pixels = self.pictures.pixels[index]
        if self.augmentation != "none":
            height, width = pixels.shape[:2]
            margins = height // 8, width // 8
            top, left = (int(torch.randint(2 * margin + 1, ())) for margin in margins)
            wide = np.pad(pixels, ((margins[0],) * 2, (margins[1],) * 2, (0, 0)))
            pixels = wide[top : top + height, left : left + width]
        if self.augmentation == "crop-flip" and int(torch.randint(2, ())):
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")), int(self.labels[index])
