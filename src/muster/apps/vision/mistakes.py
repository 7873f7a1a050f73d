"""A picture strip of a run: held-out pictures that the model takes for something else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from muster.apps.vision.labelled_pictures import Pictures

_MOST: Final = 6


def draw_mistakes(
    folder: Path, pictures: Pictures, shares: npt.NDArray[np.floating[Any]], classes: Sequence[str]
) -> None:
    """Writes the surest mistakes as PNG and ``strips.jsonl`` into ``folder``; replaces files of the same names.

    Arguments:
        folder: the run folder's ``pictures``; made if need be.
        pictures: held out.
        shares: the model's probabilities, [pictures, classes].
        classes: their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken_for = shares.argmax(1)
    wrong = np.flatnonzero(taken_for != pictures.labels)
    surest = wrong[np.argsort(-shares[wrong, taken_for[wrong]], kind="stable")][:_MOST]
    panels = []
    for number, index in enumerate(surest.tolist()):
        file = f"mistake-{number:02d}.png"
        pixels = pictures.pixels[index]
        Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(
            folder / file
        )
        share = shares[index, taken_for[index]]
        panels.append(
            {
                "label": classes[pictures.labels[index]],
                "caption": f"taken for {classes[taken_for[index]]} ({share:.0%})",
                "file": file,
            }
        )
    strip = {"title": f"{len(wrong):,} of {len(pictures):,} held-out pictures are mistaken", "panels": panels}
    lines = json.dumps(strip, ensure_ascii=False) + "\n" if panels else ""
    (folder / "strips.jsonl").write_text(lines, encoding="utf-8")
