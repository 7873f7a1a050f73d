"""How MDS shards encode the values of a column."""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from muster.pillars.io.sources._decoders import decode_image, decode_json, decode_text

_NUMBERS = frozenset(
    "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64".split()  # noqa: SIM905
)
# An array whose type is not fixed for the column begins with a byte that says it.
_ARRAY_TYPES = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    18: "float16",
    32: "uint32",
    33: "int32",
    34: "float32",
    64: "uint64",
    65: "int64",
    66: "float64",
}


def column_decoder(encoding: str) -> Callable[[bytes], Any]:
    """The function from a column's bytes to its value.

    Raises:
        ValueError: the encoding is not known, or runs code when it is read.
    """
    name, _, argument = encoding.partition(":")
    plain: dict[str, Callable[[bytes], Any]] = {
        "bytes": bytes,
        "str": decode_text,
        "int": _int64,
        "str_int": _decimal_int,
        "str_float": _decimal_float,
        "str_decimal": _decimal,
        "json": decode_json,
        "jpeg": decode_image,
        "jpeg_array": functools.partial(_list, decode_image, 0),
        "jpegarray": functools.partial(_list, decode_image, 0),
        "list[jpeg]": functools.partial(_list, decode_image, 4),
        "list[png]": functools.partial(_list, decode_image, 4),
        "list[pil]": functools.partial(_list, _raw_image, 4),
        "png": decode_image,
        "pil": _raw_image,
    }
    if name in plain:
        return plain[name]
    if name in _NUMBERS:
        return functools.partial(_number, name)
    if name == "ndarray":
        dtype, _, shape = argument.partition(":")
        return functools.partial(_array, dtype, tuple(map(int, shape.split(","))) if shape else ())
    if name == "pkl":
        raise ValueError(
            "a pickle, which runs code when it is read; pass a decoder of your own for it with decode="
        )
    raise ValueError(f"encoding {encoding} is not known; pass a decoder for it with decode=")


def _int64(stored: bytes) -> int:
    return int(_number("int64", stored))


def _number(dtype: str, stored: bytes) -> Any:
    (value,) = np.frombuffer(stored, np.dtype(dtype).newbyteorder("<"))
    return value


def _decimal_int(stored: bytes) -> int:
    return int(decode_text(stored))


def _decimal_float(stored: bytes) -> float:
    return float(decode_text(stored))


def _decimal(stored: bytes) -> Decimal:
    return Decimal(decode_text(stored))


def _raw_image(stored: bytes) -> npt.NDArray[np.uint8]:
    """Width, height and length of the mode (``uint32`` each), the mode, the pixels."""
    from PIL import Image

    width, height, length = np.frombuffer(stored[:12], "<u4").tolist()
    mode = stored[12 : 12 + length].decode()
    image = Image.frombytes(mode, (width, height), stored[12 + length :])
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _array(dtype: str, shape: tuple[int, ...], stored: bytes) -> npt.NDArray[Any]:
    """The type (a byte) and the shape (a byte, then its numbers) unless the column fixes them, then the values."""
    at = 0
    if not dtype:
        dtype = _ARRAY_TYPES[stored[at]]
        at += 1
    if not shape:
        axes, width = stored[at] >> 2, 1 << (stored[at] & 3)
        at += 1
        shape = tuple(np.frombuffer(stored[at : at + axes * width], f"<u{width}").tolist())
        at += axes * width
    return np.frombuffer(stored, np.dtype(dtype).newbyteorder("<"), offset=at).reshape(shape).copy()


def _list(decode: Callable[[bytes], Any], skipped: int, stored: bytes) -> list[Any]:
    """After ``skipped`` bytes that mean nothing their number, the length of each (``uint32``), then each."""
    (count,) = np.frombuffer(stored, "<u4", 1, skipped).tolist()
    lengths = np.frombuffer(stored, "<u4", count, skipped + 4)
    ends = np.cumsum(lengths, dtype=np.int64) + skipped + 4 + 4 * count
    return [
        decode(stored[end - length : end])
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
    ]
