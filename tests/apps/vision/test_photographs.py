"""A folder of photographs is read as a person sees them, and what cannot be used is refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from muster.apps.vision.photographs import find_photographs, inspect_photograph, read_photograph
from muster.errors import DataError


def png_16bit(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, grey [h, w] or RGB [h, w, 3], assembled by hand: Pillow writes none in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], samples.shape[0], 16, 0 if samples.ndim == 2 else 2, 0, 0, 0
    )
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_folders_are_searched_recursively_in_order_and_hidden_files_are_left_out(tmp_path):
    for name in ["b.JPG", "sub/deep/a.webp", "a.png", ".hidden.png", ".thumbs/x.png", "notes.txt", "c.jpeg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_photographs(tmp_path)]
    assert found == ["a.png", "b.JPG", "c.jpeg", "sub/deep/a.webp"]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_lossless_files_come_back_to_the_bit(tmp_path, scene, suffix):
    image = scene(20, 30)
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(image).save(path, lossless=True)
    assert np.array_equal(read_photograph(path), image)
    assert (inspect_photograph(path).width, inspect_photograph(path).height) == (30, 20)


def test_jpeg_comes_back_nearly(tmp_path, scene):
    image = scene(32, 48) // 4 + 96
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "photo.jpg", quality=98, subsampling=0)
    assert np.abs(read_photograph(tmp_path / "photo.jpg").astype(int) - image).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_camera_is_applied(tmp_path, scene, orientation):
    stored = scene(8, 12)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    # EXIF 2.32, table of tag 274: which side of the stored picture is the visual top and which the visual
    # left.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]
    assert np.array_equal(read_photograph(tmp_path / "photo.png"), upright)


def test_16_bit_samples_keep_their_upper_8_bits(tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (9, 11, 3))
    (tmp_path / "rgb.png").write_bytes(png_16bit(samples))
    (tmp_path / "grey.png").write_bytes(png_16bit(samples[..., 0]))
    assert np.array_equal(read_photograph(tmp_path / "rgb.png"), samples >> 8)
    assert np.array_equal(read_photograph(tmp_path / "grey.png"), (samples[..., :1] >> 8).repeat(3, axis=2))


def test_grey_becomes_rgb_and_palettes_are_resolved(tmp_path, scene):
    grey = scene(9, 10)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_photograph(tmp_path / "grey.png"), grey[..., None].repeat(3, axis=2))
    palette = Image.fromarray(scene(9, 10)).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_photograph(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_transparency_is_flattened_onto_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    assert read_photograph(tmp_path / "cut.png").tolist() == [
        [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    ]


def test_a_telephones_jpeg_with_a_second_picture_behind_it_is_a_photograph(tmp_path, scene):
    first, second = (Image.fromarray(scene(16, 24, seed)) for seed in (0, 1))
    path = tmp_path / "phone.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second])
    assert inspect_photograph(path).width == 24
    assert read_photograph(path).shape == (16, 24, 3)


def corrupt(kind: str, image: np.ndarray) -> bytes:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if kind == "cmyk":
        picture.convert("CMYK").save(buffer, "JPEG")
    elif kind.startswith("animated"):
        other = Image.fromarray(image[::-1].copy())
        picture.save(buffer, kind.split()[1], save_all=True, append_images=[other])
    elif kind.startswith("truncated"):
        picture.save(buffer, kind.split()[1])
        return buffer.getvalue()[: len(buffer.getvalue()) // 2]
    elif kind == "bad checksum":
        picture.save(buffer, "PNG")
        content = bytearray(buffer.getvalue())
        content[len(content) // 2] ^= 1
        return bytes(content)
    elif kind == "tiff":
        picture.save(buffer, "TIFF")
    return buffer.getvalue() if kind != "text" else b"not a picture at all\n"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cmyk", "CMYK; convert it to RGB"),
        ("animated PNG", "animated"),
        ("animated WEBP", "animated"),
        ("truncated JPEG", "[Tt]runcated"),
        ("truncated PNG", "cannot be read"),
        ("truncated WEBP", "truncated|cannot be read"),
        ("bad checksum", "cannot be read"),
        ("tiff", "no JPEG, PNG or WebP"),
        ("text", "no JPEG, PNG or WebP"),
        ("empty", "no JPEG, PNG or WebP"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_without_and_with_decoding(tmp_path, scene, kind, says):
    path = tmp_path / "bad photo.png"
    path.write_bytes(corrupt(kind, scene(40, 50)))
    with pytest.raises(DataError, match=rf"bad photo\.png: .*({says})"):
        inspect_photograph(path)
    with pytest.raises(DataError, match=r"bad photo\.png: "):
        read_photograph(path)


def test_a_preview_inside_a_truncated_jpeg_does_not_hide_that_its_end_is_missing(tmp_path, scene):
    preview = io.BytesIO()
    Image.fromarray(scene(8, 8)).save(preview, "JPEG")
    whole = io.BytesIO()
    Image.fromarray(scene(60, 60)).save(whole, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(preview.getvalue())) + preview.getvalue()
    content = whole.getvalue()[:2] + comment + whole.getvalue()[2:]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert inspect_photograph(path).width == 60
    path.write_bytes(content[:-200])
    with pytest.raises(DataError, match=r"photo\.jpg: the file is truncated"):
        inspect_photograph(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damage_anywhere_is_read_or_refused_but_never_a_traceback(tmp_path, scene, kind):
    buffer = io.BytesIO()
    Image.fromarray(scene(24, 24)).save(buffer, kind)
    rng = np.random.default_rng(5)
    path = tmp_path / "photo.png"
    refusals = []
    for _ in range(150):
        content = bytearray(buffer.getvalue())
        for _ in range(int(rng.integers(1, 6))):
            content[int(rng.integers(len(content)))] = int(rng.integers(256))
        path.write_bytes(content[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else content)
        for read in (inspect_photograph, read_photograph):
            try:
                read(path)
            except DataError as error:
                refusals.append(str(error))
    assert len(refusals) > 20
    assert all("photo.png: " in refusal for refusal in refusals)


@pytest.mark.parametrize(("content", "says"), [(None, "no such folder"), ("empty", "no photograph")])
def test_a_folder_without_photographs_is_refused(tmp_path, content, says):
    folder = tmp_path / "photographs"
    if content:
        folder.mkdir()
    with pytest.raises(DataError, match=rf"photographs: {says}.*give a folder"):
        find_photographs(folder)
