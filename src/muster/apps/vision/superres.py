"""Single-image super-resolution as an application: the ``what`` of its job files, and how ranks train it.

Importing this module does not import torch, so that `muster check` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from muster.apps.vision.photographs import find_photographs, inspect_photograph
from muster.apps.vision.samples import SAMPLE_PHOTOS, SAMPLES, sample_paths
from muster.errors import DataError, JobError
from muster.spec import Section, What, refuse
from muster.training.application import Application

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from muster.apps.vision.photo_cache import CachedPhotograph, PhotoCache

# A folder without an evaluation folder holds out a tenth, but no more than this many: evaluation enlarges
# them whole.
_MOST_HELD_OUT = 10
_MOST_STRIPS = 4
_SSIM_WINDOW = 11


class SuperResolutionModel(Section):
    """The network."""

    arch: Literal["edsr-small", "edsr-baseline", "edsr-full"] = "edsr-small"
    """`edsr-small` (8 blocks of 32 features on top of bicubic, for laptops), `edsr-baseline` (16 of 64, as
    published) or `edsr-full` (32 of 256, as published)."""

    scale: Literal[2, 3, 4] = 2
    """How many times larger the result is on each side."""


class SuperResolutionWhat(What):
    """The ``what`` section of a super-resolution job."""

    model: SuperResolutionModel = SuperResolutionModel()
    """The network and its scale."""

    data: str = Field(default=SAMPLE_PHOTOS, min_length=1, examples=["~/photographs"])
    """`sample-photos` (six colour photographs that scikit-image and scikit-learn carry), or a folder of JPEG,
    PNG or WebP photographs, searched recursively; a relative path starts at the working directory."""

    evaluation: str | None = Field(default=None, min_length=1, examples=["~/held-out"])
    """A folder of held-out photographs. Without it: chelsea and china for `sample-photos`; for a folder, a
    tenth of its photographs (at least 1, at most 10), evenly spaced in order of name."""

    patch: int = Field(default=96, ge=8)
    """Sides of a training patch in pixels of the high resolution; a multiple of the scale."""

    patches_per_photograph: int = Field(default=64, ge=1)
    """Random patches of each photograph in one epoch; sets how long an epoch is."""

    @field_validator("data", "evaluation")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        # The ranks and a later `muster resume` may have another working directory.
        if value is None or value == SAMPLE_PHOTOS:
            return value
        return str(Path(value).expanduser().absolute())

    @field_validator("patch")
    @classmethod
    def _patch_fits_scale(cls, patch: int, info: ValidationInfo) -> int:
        model = info.data.get("model")
        if model is not None and patch % model.scale:  # None: refused already
            near = patch - patch % model.scale + model.scale
            raise refuse(
                f"found {patch}, which the scale {model.scale} does not divide",
                mend=f"expected a multiple of {model.scale}, such as {near}",
            )
        return patch


class SuperResolution(Application):
    """Trains an `EDSR` with L1 loss on random patches; measures luma PSNR and SSIM beside bicubic."""

    What: ClassVar[type[What]] = SuperResolutionWhat
    quality: ClassVar[str | None] = "psnr_y"
    what: SuperResolutionWhat

    def check(self, samples_per_step: int) -> None:
        """Refuses folders and photographs that cannot be used, and patches larger than the smallest photograph."""
        training, held_out = self._split()
        smallest = [inspect_photograph(path, name) for name, path in training.items()]
        photograph = min(smallest, key=lambda one: min(one.width, one.height))
        scale = self.what.model.scale
        largest_patch = min(photograph.width, photograph.height) // scale * scale
        if self.what.patch > largest_patch:
            raise JobError(
                f"a patch of {self.what.patch} pixels does not fit into the smallest photograph, "
                f"{photograph.path} ({photograph.width}x{photograph.height})",
                mend=f"use at most {largest_patch} or remove that photograph",
                key="what.patch",
            )
        for name, path in held_out.items():
            one = inspect_photograph(path, name)
            if min(one.width, one.height) // scale * scale < _SSIM_WINDOW + 2 * scale:
                raise JobError(
                    f"the held-out photograph {path} ({one.width}x{one.height}) is too small to measure on",
                    mend=f"use photographs of at least {_SSIM_WINDOW + 3 * scale} pixels",
                    key="what.evaluation" if self.what.evaluation else "what.data",
                )

    def prepare(self) -> None:
        """Decodes all photographs into the cache."""
        for paths in self._split():
            self._cached(paths)

    def build_model(self) -> torch.nn.Module:
        from muster.apps.vision.edsr import EDSR

        return EDSR(self.what.model.arch, self.what.model.scale)

    def training_data(self) -> Dataset[Any]:
        from muster.apps.vision.patches import Patches

        return Patches(self._cached(self._split()[0]), self.what.patch, self.what.patches_per_photograph)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Mean absolute error over pixels in 0..1, the loss of the paper."""
        import torch.nn.functional as F

        dtype = next(model.parameters()).dtype
        lr, hr = (part.to(dtype) / 255 for part in batch)
        return F.l1_loss(model(lr), hr)

    def evaluation_data(self) -> Sequence[CachedPhotograph]:
        return self._cached(self._split()[1])

    def evaluate(self, model: torch.nn.Module, item: CachedPhotograph) -> dict[str, float]:
        """Luma PSNR (dB) and SSIM of one photograph, of the model and of bicubic, and the gain in PSNR (dB).

        Both are rounded to 8 bits. Bicubic is `muster.apps.vision.bicubic.bicubic_skip` on the same tiles,
        so the gain of an untrained `edsr-small` is exactly 0.
        """
        from muster.apps.vision import quality

        enlarged, bicubic = _enlarge_both(model, item)
        scale = self.what.model.scale
        psnr, psnr_bicubic = (quality.psnr_y(item.hr, image, scale) for image in (enlarged, bicubic))
        return {
            "psnr_y": psnr,
            "ssim_y": quality.ssim_y(item.hr, enlarged, scale),
            "psnr_y_bicubic": psnr_bicubic,
            "ssim_y_bicubic": quality.ssim_y(item.hr, bicubic, scale),
            "psnr_y_gain": psnr - psnr_bicubic,
        }

    def metadata(self) -> dict[str, str]:
        from muster.apps.vision.inference import APP

        return {"app": APP, "arch": self.what.model.arch, "scale": str(self.what.model.scale)}

    def illustrate(self, model: torch.nn.Module, folder: Path) -> None:
        """A strip for each of the first held-out photographs: low resolution, bicubic, EDSR, original."""
        from muster.apps.vision.strips import draw_strips

        photographs = self.evaluation_data()
        chosen = [photographs[k] for k in range(min(len(photographs), _MOST_STRIPS))]
        draw_strips(folder, [(item, *_enlarge_both(model, item)) for item in chosen], self.what.model.arch)

    def _split(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """The files to train on and those held out, by name."""
        if self.what.data == SAMPLE_PHOTOS:
            paths = sample_paths()
            held_out_names = {sample.name for sample in SAMPLES if sample.held_out}
        else:
            paths = _photographs_in(self.what.data, "what.data")
            held_out_names = set() if self.what.evaluation else _evenly_spaced(list(paths))
            if not self.what.evaluation and len(paths) < 2:
                raise JobError(
                    f"{self.what.data} holds a single photograph, so none is left to measure on",
                    mend="add photographs, or name a folder of others in what.evaluation",
                    key="what.data",
                )
        training = {name: path for name, path in paths.items() if name not in held_out_names}
        if self.what.evaluation is None:
            return training, {name: paths[name] for name in paths if name in held_out_names}
        held_out = _photographs_in(self.what.evaluation, "what.evaluation")
        both = {path.resolve() for path in training.values()} & {path.resolve() for path in held_out.values()}
        if both:
            raise JobError(
                f"{min(both)} is in both the training and the evaluation photographs",
                mend="use folders that do not overlap",
                key="what.evaluation",
            )
        return training, held_out

    def _cached(self, paths: dict[str, Path]) -> PhotoCache:
        from muster.apps.vision.photo_cache import PhotoCache

        return PhotoCache(paths, self.what.model.scale)


def _photographs_in(value: str, key: str) -> dict[str, Path]:
    """The photographs below a folder, by their path in it; a folder without any is a fault of the job."""
    folder = Path(value)
    mend = "give a folder of JPEG, PNG or WebP photographs" + (
        f" or {SAMPLE_PHOTOS!r}" if key == "what.data" else ""
    )
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise JobError(f"{folder} {what}", mend=mend, key=key)
    try:
        paths = find_photographs(folder)
    except DataError:
        raise JobError(f"{folder} holds no photograph", mend=mend, key=key) from None
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _evenly_spaced(names: list[str]) -> set[str]:
    count = min(max(len(names) // 10, 1), _MOST_HELD_OUT)
    return {names[(2 * k + 1) * len(names) // (2 * count)] for k in range(count)}


def _enlarge_both(model: torch.nn.Module, item: CachedPhotograph) -> tuple[Any, Any]:
    """The photograph enlarged by the model and by bicubic, from the same tensors: uint8 [h, w, 3] each."""
    import numpy as np
    import torch

    from muster.apps.vision.bicubic import bicubic_skip
    from muster.apps.vision.inference import default_tile, to_pixels, to_tensor
    from muster.apps.vision.tiling import enlarged_bands

    network: Any = getattr(model, "module", model)  # also when wrapped by DistributedDataParallel

    def enlarge(lr: Any) -> Any:
        x = to_tensor(lr, network)
        return np.concatenate([to_pixels(network(x)), to_pixels(bicubic_skip(x, network.scale))], axis=2)

    with torch.inference_mode():
        bands = enlarged_bands(
            enlarge, item.lr, scale=network.scale, tile=default_tile(network), margin=network.receptive_radius
        )
        both = np.concatenate(list(bands))
    return both[..., :3], both[..., 3:]
