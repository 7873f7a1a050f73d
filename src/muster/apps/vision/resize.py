"""Bicubic resizing in MATLAB's `imresize` convention, as the tables of the super-resolution field assume.

Keys' cubic convolution kernel with a = −0.5 (Keys 1981, doi:10.1109/TASSP.1981.1163711). Shrinking
stretches the kernel by the factor (antialiasing), so that every low-resolution sample averages the 4·scale
nearest samples of each axis. Pixels beyond the border repeat the border. The vertical pass comes first, and
its result is rounded to 8 bits before the horizontal one, because that is what made the low-resolution
files everybody compares on: with these choices `bicubic_downscale` gives
every value of the Set5 files. Pillow's bicubic differs from them by up to 14 grey levels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

KEYS_A: Final = -0.5


def cubic_kernel(distance: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = −0.5, zero from distance 2 on.

    Arguments:
        distance: any shape, in pixels.

    Returns:
        float64 of the same shape.
    """
    x = np.abs(np.asarray(distance, dtype=np.float64))
    near = (KEYS_A + 2) * x**3 - (KEYS_A + 3) * x**2 + 1
    far = KEYS_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_taps(
    size_in: int, size_out: int, factor: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Which input samples make each output sample along one axis, and with what weights.

    Arguments:
        size_in: samples along the axis.
        size_out: samples wanted.
        factor: size out / size in, exactly; below 1 the kernel is widened by 1/factor.

    Returns:
        indices [size_out, taps], clamped into the axis (replicated edges), and weights [size_out, taps],
        rows sum to 1.
    """
    stretch = min(factor, 1.0)
    width = 4.0 / stretch
    # Centres in input coordinates: the areas of the first and of the last pixels of both grids line up.
    centre = (np.arange(size_out) + 0.5) / factor - 0.5
    left = np.floor(centre - width / 2).astype(np.intp)
    indices = left[:, None] + np.arange(int(np.ceil(width)) + 2)
    weights = stretch * cubic_kernel(stretch * (centre[:, None] - indices))
    used = np.any(weights != 0, axis=0)  # MATLAB too drops columns of taps that nobody uses
    weights = weights[:, used] / weights.sum(axis=1, keepdims=True)
    return np.clip(indices[:, used], 0, size_in - 1), weights


def bicubic_downscale(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """An image shrunk by a whole factor, bit for bit as the field's low-resolution files were made.

    Arguments:
        image: uint8 [height, width] or [height, width, channels]; both sides divisible by ``scale``
            (see `crop_to_multiple`).
        scale: 2, 3, 4 or any other whole factor.

    Returns:
        uint8 [height / scale, width / scale(, channels)].

    Raises:
        ValueError: a side is not divisible by ``scale``, or the image is not uint8.
    """
    if image.dtype != np.uint8 or image.shape[0] % scale or image.shape[1] % scale:
        raise ValueError(f"want uint8 with sides divisible by {scale}, not {image.dtype} {image.shape}")
    return _resize(image, image.shape[0] // scale, image.shape[1] // scale, 1 / scale)


def bicubic_upscale(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """An image enlarged by a whole factor: the baseline that super-resolution has to beat.

    `muster.apps.vision.bicubic.bicubic_skip` is the same filter on tensors, without the rounding between
    the passes.

    Arguments:
        image: uint8 [height, width] or [height, width, channels].
        scale: a whole factor.

    Returns:
        uint8 [height · scale, width · scale(, channels)].
    """
    return _resize(image, image.shape[0] * scale, image.shape[1] * scale, float(scale))


def crop_to_multiple(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """The largest top-left part of an image whose sides ``scale`` divides; a view."""
    return image[: image.shape[0] - image.shape[0] % scale, : image.shape[1] - image.shape[1] % scale]


def to_uint8(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Grey levels rounded half up, as MATLAB rounds them, and clipped to 0..255."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _resize(image: npt.NDArray[np.uint8], height: int, width: int, factor: float) -> npt.NDArray[np.uint8]:
    rows = _along_rows(image, height, factor)
    return _along_rows(rows.swapaxes(0, 1), width, factor).swapaxes(0, 1).copy()


def _along_rows(image: npt.NDArray[np.uint8], size: int, factor: float) -> npt.NDArray[np.uint8]:
    indices, weights = bicubic_taps(image.shape[0], size, factor)
    total = np.zeros((size, *image.shape[1:]))
    column = (size,) + (1,) * (image.ndim - 1)
    for tap in range(indices.shape[1]):  # one tap at a time keeps memory at one image, not one per tap
        total += weights[:, tap].reshape(column) * image[indices[:, tap]]
    return to_uint8(total)
