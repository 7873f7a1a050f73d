"""Measures a finished super-resolution run on Set5, beside bicubic and the published results.

    python benchmarks/set5.py --run RUN --data DIR [--require-gain 2.5]

RUN is a run folder (or a `model.safetensors`); DIR holds `superres/set5` and `superres/set5_lr`. The
protocol is that of the papers: the given low-resolution files (MATLAB bicubic), luma of BT.601, as many
pixels shaved as the scale, PSNR and SSIM per photograph, mean over photographs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from muster.apps.vision.photo_cache import CachedPhotograph
from muster.apps.vision.superres import SuperResolution
from muster.errors import MusterError
from muster.vision import EDSR, load_model

# Mean PSNR in dB on Set5 x2. SRCNN: Dong et al., arXiv:1501.00092. FSRCNN: Dong et al., arXiv:1608.00367
# (36.94 trained on 91 images, 37.12 as later tables give it). VDSR: Kim et al., arXiv:1511.04587.
# EDSR-baseline:
# Lim et al., arXiv:1707.02921 (authors' repository; trained on DIV2K for days). The first two train on
# 91 small images and are the fair bars for small data.
PUBLISHED_X2 = {
    "bicubic": "33.66",
    "SRCNN": "36.66",
    "FSRCNN": "36.94-37.12",
    "VDSR": "37.53",
    "EDSR-baseline": "37.99",
}
NAMES = {"img_001": "baby", "img_002": "bird", "img_003": "butterfly", "img_004": "head", "img_005": "woman"}


def load_set5(data: Path, scale: int) -> list[CachedPhotograph]:
    """The five photographs; the high resolution is cropped at the top left to scale x the low resolution."""
    items = []
    for stem, name in NAMES.items():
        low_path = data / "superres" / "set5_lr" / f"image_SRF_{scale}" / f"{stem}_SRF_{scale}_LR.png"
        low = np.asarray(Image.open(low_path).convert("RGB"))
        high = np.asarray(Image.open(data / "superres" / "set5" / f"{stem}.png").convert("RGB"))
        items.append(CachedPhotograph(name, high[: scale * low.shape[0], : scale * low.shape[1]], low))
    return items


def measure(model: EDSR, items: list[CachedPhotograph]) -> list[dict[str, float]]:
    """The application's own qualities of each photograph."""
    what = SuperResolution.What.model_validate(
        {"app": "vision.superres", "model": {"scale": model.scale}, "patch": 96}
    )
    application = SuperResolution(what)
    return [application.evaluate(model.eval(), item) for item in items]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a super-resolution run on Set5.")
    parser.add_argument("--run", required=True, help="run folder, or model.safetensors")
    parser.add_argument("--data", required=True, type=Path, help="folder that holds superres/set5")
    parser.add_argument("--require-gain", type=float, metavar="DB", help="exit 1 if the mean gain is less")
    arguments = parser.parse_args()
    try:
        model = load_model(arguments.run)
    except MusterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not (arguments.data / "superres" / "set5").is_dir():
        print(
            f"{arguments.data}: no superres/set5 in it; give the folder of the shared data", file=sys.stderr
        )
        return 2

    items = load_set5(arguments.data, model.scale)
    trained = measure(model, items)
    torch.manual_seed(0)
    untrained = measure(EDSR(model.architecture, model.scale), items)

    columns = ("psnr_y", "psnr_y_bicubic", "psnr_y_gain", "ssim_y", "ssim_y_bicubic")
    print(f"Set5 x{model.scale}, {arguments.run}")
    print(f"{'':12}{'PSNR-Y':>9}{'bicubic':>9}{'gain':>8}{'SSIM-Y':>9}{'bicubic':>9}{'gain at step 0':>16}")
    mean = {key: float(np.mean([row[key] for row in trained])) for key in columns}
    gain_0 = [row["psnr_y_gain"] for row in untrained]
    rows = [(item.name, row, start) for item, row, start in zip(items, trained, gain_0, strict=True)]
    for name, row, start in [*rows, ("mean", mean, float(np.mean(gain_0)))]:
        print(
            f"{name:12}{row['psnr_y']:9.2f}{row['psnr_y_bicubic']:9.2f}{row['psnr_y_gain']:+8.2f}"
            f"{row['ssim_y']:9.4f}{row['ssim_y_bicubic']:9.4f}{start:+16.2f}"
        )
    if model.scale == 2:
        print("published x2: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED_X2.items()))
    if arguments.require_gain is not None and mean["psnr_y_gain"] < arguments.require_gain:
        print(f"mean gain {mean['psnr_y_gain']:.2f} dB is below {arguments.require_gain} dB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
