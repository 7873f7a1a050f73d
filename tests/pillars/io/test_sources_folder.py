"""Folders of files: order and labels as ImageFolder's, decoding as the field's own readers, damage named."""

from __future__ import annotations

import io
import json
import os
import pickle
from functools import partial
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from muster.errors import DataError
from muster.pillars.io.samples import StoredSamples
from muster.pillars.io.sources import Folder, decode_image, register_decoder


def picture(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return image


def image_folder_order(root: Path) -> list[tuple[str, int]]:
    """Files and labels by the rule that torchvision documents: classes sorted, then a sorted walk, then names."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return [
        (os.path.join(folder, name), label)
        for label, name_of_class in enumerate(classes)
        for folder, _, names in sorted(os.walk(root / name_of_class))
        for name in sorted(names)
    ]


def test_order_and_labels_are_those_of_image_folder(tmp_path: Path) -> None:
    names = [
        "b/2.png",
        "b/10.PNG",
        "b/a/1.png",
        "b/a-b/1.png",
        "b/a/b/0.png",
        "a b/z.png",
        "a/é.png",
        "Z/1.png",
    ]
    for number, name in enumerate(names):
        picture(tmp_path / name, number)
    source = Folder(tmp_path)
    expected = image_folder_order(tmp_path)
    assert [
        (str(tmp_path / name), label) for name, label in zip(source.names, source.targets, strict=True)
    ] == expected
    assert source.classes == ["Z", "a", "a b", "b"]
    for index, (path, label) in enumerate(expected):
        pixels, found = source[index]
        assert found == label
        assert np.array_equal(pixels, np.asarray(Image.open(path)))
        assert source.sizes()[index] == os.path.getsize(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "LA"])
def test_images_are_what_pillow_makes_of_them_in_rgb(tmp_path: Path, mode: str) -> None:
    picture(tmp_path / "x.png", 3, mode)
    expected = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    pixels = Folder(tmp_path)[0]
    assert (pixels.dtype, pixels.shape, pixels.flags.writeable) == (np.uint8, (7, 9, 3), True)
    assert np.array_equal(pixels, expected)
    planes = Folder(tmp_path, decode=partial(decode_image, layout="CHW"))[0]
    assert planes.flags.c_contiguous
    assert np.array_equal(planes, expected.transpose(2, 0, 1))
    assert Folder(tmp_path, decode={"png": partial(decode_image, mode="L")})[0].shape == (7, 9)


def test_an_image_of_sixteen_bits_is_not_cut_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*more than 8 bits"):
        Folder(tmp_path)[0]


def test_other_files_are_decoded_by_their_extension(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    (tmp_path / "a.txt").write_text("größer\n", encoding="utf-8")
    (tmp_path / "b.cls").write_text("42\n")
    (tmp_path / "c.json").write_text(json.dumps({"x": [1, None]}))
    np.save(tmp_path / "d.npy", np.eye(3, dtype=np.float32))
    np.savez(tmp_path / "e.npz", u=np.arange(4), v=np.zeros((2, 2)))
    torch.save({"w": tensor}, tmp_path / "f.pt")
    save_file({"w": tensor}, tmp_path / "g.safetensors")
    (tmp_path / "h.unheard").write_bytes(b"\x00\xff")
    text, number, document, array, arrays, tensors, safe, raw = Folder(tmp_path, extensions=None)
    assert (text, number, document, raw) == ("größer\n", 42, {"x": [1, None]}, b"\x00\xff")
    assert np.array_equal(array, np.eye(3))
    assert sorted(arrays) == ["u", "v"]
    assert torch.equal(tensors["w"], tensor)
    assert torch.equal(safe["w"], tensor)


def test_a_registered_decoder_reads_its_extension(tmp_path: Path) -> None:
    (tmp_path / "a.upper").write_bytes(b"abc")
    register_decoder(".UPPER", bytes.upper)
    assert Folder(tmp_path, extensions=["upper"])[0] == b"ABC"


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pyd"])
def test_pickles_are_refused_before_any_is_read(tmp_path: Path, extension: str) -> None:
    (tmp_path / f"x.{extension}").write_bytes(pickle.dumps(1))
    with pytest.raises(DataError, match="pickle, which runs code"):
        Folder(tmp_path, extensions=None)
    assert Folder(tmp_path, extensions=None, decode={extension: len})[0] == len(pickle.dumps(1))


class Payload:
    """What a pickle makes of itself: a call of a function that its writer chose."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.witness),)


def test_code_in_tensors_and_arrays_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    data = tmp_path / "data"
    data.mkdir()
    torch.save(Payload(witness), data / "a.pt")
    np.save(data / "b.npy", np.array([Payload(witness)], dtype=object), allow_pickle=True)
    source = Folder(data, extensions=None)
    for index in range(2):
        with pytest.raises(DataError, match=r"is corrupt"):
            source[index]
    assert not witness.exists()


def test_a_truncated_jpeg_is_named_with_its_file_and_bytes(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "cat" / f"{number}.jpg", number, size=(64, 64))
    damaged = tmp_path / "cat" / "1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:900])
    source = Folder(tmp_path)
    with pytest.raises(
        DataError, match=r"^sample 1 in .*cat/1\.jpg, bytes 0 to 900, is corrupt: .*truncated"
    ):
        source[1]
    assert source[0][1] == source[2][1] == 0
    damaged.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.jpg"):
        Folder(tmp_path)[1]


def test_a_mistake_in_a_decoder_is_not_taken_for_a_corrupt_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(TypeError):
        Folder(tmp_path, extensions=["txt"], decode=lambda stored: stored + 1)[0]


@pytest.mark.parametrize("content", [b"", b"short", b"long" * 100])
def test_a_file_that_changed_its_size_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    picture(tmp_path / "a.png", 0)
    source = Folder(tmp_path)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png has changed since it was opened"):
        source.read(0)


def test_a_file_that_is_gone_is_an_error_of_the_store(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    source = Folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        source.read(0)


def test_folders_that_say_nothing_clear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files with extension"):
        Folder(tmp_path)
    picture(tmp_path / "cat" / "1.png", 0)
    with pytest.raises(DataError, match="class folder empty holds no files"):
        Folder(tmp_path)
    (tmp_path / "empty").rmdir()
    picture(tmp_path / "stray.png", 0)
    with pytest.raises(DataError, match=r"stray\.png is in no class folder"):
        Folder(tmp_path)
    assert Folder(tmp_path, labels=False).names == ["stray.png", "cat/1.png"]
    assert Folder(tmp_path, pattern="cat/*").targets == [0]
    with pytest.raises(DataError, match="nosuch://"):
        Folder("nosuch://x/y")


def test_any_store_that_fsspec_knows_gives_the_same_samples(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("cat/1.png", "dog/2.png"):
        picture(tmp_path / name, len(name))
        memory.pipe_file(f"/of-folders/{name}", (tmp_path / name).read_bytes())
    try:
        here, there = Folder(tmp_path), Folder("memory://of-folders")
        assert (here.names, here.targets, list(here.sizes())) == (
            there.names,
            there.targets,
            list(there.sizes()),
        )
        for index in range(2):
            assert here.read(index) == there.read(index)
        memory.pipe_file("/of-folders/cat/1.png", b"another")
        with pytest.raises(DataError, match=r"cat/1\.png has changed"):
            there.read(0)
    finally:
        memory.rm("/of-folders", recursive=True)


def test_a_source_is_a_sequence_that_keeps_the_contract_and_pickles(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    source = Folder(str(tmp_path) + "/")
    assert isinstance(source, StoredSamples)
    assert len(list(source)) == len(source) == 3
    assert np.array_equal(source[-1], source[2])
    assert np.array_equal(source.decode(1, memoryview(source.read(1))), source[1])
    for index in (3, -4):
        with pytest.raises(IndexError):
            source[index]
    copied = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copied[np.int64(1)], source[1])
    assert io.BytesIO(copied.read(0)).getvalue() == (tmp_path / "0.png").read_bytes()
