"""Networks that tell what is in a small picture: a perceptron, a small convolutional network, residual networks.

All take pictures as they are, uint8 or floats in 0..1, and standardize them by the mean and the deviation of their
training pictures. Those two are buffers outside the state: they are no parameter, and nothing of them is exchanged
or merged in federated training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from muster.apps.vision.model_file import HasModel, read_model
from muster.errors import DataError

#: What ``app`` says in the header of `model.safetensors`.
APP: Final = "vision.classification"


class _Standardized(nn.Module):
    """Subtracts the mean and divides by the deviation of each channel.

    Arguments:
        mean, deviation: of the training pictures in 0..1, one for each channel.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width], uint8 or floats in 0..1, to floats of the buffers' dtype."""
        x = pictures.to(self.mean.dtype)
        return ((x if pictures.is_floating_point() else x / 255) - self.mean) / self.deviation


class Perceptron(nn.Module):
    """Two hidden layers with ReLU: the 2NN of McMahan et al. (AISTATS 2017), by default with 64 units each.

    Arguments:
        classes: how many.
        shape: channels, height and width of a picture.
        width: hidden units of a layer.
        mean, deviation: of the training pictures in 0..1, one for each channel.
    """

    def __init__(
        self,
        classes: int = 10,
        shape: tuple[int, int, int] = (1, 8, 8),
        width: int = 64,
        *,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        channels, height, pixels = shape
        self.standardized = _Standardized(mean, deviation)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * pixels, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores ``[n, classes]`` of pictures ``[n, channels, height, width]``."""
        scores: torch.Tensor = self.layers(self.standardized(pictures))
        return scores


class SmallCNN(nn.Module):
    """Two 3×3 convolutions with ReLU and maximum pooling, then one linear layer; nothing is normalized by batches.

    Arguments:
        classes, mean, deviation: as of `Perceptron`.
        shape: channels, height and width of a picture, at least 4 pixels each.
        width: channels of the first convolution; the second has twice as many.
    """

    def __init__(
        self,
        classes: int = 10,
        shape: tuple[int, int, int] = (3, 32, 32),
        width: int = 16,
        *,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        channels, height, pixels = shape
        self.standardized = _Standardized(mean, deviation)
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.scores = nn.Linear(2 * width * (height // 4) * (pixels // 4), classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores ``[n, classes]`` of pictures ``[n, channels, height, width]``."""
        features = self.features(self.standardized(pictures))
        scores: torch.Tensor = self.scores(features.flatten(1))
        return scores


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch normalization beside a shortcut without parameters.

    Where the block halves the picture and doubles the channels, the shortcut takes every second pixel and fills the
    new channels with zeros: option A of the paper, which its networks for CIFAR-10 use.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = torch.relu(self.first_norm(self.first(x)))
        residual = self.second_norm(self.second(residual))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return torch.relu(shortcut + residual)


class ResNet(nn.Module):
    """A residual network for small pictures: three stages of widths w, 2w and 4w.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (CVPR 2016), section 4.2; weights start
    as in their "Delving deep into rectifiers" (ICCV 2015). Depth 20 at width 16 has 0.27 million parameters.

    Arguments:
        depth: layers with weights: 6n + 2, such as 20, 32, 44, 56 or 110.
        classes, mean, deviation: as of `Perceptron`.
        channels: of a picture.
        width: channels of the first stage.

    Raises:
        ValueError: another depth.
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        channels: int = 3,
        width: int = 16,
        *,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a depth of {depth} is not 6n + 2; use 20, 32, 44, 56 or 110")
        self.standardized = _Standardized(mean, deviation)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks, channels_in = [], width
        for stage in range(3):
            for number in range((depth - 2) // 6):
                stride = 2 if stage and not number else 1
                blocks.append(_ResidualBlock(channels_in, width << stage, stride))
                channels_in = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.scores = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores ``[n, classes]`` of pictures ``[n, channels, height, width]``."""
        x = torch.relu(self.stem_norm(self.stem(self.standardized(pictures))))
        scores: torch.Tensor = self.scores(self.blocks(x).mean((2, 3)))
        return scores


def make_classifier(
    arch: str,
    classes: int,
    shape: tuple[int, int, int],
    *,
    width: int | None = None,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> nn.Module:
    """A network by the name that job files use.

    Arguments:
        arch: `mlp`, `cnn-small` or `resnet-<depth>`.
        classes, shape, mean, deviation: as of `Perceptron`.
        width: as of the network; None: its default.

    Raises:
        ValueError: no such network.
    """
    options: dict[str, Any] = {"mean": mean, "deviation": deviation} | (
        {} if width is None else {"width": width}
    )
    small: dict[str, Callable[..., nn.Module]] = {"mlp": Perceptron, "cnn-small": SmallCNN}
    if arch in small:
        return small[arch](classes, shape, **options)
    kind, _, depth = arch.partition("-")
    if kind != "resnet" or not depth.isdecimal():
        raise ValueError(f"no network {arch!r}; there are {', '.join(small)} and resnet-20, resnet-32 ...")
    return ResNet(int(depth), classes, shape[0], **options)


def load_classifier(path: str | os.PathLike[str] | HasModel) -> tuple[nn.Module, tuple[str, ...]]:
    """The trained network of a run, on the CPU, in evaluation mode, and the names of its classes.

    Arguments:
        path: a `model.safetensors`, the run folder that holds one, or a `RunFolder`.

    Raises:
        RunNotFound: the folder is no run folder.
        DataError: no such file, or it is not a model that classification wrote.
    """
    file, header, weights = read_model(path, APP)
    try:
        told = {key: json.loads(header[key]) for key in ("classes", "shape", "width", "mean", "deviation")}
        model = make_classifier(
            json.loads(header["arch"]),
            len(told["classes"]),
            tuple(told["shape"]),
            width=told["width"],
            mean=told["mean"],
            deviation=told["deviation"],
        )
        if any(weight.dtype == torch.float64 for weight in weights.values()):
            model = model.double()
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{file}: its header and its weights disagree ({error}); export it again") from error
    return model.eval(), tuple(told["classes"])
