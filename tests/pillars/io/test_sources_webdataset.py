"""WebDataset tars: what is read is what tarfile reads, damage is found, the index is made once and never outlives its tar."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muster.errors import DataError
from muster.pillars.io.sources import WebDatasetTar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "muster" / "tar-index"


def tar_of(members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def numbered(count: int) -> list[tuple[str, bytes]]:
    return [
        (f"s{number:03d}.{extension}", f"{number} {extension}".encode() * (number % 7))
        for number in range(count)
        for extension in ("one", "two")
    ]


def samples_by_tarfile(path: Path) -> list[dict[str, object]]:
    """The grouping of the convention, over what Python's own reader of tars extracts."""
    samples: list[dict[str, object]] = []
    with tarfile.open(path) as tar:
        for member in tar:
            folder, base = os.path.split(member.name)
            if not member.isfile() or "." not in base or base.startswith("."):
                continue
            key = os.path.join(folder, base.split(".")[0])
            if not samples or samples[-1]["__key__"] != key:
                samples.append({"__key__": key})
            extracted = tar.extractfile(member)
            assert extracted is not None
            samples[-1][base.split(".", 1)[1].lower()] = extracted.read()
    return samples


KEYS = st.text(alphabet="abcé_- 0", min_size=1, max_size=8)
GROUPS = st.dictionaries(
    st.tuples(st.sampled_from(["", "d/", "d.e/f/", "n" * 120 + "/"]), KEYS),
    st.dictionaries(
        st.sampled_from(["a", "b.c", "TXT", "npz.gz"]), st.binary(max_size=1500), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, kind=st.sampled_from(sorted(FORMATS)), others=st.booleans())
def test_any_grouping_of_members_is_read_as_tarfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory, groups: dict, kind: str, others: bool
) -> None:
    path = tmp_path_factory.mktemp("tars") / "x.tar"
    members = [
        (f"{folder}{key}.{extension}", content)
        for (folder, key), contents in groups.items()
        for extension, content in contents.items()
    ]
    if others:  # neither has an extension
        members = [("README", b"hello"), *members, ("d/.hidden", b"")]
    path.write_bytes(tar_of(members, FORMATS[kind]))
    source = WebDatasetTar(path, decode=bytes)
    assert [source[index] for index in range(len(source))] == samples_by_tarfile(path)
    assert [len(source.read(index)) for index in range(len(source))] == list(source.sizes())


def test_a_tar_written_by_the_tar_command_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, content in numbered(20):
        (tmp_path / "in" / name).write_bytes(content)
    subprocess.run(
        ["tar", "--sort=name", "-cf", str(tmp_path / "x.tar"), "-C", str(tmp_path), "in"],
        check=True,
        timeout=60,
    )
    source = WebDatasetTar(tmp_path / "x.tar", decode=bytes)
    assert len(source) == 20
    assert source[13] == {"__key__": "in/s013", "one": b"13 one" * 6, "two": b"13 two" * 6}


