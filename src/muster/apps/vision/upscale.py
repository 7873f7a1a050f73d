"""Enlarging a user's own picture with a trained model: any size, tile by tile, no seams."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from muster.apps.vision.bicubic import bicubic_skip
from muster.apps.vision.edsr import EDSR
from muster.apps.vision.inference import default_tile, load_model, self_ensemble, to_pixels, to_tensor
from muster.apps.vision.model_file import HasModel
from muster.apps.vision.photographs import open_photograph, upright_8bit
from muster.apps.vision.png_stream import PngStream
from muster.apps.vision.tiling import enlarged_bands, tile_count
from muster.errors import DataError

_PROGRESS_AFTER_S: Final = 2.0
_LARGEST_SIDE: Final = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}

Pixels = npt.NDArray[np.uint8]
ModelOrRun = EDSR | HasModel | str | os.PathLike[str]


@overload
def upscale(
    model_or_run: ModelOrRun, image: Pixels, *, tile: int | None = None, self_ensemble: bool = False
) -> Pixels: ...


@overload
def upscale(
    model_or_run: ModelOrRun,
    image: Image.Image | str | os.PathLike[str],
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
) -> Image.Image: ...


def upscale(
    model_or_run: ModelOrRun, image: Any, *, tile: int | None = None, self_ensemble: bool = False
) -> Any:
    """Enlarges a picture by the model's scale.

    The orientation of EXIF is applied. Grey stays grey; transparency is enlarged by bicubic; 16-bit samples
    are reduced to 8.

    Arguments:
        model_or_run: an `EDSR`, a run folder (its path or a `RunFolder`), or a `model.safetensors`.
        image: a Pillow image, a file, or uint8 [height, width] or [height, width, channels] with 1 (grey),
            2 (grey
            and alpha), 3 (RGB) or 4 (RGBA) channels.
        tile: sides of a tile in pixels of ``image``; by default what keeps activations near 128 MiB.
        self_ensemble: average the 8 flips and rotations (Lim et al. 2017, section 3.3): better, 8 times the
            work.

    Returns:
        A Pillow image, or for an array an array of the same number of axes and channels.

    Raises:
        DataError: the picture or the model cannot be used; names the file.
        ValueError: an array that is no picture, or a tile below 1.
    """
    model = _model(model_or_run)
    if isinstance(image, np.ndarray):
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
            raise ValueError(
                f"want uint8 [height, width(, 1 to 4 channels)], not {image.dtype} {image.shape}"
            )
        enlarged = np.concatenate(list(_bands(model, pixels, tile, self_ensemble)))
        return enlarged[..., 0] if image.ndim == 2 else enlarged
    if isinstance(image, Image.Image):
        pixels = _pixels(image)
    else:
        with open_photograph(Path(image), any_size=True) as opened:
            pixels = _pixels(opened)
    enlarged = np.concatenate(list(_bands(model, pixels, tile, self_ensemble)))
    return Image.fromarray(enlarged[..., 0] if enlarged.shape[2] == 1 else enlarged)


def upscale_file(
    model_or_run: ModelOrRun,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    progress: bool = True,
) -> tuple[int, int]:
    """Enlarges a picture file into another; arguments as in `upscale`.

    A PNG is written row by row, so memory holds the source, one band of tiles and the activations of one
    tile. JPEG and WebP cannot be: the enlarged picture is held as 8 bits. The target appears when it is
    complete.

    Arguments:
        source: JPEG, PNG or WebP.
        target: .png, .jpg, .jpeg or .webp; replaced if it exists.
        progress: show a bar on standard error once it has taken two seconds.

    Returns:
        Width and height of the enlarged picture.

    Raises:
        DataError: source, target or model cannot be used; names the file.
    """
    model = _model(model_or_run)
    source, target = Path(source), Path(target)
    with open_photograph(source, any_size=True) as opened:
        profile = opened.info.get("icc_profile")
        pixels = _pixels(opened)
    height, width = pixels.shape[0] * model.scale, pixels.shape[1] * model.scale
    _refuse_target(target, height, width, pixels.shape[2])
    used_tile = tile or default_tile(model)
    with _progress(progress, source.name, tile_count(pixels.shape[0], pixels.shape[1], used_tile)) as advance:
        bands = _bands(model, pixels, used_tile, self_ensemble, advance)
        try:
            descriptor, draft = tempfile.mkstemp(prefix=".muster-", suffix=target.suffix, dir=target.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    if target.suffix.lower() == ".png":
                        stream = PngStream(file, width, height, pixels.shape[2], icc_profile=profile)
                        for band in bands:
                            stream.write(band)
                        stream.close()
                    else:
                        whole = np.concatenate(list(bands))
                        picture = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
                        kind = "WEBP" if target.suffix.lower() == ".webp" else "JPEG"
                        picture.save(file, kind, quality=95, icc_profile=profile)
                os.chmod(draft, 0o666 & ~_umask())
                os.replace(draft, target)
            finally:
                Path(draft).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{target}: it cannot be written ({error.strerror or error})") from error
    return width, height


def _bands(
    model: EDSR, pixels: Pixels, tile: int | None, ensemble: bool, on_tile: Callable[[], None] = lambda: None
) -> Iterator[Pixels]:
    """The enlarged picture in bands: uint8 [rows, width, channels], channels as in ``pixels`` [h, w, 1 to 4]."""
    if tile is not None and tile < 1:
        raise ValueError(f"a tile of {tile} pixels is too small; use 64 or more")
    predict = partial(self_ensemble, model) if ensemble else model
    grey, alpha = pixels.shape[2] <= 2, pixels.shape[2] in (2, 4)

    def enlarge(piece: Pixels) -> Pixels:
        colours = piece[..., : piece.shape[2] - alpha]
        result = to_pixels(predict(to_tensor(np.broadcast_to(colours, (*piece.shape[:2], 3)), model)))
        if grey:  # the mean of three channels that the network makes nearly equal
            result = np.rint(result.mean(axis=2, keepdims=True)).astype(np.uint8)
        if not alpha:
            return result
        opacity = to_pixels(bicubic_skip(to_tensor(piece[..., -1:], model), model.scale))
        return np.concatenate([result, opacity], axis=2)

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield from enlarged_bands(
                enlarge,
                pixels,
                scale=model.scale,
                tile=tile or default_tile(model),
                margin=model.receptive_radius,
                on_tile=on_tile,
            )
    finally:
        model.train(was_training)


def _model(model_or_run: ModelOrRun) -> EDSR:
    return model_or_run if isinstance(model_or_run, EDSR) else load_model(model_or_run)


def _pixels(image: Image.Image) -> Pixels:
    """[height, width, 1 to 4 channels], upright."""
    pixels = np.asarray(upright_8bit(image))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _refuse_target(target: Path, height: int, width: int, channels: int) -> None:
    suffix = target.suffix.lower()
    if suffix not in (".png", *_LARGEST_SIDE):
        raise DataError(f"{target}: no such format is written; name it .png, .jpg or .webp")
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist; make it first")
    if max(height, width) > _LARGEST_SIDE.get(suffix, 2**31 - 1):
        raise DataError(f"{target}: {suffix} cannot hold {width}x{height} pixels; name it .png")
    if suffix in (".jpg", ".jpeg") and channels in (2, 4):
        raise DataError(f"{target}: JPEG cannot hold the transparency of the source; name it .png or .webp")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _progress(wanted: bool, title: str, tiles: int) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each tile; the bar appears only when the work turns out to be long."""
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=tiles)
    started = time.monotonic()

    def advance() -> None:
        bar.advance(task)
        if wanted and not bar.live.is_started and time.monotonic() - started > _PROGRESS_AFTER_S:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
