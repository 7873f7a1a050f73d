"""Bytes by their content: what has a name has its bytes, after cuts, flips, kills and on full disks."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muster.engine.pool import blobs
from muster.engine.pool.blobs import BlobStore, Manifest
from muster.errors import DataError


def test_the_name_is_the_digest_and_the_bytes_come_back(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    name = store.put(b"some bytes")
    assert name == hashlib.blake2b(b"some bytes", digest_size=20).hexdigest()
    assert store.get(name) == b"some bytes"
    assert name in store
    absent = blobs.digest(b"other")
    assert absent not in store
    with pytest.raises(KeyError):
        store.get(absent)
    assert store.missing([absent, name, absent]) == [absent]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 40, "0" * 39, "0" * 41])
def test_a_name_that_is_none_reaches_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is no name of a blob"):
        BlobStore(tmp_path).get(name)


def test_a_flipped_bit_is_told_by_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = store.put(bytes(1000))
    path = tmp_path / name[:2] / name[2:]
    content = bytearray(path.read_bytes())
    content[500] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is damaged"):
        store.get(name)


def test_a_transfer_that_was_cut_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 1000)
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    content = os.urandom(4500) + bytes(1000) + bytes(1000)
    manifest = here.put_whole(content)
    assert manifest.size == 6500
    assert len(manifest.chunks) == 7
    for name in manifest.chunks[:2]:
        there.put_named(name, here.get(name))
    told = Manifest.from_json(manifest.to_json(), most_bytes=6500)
    assert told == manifest
    assert told.name == manifest.name
    left = there.missing(told.chunks)
    assert left == list(dict.fromkeys(manifest.chunks[2:]))
    with pytest.raises(KeyError):
        there.get_whole(told)
    for name in left:
        there.put_named(name, here.get(name))
    assert there.get_whole(told) == content
    with pytest.raises(DataError, match="are others"):
        there.put_named(manifest.chunks[0], b"something else")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "is not what it should be"),
        ('{"size": true, "chunks": []}', "is not what it should be"),
        ('{"size": 5, "chunks": ["../x"]}', "is not what it should be"),
        ('{"size": -1, "chunks": []}', "is not what it should be"),
        ('{"size": 5, "chunks": []}', "has 0 chunks instead of 1"),
        ('{"size": 101, "chunks": []}', "101 bytes; at most 100 are taken"),
        ("[" * 100_000, "is not what it should be"),
    ],
)
def test_a_manifest_from_elsewhere_is_read_with_care(text: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        Manifest.from_json(text, most_bytes=100)


def test_what_is_not_wanted_any_more_is_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    names = [store.put(bytes([k])) for k in range(5)]
    assert store.keep_only(names[:2]) == 3
    assert store.missing(names) == names[2:]


WRITER = """
import os, sys
from pathlib import Path
from muster.engine.pool.blobs import BlobStore
store = BlobStore(Path(sys.argv[1]))
while True:
    print(store.put(os.urandom(300_000)), flush=True)
"""


@pytest.mark.kill
def test_a_kill_leaves_no_name_without_its_bytes(tmp_path: Path) -> None:
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        named = [process.stdout.readline().strip()]
        time.sleep(0.05 * attempt)
        process.send_signal(signal.SIGKILL)
        named += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
        store = BlobStore(tmp_path)
        assert all(len(store.get(name)) == 300_000 for name in named)
        for path in tmp_path.glob("??/[!.]*"):
            assert blobs.digest(path.read_bytes()) == path.parent.name + path.name


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    store = BlobStore(small_disk / "blobs")
    kept = store.put(os.urandom(1_000_000))
    with pytest.raises(OSError, match="No space left"):
        store.put(os.urandom(8_000_000))
    assert sorted(path.parent.name + path.name for path in small_disk.glob("blobs/??/*")) == [kept]
    assert len(store.get(kept)) == 1_000_000
