"""Super-resolution and classification from Python, without a job file::

    from muster.vision import EDSR, ResNet, upscale

    big = upscale("runs/last-run", "photo.jpg")      # a Pillow image
    model = EDSR("edsr-baseline", scale=2)           # a plain torch.nn.Module
    model = ResNet(20, classes=10)                   # another

Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.apps.vision.classification import Classification as Classification
    from muster.apps.vision.classifiers import Perceptron as Perceptron
    from muster.apps.vision.classifiers import ResNet as ResNet
    from muster.apps.vision.classifiers import SmallCNN as SmallCNN
    from muster.apps.vision.classifiers import load_classifier as load_classifier
    from muster.apps.vision.digits import read_digits as read_digits
    from muster.apps.vision.edsr import EDSR as EDSR
    from muster.apps.vision.edsr import Architecture as Architecture
    from muster.apps.vision.inference import load_model as load_model
    from muster.apps.vision.labelled_pictures import LabelledPictures as LabelledPictures
    from muster.apps.vision.labelled_pictures import PictureFiles as PictureFiles
    from muster.apps.vision.labelled_pictures import read_pictures as read_pictures
    from muster.apps.vision.labelled_samples import LabelledSamples as LabelledSamples
    from muster.apps.vision.quality import psnr_y as psnr_y
    from muster.apps.vision.quality import ssim_y as ssim_y
    from muster.apps.vision.resize import bicubic_downscale as bicubic_downscale
    from muster.apps.vision.resize import bicubic_upscale as bicubic_upscale
    from muster.apps.vision.superres import SuperResolution as SuperResolution
    from muster.apps.vision.upscale import upscale as upscale
    from muster.apps.vision.upscale import upscale_file as upscale_file

_HOME: Final = {
    "Architecture": "edsr",
    "Classification": "classification",
    "EDSR": "edsr",
    "LabelledPictures": "labelled_pictures",
    "LabelledSamples": "labelled_samples",
    "Perceptron": "classifiers",
    "PictureFiles": "labelled_pictures",
    "ResNet": "classifiers",
    "SmallCNN": "classifiers",
    "SuperResolution": "superres",
    "bicubic_downscale": "resize",
    "bicubic_upscale": "resize",
    "load_classifier": "classifiers",
    "load_model": "inference",
    "psnr_y": "quality",
    "read_digits": "digits",
    "read_pictures": "labelled_pictures",
    "ssim_y": "quality",
    "upscale": "upscale",
    "upscale_file": "upscale",
}

__all__ = [
    "EDSR",
    "Architecture",
    "Classification",
    "LabelledPictures",
    "LabelledSamples",
    "Perceptron",
    "PictureFiles",
    "ResNet",
    "SmallCNN",
    "SuperResolution",
    "bicubic_downscale",
    "bicubic_upscale",
    "load_classifier",
    "load_model",
    "psnr_y",
    "read_digits",
    "read_pictures",
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
