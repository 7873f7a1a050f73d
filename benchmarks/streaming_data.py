"""The same photographs as JPEG files, as tars and as MosaicML shards, for loaders to read over a slow link."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MDS_WRITER = """
import json, sys
from pathlib import Path
from streaming import MDSWriter
source, out = Path(sys.argv[1]), sys.argv[2]
with MDSWriter(out=out, columns={"jpg": "bytes"}, size_limit=int(sys.argv[3])) as writer:
    for path in sorted(source.iterdir()):
        writer.write({"jpg": path.read_bytes()})
"""


@dataclass(frozen=True)
class Photographs:
    """What was written.

    Arguments:
        root: holds the folders ``jpeg``, ``tar`` and perhaps ``mds``.
        samples: how many photographs.
        bytes: of all JPEG files.
        shards: names of the tars.
    """

    root: Path
    samples: int
    bytes: int
    shards: list[str]


def write_photographs(root: Path, originals: list[Path], samples: int, side: int, shards: int) -> Photographs:
    """Cuts ``samples`` square pieces of ``side`` pixels out of photographs and writes them as JPEG and in tars.

    Arguments:
        root: where to.
        originals: photographs to cut from, in turn.
        samples, side, shards: how many, how large, in how many tars.
    """
    generator = np.random.default_rng(0)
    (root / "jpeg").mkdir(parents=True)
    (root / "tar").mkdir()
    total = 0
    names = [f"part-{shard:03d}.tar" for shard in range(shards)]
    tars = [tarfile.open(root / "tar" / name, "w") for name in names]  # noqa: SIM115 # closed below, all together
    opened: dict[Path, Image.Image] = {}
    for index in range(samples):
        path = originals[index % len(originals)]
        image = opened.setdefault(path, Image.open(path).convert("RGB"))
        left, top = (int(generator.integers(0, max(1, extent - side + 1))) for extent in image.size)
        packed = io.BytesIO()
        image.crop((left, top, left + side, top + side)).save(packed, "JPEG", quality=95)
        name, content = f"{index:06d}.jpg", packed.getvalue()
        (root / "jpeg" / name).write_bytes(content)
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tars[index * shards // samples].addfile(member, io.BytesIO(content))
        total += len(content)
    for tar in tars:
        tar.close()
    (root / "meta.json").write_text(json.dumps({"samples": samples, "bytes": total}))
    return Photographs(root, samples, total, names)


def write_mosaic_shards(photographs: Photographs, python: Path) -> None:
    """The same samples as MDS shards, by MosaicML's own writer.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    size = photographs.bytes // len(photographs.shards)
    subprocess.run(
        [python, "-c", MDS_WRITER, photographs.root / "jpeg", photographs.root / "mds", str(size)],
        check=True,
        capture_output=True,
    )
