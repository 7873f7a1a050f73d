"""PSNR and SSIM on luma, as super-resolution papers report them.

Both compare the Y channel of ITU-R BT.601 in studio range (16..235), rounded to whole grey levels as
MATLAB's `rgb2ycbcr` does, with ``scale`` pixels shaved off every border. SSIM is that of Wang et al. 2004
(doi:10.1109/TIP.2003.819861): an 11×11 Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03, only windows
that lie inside the image.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

_LUMA: Final = np.array([65.481, 128.553, 24.966]) / 255
_PEAK: Final = 255.0
_WINDOW_RADIUS: Final = 5
_WINDOW_SIGMA: Final = 1.5


def luma(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The Y channel of BT.601 in whole grey levels 16..235.

    Arguments:
        image: uint8 [height, width, 3], RGB.

    Returns:
        float64 [height, width].
    """
    return np.floor(image @ _LUMA + 16.5)


def psnr(reference: npt.NDArray[np.floating], test: npt.NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 255; infinite for equal images.

    Arguments:
        reference, test: the same shape, grey levels.
    """
    error = float(np.mean((reference - test) ** 2))
    return math.inf if error == 0 else 10 * math.log10(_PEAK**2 / error)


def ssim(reference: npt.NDArray[np.floating], test: npt.NDArray[np.floating]) -> float:
    """Mean structural similarity over all windows inside the image, at most 1.

    Arguments:
        reference, test: float [height, width], grey levels; both sides at least 11.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(reference.shape) < 2 * _WINDOW_RADIUS + 1:
        raise ValueError(f"SSIM needs at least 11x11 pixels, not {reference.shape[1]}x{reference.shape[0]}")
    x, y = reference.astype(np.float64), test.astype(np.float64)
    mean_x, mean_y, xx, yy, xy = _gaussian_mean(np.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    covariance = xy - mean_x * mean_y
    variances = (xx - mean_x**2) + (yy - mean_y**2)
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))))


def psnr_y(reference: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], shave: int) -> float:
    """PSNR in dB on luma, ``shave`` pixels cut off every border.

    Arguments:
        reference, test: uint8 [height, width, 3], RGB.
        shave: pixels, the scale in papers.
    """
    return psnr(_shaved_luma(reference, shave), _shaved_luma(test, shave))


def ssim_y(reference: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], shave: int) -> float:
    """SSIM on luma, ``shave`` pixels cut off every border; arguments as in `psnr_y`."""
    return ssim(_shaved_luma(reference, shave), _shaved_luma(test, shave))


def _shaved_luma(image: npt.NDArray[np.uint8], shave: int) -> npt.NDArray[np.float64]:
    height, width = image.shape[:2]
    return luma(image[shave : height - shave, shave : width - shave])


def _gaussian_mean(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian-weighted means over the windows inside: [n, h, w] to [n, h − 10, w − 10]."""
    offsets = np.arange(-_WINDOW_RADIUS, _WINDOW_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _WINDOW_SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        size = images.shape[axis] - 2 * _WINDOW_RADIUS
        shifted = (images.take(range(k, k + size), axis=axis) for k in range(weights.size))
        images = sum((w * part for w, part in zip(weights, shifted, strict=True)), start=np.zeros(1))
    return images
