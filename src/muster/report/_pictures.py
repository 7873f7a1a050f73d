"""Picture strips, inlined into the page as data URIs within a budget of bytes."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

#: Bytes of all pictures before base64, so that the page stays well below 4 MB.
BUDGET: Final = 900_000

#: Tried in order until the pictures fit: (largest side in pixels, WebP quality); None: the file as it is.
_STAGES: Final = (None, (1024, 92), (640, 90), (384, 85), (256, 75), (128, 60))
_MIME: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Panel:
    """One picture of a strip.

    Arguments:
        label: such as `bicubic`.
        caption: such as its PSNR.
        uri: the picture as a data URI; empty where it cannot be shown.
        width: of the file, pixels.
        height: of the file, pixels.
        coarse: it has fewer pixels than others of its strip, so its pixels are to be shown as squares.
        flaw: why there is no picture.
    """

    label: str
    caption: str
    uri: str
    width: int
    height: int
    coarse: bool
    flaw: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures of one thing, side by side.

    Arguments:
        title: what they show.
        panels: in order.
        compressed: whether they had to be made smaller to fit into the page.
    """

    title: str
    panels: tuple[Panel, ...]
    compressed: bool


def strips(folder: Path, budget: int = BUDGET) -> tuple[Strip, ...]:
    """Reads ``strips.jsonl`` and its pictures; a strip that cannot be read is left out, a picture says why.

    Arguments:
        folder: the run folder's ``pictures``; need not exist.
        budget: bytes that all pictures may take together before base64.
    """
    rows = _rows(folder / "strips.jsonl")
    files = {
        name: folder / name
        for row in rows
        for panel in row["panels"]
        if isinstance(name := panel.get("file"), str)
        and (folder / name).resolve().is_relative_to(folder.resolve())
    }
    for stage in _STAGES:
        encoded = {name: _encode(path, stage) for name, path in files.items()}
        if sum(len(picture.content) for picture in encoded.values()) <= budget:
            return tuple(_strip(row, encoded, stage is not None) for row in rows)
    # Too many even so: as many strips as fit, from the first.
    fitting: list[Strip] = []
    spent = 0
    for row in rows:
        spent += sum(
            len(encoded[name].content) for panel in row["panels"] if (name := panel.get("file")) in encoded
        )
        if spent > budget:
            break
        fitting.append(_strip(row, encoded, True))
    return tuple(fitting)


@dataclass(frozen=True)
class _Encoded:
    content: bytes = b""
    mime: str = ""
    size: tuple[int, int] = (0, 0)
    flaw: str = ""


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get("panels"), list):
            rows.append(row | {"panels": [panel for panel in row["panels"] if isinstance(panel, dict)]})
    return rows


def _encode(path: Path, stage: tuple[int, int] | None) -> _Encoded:
    try:
        with Image.open(path) as picture:
            size, kind = picture.size, picture.format or ""
            if stage is None and kind in _MIME:
                return _Encoded(path.read_bytes(), _MIME[kind], size)
            side, quality = stage or (max(size), 95)
            smaller = picture.convert("RGB")
            smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
            memory = io.BytesIO()
            smaller.save(memory, "WEBP", quality=quality)
            return _Encoded(memory.getvalue(), _MIME["WEBP"], size)
    except FileNotFoundError:
        return _Encoded(flaw="this picture is missing")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return _Encoded(flaw="this picture cannot be read")


def _strip(row: dict[str, Any], encoded: dict[str, _Encoded], compressed: bool) -> Strip:
    missing = _Encoded(flaw="this picture is missing")
    pictures = [encoded.get(str(panel.get("file")), missing) for panel in row["panels"]]
    widest = max((picture.size[0] for picture in pictures), default=0)
    panels = tuple(
        Panel(
            label=str(panel.get("label", "")),
            caption=str(panel.get("caption", "")),
            uri=f"data:{picture.mime};base64,{base64.b64encode(picture.content).decode()}"
            if picture.content
            else "",
            width=picture.size[0],
            height=picture.size[1],
            coarse=picture.size[0] < widest,
            flaw=picture.flaw,
        )
        for panel, picture in zip(row["panels"], pictures, strict=True)
    )
    return Strip(str(row.get("title", "")), panels, compressed)
