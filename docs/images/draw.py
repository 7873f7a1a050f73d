"""Draws the README's pictures from a finished super-resolution run: ``python docs/images/draw.py RUN``.

``superres.png`` shows pieces of the run's picture strips, every pixel as 2×2; ``report.png`` is the top of its report in
headless Chromium.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
PIECE, CORNERS = 104, {"chelsea": (0, 40), "china": (0, 8)}  # pixels of the strips
ENLARGED, GAP, TEXT = 2, 6, 40
REPORT_WIDTH = 1100

sys.path.insert(0, str(HERE.parents[1] / "tests"))


def draw_strips(run: Path, target: Path) -> None:
    """One row per photograph, one column per panel, with the labels and captions that the run has written."""
    lines = (run / "pictures" / "strips.jsonl").read_text(encoding="utf-8").splitlines()
    strips = [json.loads(line) for line in lines]
    side = PIECE * ENLARGED
    columns = len(strips[0]["panels"])
    sheet = Image.new("RGB", (columns * (side + GAP) - GAP, len(strips) * (TEXT + side + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for row, strip in enumerate(strips):
        name = strip["title"].split()[0]
        left, top = CORNERS.get(name, (0, 0))
        for column, panel in enumerate(strip["panels"]):
            picture = Image.open(run / "pictures" / panel["file"]).convert("RGB")
            piece = picture.crop((left, top, left + PIECE, top + PIECE))
            x, y = column * (side + GAP), row * (TEXT + side + GAP)
            title = f"{name}, {panel['label']}" if column == 0 else panel["label"]
            pen.text((x + 2, y + 2), title, "black", large)
            caption = panel["caption"].replace("×", " x ")  # Pillow's own font has no ×
            pen.text((x + 2, y + 21), caption, (90, 90, 90), small)
            sheet.paste(piece.resize((side, side), Image.Resampling.NEAREST), (x, y + TEXT))
    sheet.save(target, optimize=True)


def draw_report(run: Path, target: Path) -> None:
    """The report from its head to the pillars over the steps."""
    from report.browser import opened

    with tempfile.TemporaryDirectory() as folder, opened(run / "report.html", width=REPORT_WIDTH) as page:
        whole = Path(folder) / "report.png"
        page.picture(whole)
        after_pillars = (
            "[...document.querySelectorAll('h2')].find((h) => h.textContent.trim() === 'Learning')"
        )
        bottom = int(page.run(f"{after_pillars}.getBoundingClientRect().top"))
        top = Image.open(whole).convert("RGB").crop((0, 0, REPORT_WIDTH, bottom - 24))
    top.quantize(96, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    draw_strips(Path(sys.argv[1]), HERE / "superres.png")
    draw_report(Path(sys.argv[1]), HERE / "report.png")