def test_members_are_decoded_by_their_extension(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    members = [
        ("a/1.cls", b"7"),
        ("a/1.PNG", file.getvalue()),
        ("a/1.seg.png", file.getvalue()),
        ("a/1.txt", b"x"),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    (sample,) = WebDatasetTar(tmp_path / "x.tar")
    assert (sample["__key__"], sample["cls"], sample["txt"]) == ("a/1", 7, "x")
    assert np.array_equal(sample["png"], pixels)
    assert np.array_equal(sample["seg.png"], pixels)
    (sample,) = WebDatasetTar(tmp_path / "x.tar", decode={"seg.png": len})
    assert sample["seg.png"] == len(file.getvalue())


def test_several_tars_are_read_one_after_another(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"x-{number:03d}.tar").write_bytes(
            tar_of([(f"{number}-{k}.cls", b"%d" % k) for k in range(3)])
        )
    expected = [f"{number}-{k}" for number in range(12) for k in range(3)]
    listed = [tmp_path / f"x-{number:03d}.tar" for number in range(12)]
    for urls in (f"{tmp_path}/x-{{000..011}}.tar", f"{tmp_path}/x-*.tar", listed):
        source = WebDatasetTar(urls)
        assert source.keys == expected
        assert [source[index]["cls"] for index in range(36)] == [0, 1, 2] * 12
    with pytest.raises(DataError, match=r"x-012\.tar: no such file"):
        WebDatasetTar(f"{tmp_path}/x-{{000..012}}.tar")
    with pytest.raises(DataError, match="nothing matches"):
        WebDatasetTar(f"{tmp_path}/y-*.tar")


def test_a_tar_cut_anywhere_is_refused_by_name_or_lacks_only_its_padding(tmp_path: Path) -> None:
    content = tar_of(numbered(4))
    (tmp_path / "whole.tar").write_bytes(content)
    whole = list(WebDatasetTar(tmp_path / "whole.tar", decode=bytes))
    data_end = max(position for position, byte in enumerate(content) if byte) + 1
    accepted = []
    for length in range(0, len(content), 100):
        path = tmp_path / f"cut-{length}.tar"
        path.write_bytes(content[:length])
        try:
            found = list(WebDatasetTar(path, decode=bytes))
        except DataError as error:
            if path.name not in str(error):
                pytest.fail(f"{length}: {error}")
            continue
        accepted.append(length)
        assert found == whole
    assert accepted
    assert min(accepted) >= data_end


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    third_header = 2 * (512 + 1024)
    content = bytearray(tar_of([(f"{number}.txt", b"x" * 600) for number in range(5)]))
    content[third_header + 100] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tar is not a whole tar: at byte {third_header}"):
        WebDatasetTar(tmp_path / "x.tar")


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(DataError, match=r"x\.tar is compressed with"):
        WebDatasetTar(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.x", b""), ("b.x", b""), ("a.y", b"")], "members of sample a are not next to each other"),
        ([("a.x", b""), ("a.X", b"")], "sample a has two members .x"),
        ([("README", b"")], "holds no samples"),
        ([("a.pyd", b"")], "pickle, which runs code"),
    ],
)
def test_tars_that_break_the_convention_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str
) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    with pytest.raises(DataError, match=said):
        WebDatasetTar(tmp_path / "x.tar")


def test_a_corrupt_member_is_named_with_sample_file_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("a.cls", b"1"), ("b.cls", b"one"), ("b.txt", b"ok")]))
    source = WebDatasetTar(tmp_path / "x.tar")
    # Member b.cls has its data after two headers and one block; b.txt after another block and header.
    with pytest.raises(
        DataError, match=r"^sample 1 \(b\) in .*x\.tar, bytes 1536 to 2562, is corrupt: \.cls: "
    ):
        source[1]
    assert source[0]["cls"] == 1


def test_a_tar_that_is_replaced_is_refused_while_open_and_indexed_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of([("a.txt", b"old")]))
    source = WebDatasetTar(path)
    assert source[0]["txt"] == "old"
    path.write_bytes(tar_of([("a.txt", b"new")]))  # of the same size
    with pytest.raises(DataError, match=r"x\.tar has changed since it was opened"):
        source[0]
    assert WebDatasetTar(path)[0]["txt"] == "new"


def indexes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.index"))


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(numbered(30)))
    WebDatasetTar(path)
    return path


def test_a_damaged_index_is_made_anew(opened: Path, index_folder: Path) -> None:
    expected = samples_by_tarfile(opened)
    (index,) = indexes(index_folder)
    whole = index.read_bytes()
    generator = np.random.default_rng(0)
    damages = [b"", whole[:100], whole[:-1], b"x" * len(whole)]
    for position in generator.integers(0, len(whole), 20):
        damages.append(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
    for damage in damages:
        index.write_bytes(damage)
        source = WebDatasetTar(opened, decode=bytes)
        assert [source[number] for number in range(len(source))] == expected


def test_an_index_that_cannot_be_kept_is_a_warning(opened: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.warns(UserWarning, match="cannot be kept"):
        source = WebDatasetTar(opened, index_folder=tmp_path / "occupied")
    assert len(source) == 30


def test_a_pickled_tar_needs_neither_index_nor_headers(opened: Path, index_folder: Path) -> None:
    source = WebDatasetTar(opened, decode=bytes)
    state = pickle.dumps(source)
    for index in indexes(index_folder):
        index.unlink()
    copied = pickle.loads(state)
    assert [copied[number] for number in range(30)] == samples_by_tarfile(opened)
    assert not indexes(index_folder)
