"""Super-resolution from Python, without a job file::

    from muster.vision import EDSR, upscale

    big = upscale("runs/last-run", "photo.jpg")      # a Pillow image
    model = EDSR("edsr-baseline", scale=2)           # a plain torch.nn.Module

Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.apps.vision.edsr import EDSR as EDSR
    from muster.apps.vision.edsr import Architecture as Architecture
    from muster.apps.vision.inference import load_model as load_model
    from muster.apps.vision.quality import psnr_y as psnr_y
    from muster.apps.vision.quality import ssim_y as ssim_y
    from muster.apps.vision.resize import bicubic_downscale as bicubic_downscale
    from muster.apps.vision.resize import bicubic_upscale as bicubic_upscale
    from muster.apps.vision.superres import SuperResolution as SuperResolution
    from muster.apps.vision.upscale import upscale as upscale
    from muster.apps.vision.upscale import upscale_file as upscale_file

_HOME: Final = {
    "Architecture": "edsr",
    "EDSR": "edsr",
    "SuperResolution": "superres",
    "bicubic_downscale": "resize",
    "bicubic_upscale": "resize",
    "load_model": "inference",
    "psnr_y": "quality",
    "ssim_y": "quality",
    "upscale": "upscale",
    "upscale_file": "upscale",
}

__all__ = [
    "EDSR",
    "Architecture",
    "SuperResolution",
    "bicubic_downscale",
    "bicubic_upscale",
    "load_model",
    "psnr_y",
    "ssim_y",
    "upscale",
    "upscale_file",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.apps.vision.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
