"""PSNR and SSIM agree with scikit-image, luma with MATLAB's definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from muster.apps.vision import quality

metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is the oracle here")


@pytest.fixture
def pair(scene):
    image = scene(61, 74)
    noisy = np.clip(image + np.random.default_rng(1).normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    return image, noisy


def test_luma_runs_from_16_to_235():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    # MATLAB: rgb2ycbcr(uint8([0 0 0; 255 255 255; 255 0 0; ...]))
    assert quality.luma(colours).tolist() == [[16, 235, 81, 145, 41]]


@pytest.mark.parametrize("shave", [0, 2, 4])
def test_psnr_agrees_with_scikit_image(pair, shave):
    y0, y1 = (quality.luma(image)[shave : 61 - shave, shave : 74 - shave] for image in pair)
    expected = metrics.peak_signal_noise_ratio(y0, y1, data_range=255)
    assert quality.psnr_y(*pair, shave) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shave", [0, 2, 4])
def test_ssim_agrees_with_scikit_image(pair, shave):
    y0, y1 = (quality.luma(image)[shave : 61 - shave, shave : 74 - shave] for image in pair)
    expected = metrics.structural_similarity(
        y0, y1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert quality.ssim_y(*pair, shave) == pytest.approx(expected, abs=1e-10)


def test_equal_images_are_perfect(pair):
    assert quality.psnr_y(pair[0], pair[0], 2) == math.inf
    assert quality.ssim_y(pair[0], pair[0], 2) == pytest.approx(1)


def test_an_error_of_one_grey_level_is_48_13_db():
    grey = np.full((20, 20), 100.0)
    assert quality.psnr(grey, grey + 1) == pytest.approx(20 * math.log10(255))


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="11x11"):
        quality.ssim(np.zeros((10, 40)), np.zeros((10, 40)))
