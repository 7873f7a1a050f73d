"""A PNG written in bands is what any reader expects."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from muster.apps.vision.png_stream import PngStream

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pillow_reads_back_every_value(scene, channels):
    image = np.concatenate([scene(37, 29), scene(37, 29, seed=1)], axis=2)[..., :channels]
    file = io.BytesIO()
    stream = PngStream(file, 29, 37, channels, icc_profile=b"a profile")
    for band in np.array_split(image, [5, 5, 30]):
        stream.write(band)
    stream.close()
    picture = Image.open(file)
    picture.verify()
    picture = Image.open(file)
    assert picture.mode == MODES[channels]
    assert picture.info["icc_profile"] == b"a profile"
    assert np.array_equal(np.asarray(picture).reshape(image.shape), image)


def test_filters_make_it_about_as_small_as_pillows(scene):
    y, x = np.mgrid[:120, :160]
    smooth = np.stack([x + y, 2 * y, 255 - x], axis=-1).astype(np.uint8)
    for image in (smooth, scene(120, 160)):
        ours, theirs = io.BytesIO(), io.BytesIO()
        stream = PngStream(ours, 160, 120, 3)
        stream.write(image)
        stream.close()
        Image.fromarray(image).save(theirs, "PNG")
        assert len(ours.getvalue()) < 1.05 * len(theirs.getvalue()) + 100


def test_rows_that_do_not_fit_or_are_missing_are_refused():
    stream = PngStream(io.BytesIO(), 4, 3, 3)
    with pytest.raises(ValueError, match="do not fit"):
        stream.write(np.zeros((1, 5, 3), np.uint8))
    stream.write(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="1 rows are missing"):
        stream.close()
    with pytest.raises(ValueError, match="do not fit"):
        stream.write(np.zeros((2, 4, 3), np.uint8))
