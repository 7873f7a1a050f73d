"""MDS shards: the samples that mosaicml-streaming 0.13.0 wrote into tests/data/mds; damage and unsafe columns refused."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muster.errors import DataError
from muster.pillars.io.samples import StoredSamples
from muster.pillars.io.sources import MosaicShards

WRITTEN = Path(__file__).parents[2] / "data" / "mds" / "written"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "mds"))


def test_samples_are_those_that_were_written() -> None:
    source = MosaicShards(WRITTEN)
    assert isinstance(source, StoredSamples)
    assert len(source) == 12
    for i in (11, *range(12)):
        sample = source[i]
        assert (sample["id"], sample["label"], sample["score"]) == (i - 5, i % 3, i / 2)
        assert (sample["name"], sample["blob"]) == (f"näme {i}", bytes(range(i)))
        assert (sample["large"], sample["exact"], sample["tree"]) == (
            10**20 + i,
            Decimal(i) / 8,
            {"i": [i, None]},
        )
        for name, expected in (
            ("free", np.arange(i + 1, dtype=np.float64).reshape(1, -1)),
            ("typed", np.full((2, i + 1), -i, dtype=np.int16)),
            ("fixed", np.full((2, 3), i, dtype=np.float32)),
        ):
            assert sample[name].dtype == expected.dtype
            assert np.array_equal(sample[name], expected)
        colour = np.broadcast_to(np.array([20 * i, 255 - 20 * i, 7], dtype=np.uint8), (4, 5, 3))
        for image in (sample["png"], sample["raw"], *sample["pair"]):
            assert image.dtype == np.uint8
            assert np.array_equal(image, colour)
        # A plain colour comes through JPEG but for rounding between colour spaces.
        assert np.abs(sample["jpeg"].astype(int) - colour).max() <= 2
        assert len(sample["pair"]) == 2


def test_sizes_are_those_of_the_samples_in_the_shards() -> None:
    source = MosaicShards(WRITTEN)
    assert [len(source.read(index)) for index in range(12)] == source.sizes().tolist()
    # Besides its samples a shard has a table of offsets and a description of its columns.
    assert source.sizes().sum() < sum(path.stat().st_size for path in WRITTEN.glob("*.mds"))


def rewritten(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        shard.update(changes)
    (folder / "index.json").write_text(json.dumps(index))


def test_pickles_and_unknown_encodings_are_refused_unless_a_decoder_is_given(copied: Path) -> None:
    encodings = json.loads((copied / "index.json").read_text())["shards"][0]["column_encodings"]
    rewritten(copied, column_encodings=["pkl", *encodings[1:]])
    with pytest.raises(DataError, match=r"index\.json: column blob: a pickle, which runs code"):
        MosaicShards(copied)
    assert MosaicShards(copied, decode={"blob": len})[9]["blob"] == 9
    rewritten(copied, column_encodings=["mp3", *encodings[1:]])
    with pytest.raises(DataError, match="encoding mp3 is not known"):
        MosaicShards(copied)
    with pytest.raises(DataError, match="decode names column sound"):
        MosaicShards(copied, decode={"sound": len})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compression": "zstd:7"}, r"compressed \(zstd:7\)"),
        ({"format": "csv"}, "shards of format csv 2"),
        ({"version": 3}, "shards of format mds 3"),
        ({"samples": "many"}, "is no index"),
        ({"samples": 2}, "table of 2 samples does not fit"),
    ],
)
def test_other_shards_are_refused(copied: Path, changes: dict[str, Any], said: str) -> None:
    rewritten(copied, **changes)
    with pytest.raises(DataError, match=said):
        MosaicShards(copied)


def test_damage_is_named(copied: Path) -> None:
    shard = copied / "shard.00002.mds"
    whole = shard.read_bytes()
    source = MosaicShards(copied)
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"shard\.00002\.mds has changed since it was opened"):
        source[7]
    with pytest.raises(DataError, match=r"shard\.00002\.mds has 4096 bytes, and 4106 by index\.json"):
        MosaicShards(copied)
    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(DataError, match=r"shard\.00002\.mds is corrupt: its table"):
        MosaicShards(copied)

    place = MosaicShards(WRITTEN).place(7)
    content = bytearray(whole)
    content[place.begin] ^= 0x0F  # the length of the first column
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"sample 7 in .*00002\.mds, bytes {place.begin} to {place.end}, is corrupt"
    ):
        MosaicShards(copied)[7]
    shard.unlink()
    with pytest.raises(DataError, match=r"shard\.00002\.mds: no such file"):
        MosaicShards(copied)
    (copied / "index.json").write_text("{}")
    with pytest.raises(DataError, match="is no index of an MDS data set"):
        MosaicShards(copied)
