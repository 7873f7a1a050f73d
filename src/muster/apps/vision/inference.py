"""A trained EDSR applied to pixels: loading, 8 bits in and out, self-ensemble, the size of tiles."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from muster.apps.vision.edsr import EDSR
from muster.engine.run_folder import RunFolder
from muster.errors import DataError

#: What ``app`` says in the header of `model.safetensors`.
APP: Final = "vision.superres"

# The largest activation of a tile, unless the margin alone needs more.
_ACTIVATION_BYTES: Final = 128 * 2**20


class HasModel(Protocol):
    """A run, in whatever form: it knows where its model is."""

    @property
    def model_path(self) -> Path: ...


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
    if not isinstance(path, (str, os.PathLike)):
        file = path.model_path
    else:
        file = RunFolder(path).model_path if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(
            f"{file}: no such model; a run writes it when it is done (`muster ls` lists the runs)"
        )
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{file}: it cannot be read as safetensors ({error}); export the model again"
        ) from error
    if header.get("app") != APP:
        raise DataError(
            f"{file}: written by {header.get('app', 'another program')!r}; want a model of {APP!r}"
        )
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
