"""Classification of small pictures as an application: the ``what`` of its job files, and how ranks train it.

Importing this module does not import torch, so that `muster check` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from muster.apps.vision.digits import DIGITS, check_digits, read_digits
from muster.apps.vision.labelled_pictures import (
    LabelledPictures,
    PictureFiles,
    Pixels,
    check_pictures,
    read_pictures,
)
from muster.errors import DataError, JobError
from muster.spec import Section, What
from muster.training.application import Application

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

_AT_ONCE: Final = 256  # held-out pictures


class ClassificationModel(Section):
    """The network."""

    arch: Literal["mlp", "cnn-small", "resnet-20", "resnet-32", "resnet-56"] = "mlp"
    """`mlp` (two hidden layers), `cnn-small` (two convolutions, nothing normalized by batches), or a residual network of
    He et al. 2016 in its form for small pictures."""

    width: int | None = Field(default=None, ge=1, le=4096)
    """Hidden units of a layer of `mlp` (64 without it), or channels of the first layer of the others (16)."""


class ClassificationWhat(What):
    """The ``what`` section of a classification job."""

    model: ClassificationModel = ClassificationModel()
    """The network and its width."""

    data: str = Field(default=DIGITS, min_length=1, examples=["~/cifar10"])
    """`digits` (1,797 handwritten digits that scikit-learn carries; every fifth is held out), or pictures: a folder with
    `train/<class>/` and `test/<class>/`, a tar archive with such members, or a folder of several archives. A relative path
    starts at the working directory."""

    size: int | None = Field(default=None, ge=4, le=4096)
    """Scale pictures so that their shorter side has as many pixels, and cut out the middle square; without it all must be of
    one size."""

    augmentation: Literal["none", "crop", "crop-flip"] | None = None
    """`crop` shifts every training picture at random, by up to an eighth of its sides; `crop-flip` mirrors half of them, too.
    Without it: `none` for `digits`, `crop-flip` for pictures."""

    @field_validator("data")
    @classmethod
    def _from_anywhere(cls, value: str) -> str:
        # The ranks and a later `muster resume` may have another working directory.
        return value if value == DIGITS else str(Path(value).expanduser().absolute())


@dataclass(frozen=True)
class HeldOutClass:
    """All held-out pictures of one class.

    Arguments:
        name: of the class.
        label: its number.
        pixels: uint8 [samples, height, width, channels].
    """

    name: str
    label: int
    pixels: Pixels

    @property
    def samples(self) -> int:
        """How much it counts in the mean over all classes."""
        return len(self.pixels)


class Classification(Application):
    """Trains a network with cross-entropy; measures accuracy on held-out pictures, of each class and of all."""

    What: ClassVar[type[What]] = ClassificationWhat
    quality: ClassVar[str | None] = "accuracy"
    what: ClassificationWhat

    def check(self, samples_per_step: int) -> None:
        """Refuses data that cannot be used, naming the file or folder."""
        if self.what.data == DIGITS:
            if self.what.size is not None:
                raise JobError(
                    f"found {self.what.size}, but {DIGITS!r} are 8x8 pixels as they are",
                    mend="leave it out",
                    key="what.size",
                )
            check_digits()
            return
        try:
            files = PictureFiles(Path(self.what.data))
        except DataError as error:
            found, _, mend = str(error).partition("; ")
            raise JobError(found, mend=f"{mend}, or {DIGITS!r}", key="what.data") from None
        check_pictures(files, self.what.size)

    def prepare(self) -> None:
        """Decodes all pictures into the cache."""
        _ = self.pictures

    @cached_property
    def pictures(self) -> LabelledPictures:
        """The data set."""
        if self.what.data == DIGITS:
            return read_digits()
        return read_pictures(PictureFiles(Path(self.what.data)), self.what.size)

    def build_model(self) -> torch.nn.Module:
        from muster.apps.vision.classifiers import make_classifier

        return make_classifier(
            self.what.model.arch,
            len(self.pictures.classes),
            self.pictures.shape,
            width=self.what.model.width,
            mean=self.pictures.mean,
            deviation=self.pictures.deviation,
        )

    def training_data(self) -> Dataset[Any]:
        """Pictures, uint8 [channels, height, width], and their classes; ``labels`` has all classes."""
        from muster.apps.vision.labelled_samples import LabelledSamples

        usual: Literal["none", "crop-flip"] = "none" if self.what.data == DIGITS else "crop-flip"
        return LabelledSamples(self.pictures.train, self.what.augmentation or usual)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The mean cross-entropy in nats."""
        import torch.nn.functional as F

        pictures, labels = batch
        return F.cross_entropy(model(pictures), labels)

    def evaluation_data(self) -> Sequence[HeldOutClass]:
        test = self.pictures.test
        return [
            HeldOutClass(name, label, test.pixels[np.flatnonzero(test.labels == label)])
            for label, name in enumerate(self.pictures.classes)
        ]

    def evaluate(self, model: torch.nn.Module, item: HeldOutClass) -> dict[str, float]:
        """The share of a class that is recognized, and its mean cross-entropy in nats."""
        import torch.nn.functional as F

        scores = _scores(model, item.pixels)
        right = int((scores.argmax(1) == item.label).sum())
        labels = scores.new_full((item.samples,), item.label).long()
        return {"accuracy": right / item.samples, "cross_entropy": float(F.cross_entropy(scores, labels))}

    def metadata(self) -> dict[str, str]:
        from muster.apps.vision.classifiers import APP

        model, pictures = self.what.model, self.pictures
        described = {
            "arch": model.arch,
            "classes": pictures.classes,
            "shape": pictures.shape,
            "width": model.width,
            "mean": pictures.mean,
            "deviation": pictures.deviation,
        }
        return {"app": APP} | {key: json.dumps(value) for key, value in described.items()}

    def illustrate(self, model: torch.nn.Module, folder: Path) -> None:
        """A strip of held-out pictures that are taken for something else, the surest first."""
        from muster.apps.vision.mistakes import draw_mistakes

        test = self.pictures.test
        draw_mistakes(folder, test, _scores(model, test.pixels).softmax(1).numpy(), self.pictures.classes)


def _scores(model: torch.nn.Module, pixels: Pixels) -> torch.Tensor:
    """Scores on the CPU, float64 [n, classes], of uint8 [n, height, width, channels]."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [
            model(torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C")).to(device)).cpu().double()
            for part in np.split(pixels, range(_AT_ONCE, len(pixels), _AT_ONCE))
        ]
    model.train(was_training)
    return torch.cat(parts)
