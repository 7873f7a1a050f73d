"""`digits`: the 1,797 handwritten digits that the scikit-learn package carries, 8×8 pixels of 17 levels of grey.

They are the test part of Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI machine learning repository,
1998). scikit-learn is not imported (that takes seconds): its file is read, and fixed by its SHA-256.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from muster.apps.vision.labelled_pictures import LabelledPictures, Pictures, channel_statistics
from muster.apps.vision.samples import Sample, verified

#: The name by which a job asks for them.
DIGITS: Final = "digits"

_FILE: Final = Sample(
    DIGITS,
    "scikit-learn",
    "sklearn",
    "datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
_EVERY: Final = 5


def check_digits() -> None:
    """Makes sure that they are there.

    Raises:
        MissingExtra, DataError: as `muster.apps.vision.samples.sample_paths`.
    """
    verified(_FILE, DIGITS)


def read_digits() -> LabelledPictures:
    """The digits: of every class each fifth one is held out, in the order of the file; levels 0..16 become 0..255.

    Raises:
        MissingExtra, DataError: as `check_digits`.
    """
    table = np.loadtxt(verified(_FILE, DIGITS), delimiter=",", dtype=np.int64)
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1]
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held_out[np.flatnonzero(labels == digit)[_EVERY - 1 :: _EVERY]] = True
    train, test = (Pictures(pixels[chosen], labels[chosen]) for chosen in (~held_out, held_out))
    return LabelledPictures(tuple(map(str, range(10))), train, test, *channel_statistics(train.pixels))
