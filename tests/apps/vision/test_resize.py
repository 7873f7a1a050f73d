"""Bicubic resizing is what the field's files and tables were made with."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from muster.apps.vision.quality import psnr_y
from muster.apps.vision.resize import (
    bicubic_downscale,
    bicubic_taps,
    bicubic_upscale,
    crop_to_multiple,
    cubic_kernel,
)

# Bicubic rows of the tables of SRCNN (arXiv:1501.00092), VDSR and EDSR papers: 33.66, 30.39, 28.42 dB; these
# are the values that the files give with Pillow's bicubic (shared data's README).
PUBLISHED_PSNR = {2: 33.64, 3: 30.39, 4: 28.42}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_value_of_the_low_resolution_files_of_set5_is_reproduced(set5, scale):
    for name, high, low in set5(scale):
        assert np.array_equal(bicubic_downscale(high, scale), low), name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_enlargement_of_set5_scores_as_published(set5, scale):
    ours = [psnr_y(high, bicubic_upscale(low, scale), scale) for _, high, low in set5(scale)]
    assert np.mean(ours) == pytest.approx(PUBLISHED_PSNR[scale], abs=0.03)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_published_score_also_follows_with_pillows_bicubic(set5, scale):
    """Oracle for the protocol (luma, rounding, shaving) apart from our own filter."""
    scores = []
    for _, high, low in set5(scale):
        enlarged = Image.fromarray(low).resize(high.shape[1::-1], Image.Resampling.BICUBIC)
        scores.append(psnr_y(high, np.asarray(enlarged), scale))
    assert np.mean(scores) == pytest.approx(PUBLISHED_PSNR[scale], abs=0.006)


def test_the_kernel_interpolates_and_reproduces_straight_lines():
    assert cubic_kernel([0, 1, -1, 2, 3]) == pytest.approx([1, 0, 0, 0, 0])
    assert cubic_kernel([0.5]) == pytest.approx([9 / 16])  # Keys 1981, equation 15 at s = 1/2
    taps = np.arange(-2, 4)
    for offset in (0.1, 0.25, 0.7):
        weights = cubic_kernel(offset - taps)
        assert weights.sum() == pytest.approx(1)
        assert weights @ taps == pytest.approx(offset)


@pytest.mark.parametrize(("size_in", "size_out", "factor"), [(12, 6, 1 / 2), (12, 4, 1 / 3), (5, 20, 4.0)])
def test_weights_sum_to_one_and_indices_stay_inside(size_in, size_out, factor):
    indices, weights = bicubic_taps(size_in, size_out, factor)
    assert weights.sum(axis=1) == pytest.approx(np.ones(size_out))
    assert indices.min() == 0
    assert indices.max() == size_in - 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_flat_picture_stays_flat(scale):
    flat = np.full((4 * scale, 5 * scale, 3), 93, np.uint8)
    assert np.array_equal(bicubic_downscale(flat, scale), np.full((4, 5, 3), 93))
    assert np.array_equal(bicubic_upscale(flat[:4, :5], scale), flat)


def test_grey_and_colour_agree_channel_by_channel(scene):
    image = scene(24, 36)
    for channel in range(3):
        assert np.array_equal(
            bicubic_downscale(image, 2)[..., channel], bicubic_downscale(image[..., channel], 2)
        )


def test_cropping_keeps_the_top_left(scene):
    image = scene(23, 30)
    assert np.array_equal(crop_to_multiple(image, 4), image[:20, :28])


def test_sides_that_the_scale_does_not_divide_are_refused(scene):
    with pytest.raises(ValueError, match="divisible by 3"):
        bicubic_downscale(scene(10, 12), 3)
