"""Picture strips of a run: part of a photograph in low resolution, by bicubic, by the model, and as it "
"was."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from muster.apps.vision import quality
from muster.apps.vision.photo_cache import CachedPhotograph

_CROP: Final = 144  # pixels; divisible by every scale
_STEP: Final = 12  # between the places tried, divisible by every scale too

Pixels = npt.NDArray[np.uint8]


def draw_strips(
    folder: Path, results: Sequence[tuple[CachedPhotograph, Pixels, Pixels]], model_name: str
) -> None:
    """Writes the panels as PNG and ``strips.jsonl`` into ``folder``; replaces files of the same names.

    Arguments:
        folder: the run folder's ``pictures``; made if need be.
        results: photographs, each with its enlargement by the model and by bicubic, uint8 [height, width, 3].
        model_name: labels the model's panel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strips = [_draw(folder, number, *result, model_name) for number, result in enumerate(results)]
    lines = "".join(json.dumps(strip, ensure_ascii=False) + "\n" for strip in strips)
    (folder / "strips.jsonl").write_text(lines, encoding="utf-8")


def _draw(
    folder: Path, number: int, item: CachedPhotograph, enlarged: Pixels, bicubic: Pixels, model_name: str
) -> dict[str, Any]:
    scale = item.hr.shape[0] // item.lr.shape[0]
    top, left, side = telling_crop(item.hr, bicubic)
    low = item.lr[top // scale : (top + side) // scale, left // scale : (left + side) // scale]
    crop = (slice(top, top + side), slice(left, left + side))
    plain = quality.psnr_y(item.hr, bicubic, scale)
    better = quality.psnr_y(item.hr, enlarged, scale)
    panels = [
        (
            "low",
            "low resolution",
            f"{item.lr.shape[1]}×{item.lr.shape[0]}",
            low.repeat(scale, 0).repeat(scale, 1),
        ),
        ("bicubic", "bicubic", f"PSNR-Y {plain:.2f} dB", bicubic[crop]),
        ("model", model_name, f"PSNR-Y {better:.2f} dB ({better - plain:+.2f})", enlarged[crop]),
        ("original", "original", f"{item.hr.shape[1]}×{item.hr.shape[0]}", item.hr[crop]),
    ]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(item.name).stem).strip("-")
    strip: dict[str, Any] = {"title": f"{item.name} ×{scale}", "panels": []}
    for kind, label, caption, pixels in panels:
        file = f"{number:02d}-{slug}-{kind}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / file)
        strip["panels"].append({"label": label, "caption": caption, "file": file})
    return strip


def telling_crop(original: Pixels, bicubic: Pixels) -> tuple[int, int, int]:
    """The square part of a photograph where bicubic errs most: there is the most to see.

    Arguments:
        original, bicubic: uint8 [height, width, 3].

    Returns:
        top, left, side; multiples of 12 pixels (unless the photograph is smaller than that).
    """
    error = np.abs(quality.luma(original) - quality.luma(bicubic))
    height, width = error.shape
    side = min(_CROP, height // _STEP * _STEP, width // _STEP * _STEP) or min(height, width)
    sums = np.zeros((height + 1, width + 1))  # the integral image: any box sum is four look-ups
    sums[1:, 1:] = error.cumsum(0).cumsum(1)
    tops = np.arange(0, height - side + 1, _STEP)[:, None]
    lefts = np.arange(0, width - side + 1, _STEP)
    boxes = (
        sums[tops + side, lefts + side]
        - sums[tops, lefts + side]
        - sums[tops + side, lefts]
        + sums[tops, lefts]
    )
    row, column = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(row) * _STEP, int(column) * _STEP, side
