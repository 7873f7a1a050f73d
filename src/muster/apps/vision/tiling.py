"""Enlarging an image tile by tile, without seams, in memory that depends on the tile and not on the image.

Each tile is enlarged together with a margin of its surroundings that is then cut away. A margin of at least
the receptive radius of the enlargement makes every pixel equal to that of the whole image at once; at the
image's own border a tile ends where the image ends, so padding there is what it would have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

#: Enlarges one piece: [h, w, channels] to [scale · h, scale · w, any number of channels], any dtypes.
Enlarge = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def tile_count(height: int, width: int, tile: int) -> int:
    """How many tiles an image has."""
    return math.ceil(height / tile) * math.ceil(width / tile)


def enlarged_bands(
    enlarge: Enlarge,
    image: npt.NDArray[Any],
    *,
    scale: int,
    tile: int,
    margin: int,
    on_tile: Callable[[], None] = lambda: None,
) -> Iterator[npt.NDArray[Any]]:
    """The enlarged image, as bands from top to bottom.

    Arguments:
        enlarge: enlarges one piece by ``scale``.
        image: [height, width, channels].
        scale: the factor.
        tile: sides of a tile in pixels of ``image``.
        margin: pixels of ``image`` around a tile that its enlargement may look at.
        on_tile: called after each tile.

    Yields:
        [scale · rows, scale · width, channels], rows ≤ ``tile``.
    """
    height, width = image.shape[:2]
    for top in range(0, height, tile):
        bottom = min(top + tile, height)
        outer_top = max(top - margin, 0)
        pieces = []
        for left in range(0, width, tile):
            right = min(left + tile, width)
            outer_left = max(left - margin, 0)
            piece = enlarge(image[outer_top : bottom + margin, outer_left : right + margin])
            rows = slice(scale * (top - outer_top), scale * (bottom - outer_top))
            columns = slice(scale * (left - outer_left), scale * (right - outer_left))
            pieces.append(piece[rows, columns].copy())  # a copy, so that the margins are not kept alive
            on_tile()
        yield np.concatenate(pieces, axis=1)
