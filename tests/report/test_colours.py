"""The pillars' colours can be told apart, whatever colours the reader sees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from muster.report.colours import PILLAR_COLOURS

color = pytest.importorskip("skimage.color")

# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, severity 1.0, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_pillars_differ_by_25_cielab_units_in_every_kind_of_sight(sight: str) -> None:
    seen = []
    for code in PILLAR_COLOURS.values():
        encoded = np.array([int(code[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        mixed = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
        again = np.where(mixed <= 0.0031308, mixed * 12.92, 1.055 * mixed ** (1 / 2.4) - 0.055)
        seen.append(color.rgb2lab(again[None, None])[0, 0])
    assert min(np.linalg.norm(one - two) for one, two in itertools.combinations(seen, 2)) >= 25
