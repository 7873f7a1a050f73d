"""A trained EDSR applied to pixels: 8 bits in and out, self-ensemble, the size of tiles."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from muster.apps.vision.edsr import EDSR
from muster.apps.vision.model_file import HasModel, read_model
from muster.errors import DataError

#: What ``app`` says in the header of `model.safetensors`.
APP: Final = "vision.superres"

# The largest activation of a tile, unless the margin alone needs more.
_ACTIVATION_BYTES: Final = 128 * 2**20


def load_model(path: str | os.PathLike[str] | HasModel) -> EDSR:
    """The trained model of a run, on the CPU, in evaluation mode.

    Arguments:
        path: a `model.safetensors`, the run folder that holds one, or a `RunFolder`.

    Returns:
        An `EDSR`; float64 if the weights are, otherwise float32.

    Raises:
        RunNotFound: the folder is no run folder.
        DataError: no such file, or it is not a model that super-resolution wrote.
    """
    file, header, weights = read_model(path, APP)
    try:
        model = EDSR(header["arch"], int(header["scale"]))
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{file}: its header and its weights disagree ({error}); export it again") from error
    if any(weight.dtype == torch.float64 for weight in weights.values()):
        model = model.double()
        model.load_state_dict(weights)  # again: the first load rounded to float32
    return model.eval()


def to_tensor(pixels: npt.NDArray[np.uint8], like: torch.nn.Module) -> torch.Tensor:
    """Pixels as a batch of one for a model: its dtype and device, 0..1.

    Arguments:
        pixels: uint8 [height, width, 3].
        like: the model.

    Returns:
        float [1, 3, height, width].
    """
    weight = next(like.parameters())
    planes = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    return planes[None].to(weight.device, weight.dtype) / 255


def to_pixels(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A batch of one as pixels, rounded and clipped to 8 bits: [1, c, h, w] in 0..1 to uint8 [h, w, c]."""
    levels = (image[0].permute(1, 2, 0) * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).cpu().numpy()


def self_ensemble(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The mean over the 8 flips and rotations of the input, each turned back (Lim et al. 2017, section 3.3).

    Arguments:
        model: [n, c, h, w] to [n, c, s·h, s·w].
        x: [n, c, h, w].
    """
    total: Any = 0
    for turns in range(4):
        for mirror in (False, True):
            turned = torch.rot90(x.flip(3) if mirror else x, turns, (2, 3))
            result = torch.rot90(model(turned), -turns, (2, 3))
            total = total + (result.flip(3) if mirror else result)
    return total / 8


def default_tile(model: EDSR) -> int:
    """Sides of a tile, in low-resolution pixels, that keep the largest activation near 128 MiB.

    At least four receptive radii, so that margins cost at most 9/4 of the work whatever the network.
    """
    size = next(model.parameters()).element_size()
    widest = model.architecture.features * (1 if model.architecture.bicubic_skip else model.scale**2)
    bytes_per_pixel = widest * size
    affordable = math.isqrt(_ACTIVATION_BYTES // bytes_per_pixel) - 2 * model.receptive_radius
    return max(affordable, 4 * model.receptive_radius)
