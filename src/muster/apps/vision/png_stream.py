"""A PNG written row by row, so that a picture larger than memory can be saved.

Follows the PNG specification (third edition, W3C 2025, https://www.w3.org/TR/png-3/): 8 bits a sample, no
interlace; each row's filter is the one with the least sum of absolute differences, as the specification
recommends.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO, Final

import numpy as np
import numpy.typing as npt

_COLOUR_TYPE: Final = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels
_LARGEST_SIDE: Final = 2**31 - 1
_CHUNK_BYTES: Final = 2**16


class PngStream:
    """Writes the rows of one picture to a file, from top to bottom.

    Arguments:
        file: open for writing bytes.
        width, height: pixels.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        icc_profile: a colour profile to embed.
        compression: zlib's level, 0..9.
    """

    def __init__(
        self,
        file: IO[bytes],
        width: int,
        height: int,
        channels: int,
        *,
        icc_profile: bytes | None = None,
        compression: int = 6,
    ) -> None:
        if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
            raise ValueError(f"PNG cannot hold {width}x{height} pixels")
        self._file, self._channels, self._rows_left = file, channels, height
        self._row_bytes = width * channels
        self._above = np.zeros(self._row_bytes, np.uint8)
        self._compressor = zlib.compressobj(compression, strategy=zlib.Z_FILTERED)
        self._compressed = b""
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0))
        if icc_profile:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))

    def write(self, rows: npt.NDArray[np.uint8]) -> None:
        """Adds rows.

        Arguments:
            rows: uint8 [n, width, channels].

        Raises:
            ValueError: rows of another width, or more rows than the picture has.
        """
        flat = rows.reshape(len(rows), rows.shape[1] * rows.shape[2])
        if flat.shape[1] != self._row_bytes or len(flat) > self._rows_left:
            raise ValueError(
                f"rows of {flat.shape} bytes do not fit a picture with {self._rows_left} rows left"
            )
        self._rows_left -= len(flat)
        for row in flat:
            self._compressed += self._compressor.compress(_filtered(row, self._above, self._channels))
            self._above = row
            if len(self._compressed) >= _CHUNK_BYTES:
                self._chunk(b"IDAT", self._compressed)
                self._compressed = b""
        self._above = self._above.copy()  # so that the band it came from can be freed

    def close(self) -> None:
        """Ends the picture; the file stays open.

        Raises:
            ValueError: rows are missing.
        """
        if self._rows_left:
            raise ValueError(f"{self._rows_left} rows are missing")
        self._chunk(b"IDAT", self._compressed + self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind + content)
        self._file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _filtered(row: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], channels: int) -> bytes:
    """A row behind its filter's number (PNG specification, section 9): uint8 arithmetic is modulo 256 "
    "as wanted."""
    left = np.zeros_like(row)
    left[channels:] = row[:-channels]
    corner = np.zeros_like(row)
    corner[channels:] = above[:-channels]
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    near_a, near_b, near_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((near_a <= near_b) & (near_a <= near_c), left, np.where(near_b <= near_c, above, corner))
    average = ((a + b) // 2).astype(np.uint8)
    candidates = [row, row - left, row - above, row - average, row - paeth]
    costs = [int(np.abs(candidate.view(np.int8).astype(np.int16)).sum()) for candidate in candidates]
    best = int(np.argmin(costs))
    return bytes([best]) + candidates[best].tobytes()
