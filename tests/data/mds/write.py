"""Writes the data set beside it, with the package whose format it is.

    pip install mosaicml-streaming==0.13.0
    python write.py

Sample i of 12 has these columns; tests/pillars/io/test_sources_mosaic.py knows the same rules.
"""

from decimal import Decimal
from pathlib import Path

import numpy as np
from PIL import Image
from streaming import MDSWriter

COLUMNS = {
    "id": "int",
    "label": "uint8",
    "score": "float32",
    "name": "str",
    "blob": "bytes",
    "free": "ndarray",
    "typed": "ndarray:int16",
    "fixed": "ndarray:float32:2,3",
    "large": "str_int",
    "exact": "str_decimal",
    "tree": "json",
    "png": "png",
    "jpeg": "jpeg",
    "raw": "pil",
    "pair": "list[png]",
}


def main() -> None:
    """Writes shards of at most 4,500 bytes."""
    with MDSWriter(out=str(Path(__file__).parent / "written"), columns=COLUMNS, size_limit=4500) as writer:
        for i in range(12):
            image = Image.new("RGB", (5, 4), (20 * i, 255 - 20 * i, 7))
            writer.write(
                {
                    "id": i - 5,
                    "label": i % 3,
                    "score": i / 2,
                    "name": f"näme {i}",
                    "blob": bytes(range(i)),
                    "free": np.arange(i + 1, dtype=np.float64).reshape(1, -1),
                    "typed": np.full((2, i + 1), -i, dtype=np.int16),
                    "fixed": np.full((2, 3), i, dtype=np.float32),
                    "large": 10**20 + i,
                    "exact": Decimal(i) / 8,
                    "tree": {"i": [i, None]},
                    "png": image,
                    "jpeg": image,
                    "raw": image,
                    "pair": [image, image.rotate(180)],
                }
            )


if __name__ == "__main__":
    main()
