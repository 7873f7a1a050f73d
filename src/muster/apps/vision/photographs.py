"""Photographs in a folder: finding them, looking at them quickly, and decoding them to 8-bit RGB.

JPEG, PNG and WebP. The orientation that the camera noted (EXIF) is applied. Grey becomes RGB; a palette is
resolved; transparency is flattened onto white; 16-bit samples keep their upper 8 bits. An embedded colour
profile is not applied: values are taken as sRGB. Animated, CMYK, truncated and otherwise unreadable files
are refused by name, because leaving one out silently would change what a run was trained on.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from muster.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_MODES: Final = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I;16B", "I;16L"}


@dataclass(frozen=True)
class Photograph:
    """One photograph, not decoded.

    Arguments:
        name: its path below the folder it was found in, with forward slashes.
        path: the file.
        width, height: pixels as stored, before the orientation of EXIF.
    """

    name: str
    path: Path
    width: int
    height: int


def find_photographs(folder: Path) -> list[Path]:
    """All files below a folder with the suffix of a photograph, in order of name; hidden ones are left out.

    Raises:
        DataError: the folder does not exist or holds no photograph.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of JPEG, PNG or WebP photographs")
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(root, name) for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    if not paths:
        raise DataError(f"{folder}: no photograph in it or below; give a folder with JPEG, PNG or WebP files")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def inspect_photograph(path: Path, name: str | None = None, content: bytes | None = None) -> Photograph:
    """Looks at a photograph without decoding it: what it is, its size, and whether the file is whole.

    Reads the file once: checksums of PNG chunks, the end marker of a JPEG, the length that a WebP states.

    Arguments:
        path: the file.
        name: how to call it; the file's name by default.
        content: its bytes, where it is no file of its own but part of an archive; ``path`` only names it then.

    Raises:
        DataError: it cannot be used; names the file, says why and what would be right.
    """
    with _opened(path, content) as image:
        width, height = image.size
        complete = _COMPLETE.get(image.format or "")
        if complete is None:  # PNG: its chunks carry checksums
            image.verify()
    if complete is not None and not complete(path.read_bytes() if content is None else content):
        raise DataError(f"{path}: the file is truncated; copy it again or remove it")
    return Photograph(name or path.name, path, width, height)


def read_photograph(path: Path, content: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Decodes a photograph.

    Arguments:
        path: a JPEG, PNG or WebP file.
        content: as in `inspect_photograph`.

    Returns:
        uint8 [height, width, 3], RGB, upright.

    Raises:
        DataError: it cannot be used; names the file, says why and what would be right.
    """
    from PIL import Image

    with _opened(path, content) as image:
        upright = upright_8bit(image)
        if upright.mode in ("RGBA", "LA"):
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return np.array(upright.convert("RGB"))


def upright_8bit(image: Image.Image) -> Image.Image:
    """A picture as `L`, `LA`, `RGB` or `RGBA` with 8 bits a sample, the orientation of EXIF applied.

    Arguments:
        image: any mode that `read_photograph` accepts.

    Raises:
        DataError: another mode (CMYK, floating point), with what would be right.
    """
    from PIL import Image, ImageOps

    _refuse_mode(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "PA" or (image.mode != "RGBA" and "transparency" in image.info):
        return image.convert("RGBA")
    return image.convert({"1": "L", "P": "RGB", "RGBX": "RGB"}.get(image.mode, image.mode))


@contextmanager
def open_photograph(path: Path, *, any_size: bool = False) -> Iterator[Image.Image]:
    """Opens a file as a Pillow image that `upright_8bit` accepts; every failure to read it names the file.

    Arguments:
        path: the file.
        any_size: also open what Pillow takes for a decompression bomb (above 179 million pixels); that is
            a setting of the whole process while the image is open.

    Raises:
        DataError: it cannot be used; names the file, says why and what would be right.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    try:
        if any_size:
            Image.MAX_IMAGE_PIXELS = None
        with _opened(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if content is None else io.BytesIO(content), formats=_FORMATS) as image:
                # MPO is what many telephones write as .jpg: a JPEG with another (depth, preview) behind it.
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise DataError(f"{path}: it is animated; give a still picture")
                _refuse_mode(image)
                yield image
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a JPEG, PNG or WebP photograph") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: it is no JPEG, PNG or WebP picture; convert or remove it") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: it has more than 179 million pixels; cut it into parts") from None
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {error}") from None
    # Pillow reports damage to a file by whichever of these its decoders meet first.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
        raise DataError(f"{path}: it cannot be read ({error}); copy it again or remove it") from error


def _refuse_mode(image: Image.Image) -> None:
    if image.mode not in _MODES:
        raise DataError(f"its colours are {image.mode}; convert it to RGB")


def _jpeg_complete(content: bytes) -> bool:
    """Whether the end marker comes after the first scan began (an embedded preview has one of its own)."""
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xDA:  # start of scan: in what follows, FF D9 cannot be data
            return content.find(b"\xff\xd9", position) >= 0
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return False


def _webp_complete(content: bytes) -> bool:
    return len(content) >= 8 + int.from_bytes(content[4:8], "little")


_COMPLETE: Final[dict[str, Callable[[bytes], bool]]] = {
    "JPEG": _jpeg_complete,
    "MPO": _jpeg_complete,
    "WEBP": _webp_complete,
}
