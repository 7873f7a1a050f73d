"""What stored bytes are turned into, by the extension of their name.

=========================================== ==========================================================
extension                                   sample
=========================================== ==========================================================
jpg jpeg png bmp gif webp tif tiff ppm ...  ``uint8`` array of shape (height, width, 3), RGB
txt text transcript                         str (UTF-8)
cls class count index inx id                int
json jsn                                    what the JSON says
npy                                         array
npz                                         dict of arrays
pt pth                                      what ``torch.load(weights_only=True)`` gives
safetensors                                 dict of tensors
any other                                   bytes
=========================================== ==========================================================

The extensions are those of the WebDataset convention (Aizman, Maltby and Breuel 2019, "High Performance I/O For Large Scale
Deep Learning"). Pickles are refused: reading one runs whatever code its writer put there.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from muster.errors import DataError

Decoder = Callable[[bytes], Any]
Decode = Decoder | Mapping[str, Decoder] | None

IMAGE_EXTENSIONS = (
    "jpg",
    "jpeg",
    "png",
    "bmp",
    "gif",
    "webp",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
"""Extensions that are taken for images."""

UNSAFE_EXTENSIONS = frozenset({"pkl", "pickle", "pyd", "joblib"})
"""Extensions of formats that run code when they are read."""


def decode_image(
    stored: bytes | memoryview, *, mode: str = "RGB", layout: Literal["HWC", "CHW"] = "HWC"
) -> npt.NDArray[np.uint8]:
    """An image by Pillow, its first frame; an orientation in its EXIF data is not applied, as in torchvision.

    Arguments:
        stored: the image file.
        mode: ``RGB``, or another of Pillow's modes of 8 bits per channel, such as ``L`` or ``RGBA``.
        layout: ``HWC`` or ``CHW``.

    Returns:
        Writable array, ``uint8``, of shape (height, width, channels) or (channels, height, width); without the axis
        of channels if ``mode`` has one channel.

    Raises:
        OSError: truncated, or no image. (Pillow cannot tell all damage within the compressed data of a JPEG.)
        ValueError: more than 8 bits per channel, or far more pixels than a photograph has.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(stored))
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(
                f"pixels of more than 8 bits (mode {image.mode}); decode it with a function of your own"
            )
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if layout == "CHW" and pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return pixels


def decode_text(stored: bytes | memoryview) -> str:
    """UTF-8 text."""
    return str(stored, "utf-8")


def decode_integer(stored: bytes | memoryview) -> int:
    """An integer in decimal digits."""
    return int(str(stored, "ascii"))


def decode_json(stored: bytes | memoryview) -> Any:
    """A JSON document."""
    return json.loads(str(stored, "utf-8"))


def decode_array(stored: bytes | memoryview) -> Any:
    """An array in NumPy's format, or a dict of them (npz); arrays of objects are refused."""
    loaded = np.load(io.BytesIO(stored), allow_pickle=False)
    return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded


def decode_tensors(stored: bytes | memoryview) -> Any:
    """What ``torch.save`` wrote, restricted to tensors and plain containers of them."""
    import pickle

    import torch

    try:
        return torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def decode_safetensors(stored: bytes | memoryview) -> Any:
    """A dict of tensors in the safetensors format."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(bytes(stored))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(IMAGE_EXTENSIONS, decode_image),
    **dict.fromkeys(("txt", "text", "transcript"), decode_text),
    **dict.fromkeys(("cls", "class", "count", "index", "inx", "id"), decode_integer),
    **dict.fromkeys(("json", "jsn"), decode_json),
    **dict.fromkeys(("npy", "npz"), decode_array),
    **dict.fromkeys(("pt", "pth"), decode_tensors),
    "safetensors": decode_safetensors,
}


def register_decoder(extension: str, decoder: Decoder) -> None:
    """Makes ``decoder`` the one for an extension, in this process and those forked from it afterwards.

    Arguments:
        extension: without a dot, such as ``flac``; upper and lower case are the same.
        decoder: a function of the stored bytes; it raises ValueError or OSError for bytes that are no sample.
    """
    _DECODERS[extension.lower().lstrip(".")] = decoder


def decoder_for(extension: str, decode: Decode) -> Decoder:
    """The decoder of an extension.

    Arguments:
        extension: without its first dot; of several (``seg.png``) the whole is looked up before the last.
        decode: a function for all extensions, or functions by extension that come before the registered ones.
    """
    if callable(decode):
        return decode
    names = (extension.lower(), extension.lower().rpartition(".")[2])
    for registry in (decode or {}, _DECODERS):
        for name in names:
            if name in registry:
                return registry[name]
    return bytes


def refuse_unsafe(extensions: Iterable[str], decode: Decode, where: str) -> None:
    """Refuses formats that run code when they are read, unless the caller brings a decoder for them.

    Raises:
        DataError: such a format is there.
    """
    for extension in sorted(set(extensions)):
        if (
            extension.lower().rpartition(".")[2] in UNSAFE_EXTENSIONS
            and decoder_for(extension, decode) is bytes
        ):
            if decode is bytes:
                continue
            raise DataError(
                f"{where}: .{extension} is a pickle, which runs code when it is read; store npy, json or safetensors, "
                "or pass a decoder of your own with decode="
            )
