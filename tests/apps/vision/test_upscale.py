"""Enlarging a picture: seamless tiles, bounded memory, and every kind of picture a user has."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from muster.apps.vision import upscale as upscale_module
from muster.apps.vision.edsr import ARCHITECTURES, EDSR, Architecture
from muster.apps.vision.inference import default_tile, load_model, self_ensemble
from muster.apps.vision.tiling import enlarged_bands, tile_count
from muster.errors import DataError
from muster.vision import bicubic_upscale, upscale, upscale_file


def lively(arch: str | Architecture, scale: int) -> EDSR:
    """A network whose output depends on all of its weights, as after training."""
    torch.manual_seed(3)
    model = EDSR(arch, scale)
    if model.architecture.bicubic_skip:
        torch.nn.init.normal_(model.tail[0].weight, std=0.02)
    return model.eval()


@pytest.fixture
def model() -> EDSR:
    return lively(Architecture(blocks=2, features=6), 2)


def run_file(path, model, **header):
    save_file(
        model.state_dict(),
        path,
        metadata={"app": "vision.superres", "arch": "edsr-small", "scale": "2"} | header,
    )
    return path


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize(
    ("arch", "scale"),
    [
        ("edsr-small", 2),
        ("edsr-small", 3),
        (Architecture(3, 8), 4),
        (Architecture(2, 8, bicubic_skip=True), 4),
    ],
)
def test_tiles_leave_no_seam(arch, scale, ensemble):
    model = lively(arch, scale)
    x = torch.rand(1, 3, 61, 90)
    forward = (lambda piece: self_ensemble(model, piece)) if ensemble else model

    def enlarge(piece):
        return forward(torch.from_numpy(piece.transpose(2, 0, 1).copy())[None])[0].numpy().transpose(1, 2, 0)

    with torch.inference_mode():
        image = x[0].numpy().transpose(1, 2, 0)
        bands = enlarged_bands(enlarge, image, scale=scale, tile=23, margin=model.receptive_radius)
        tiled, whole = np.concatenate(list(bands)), enlarge(image)
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).max() < 1e-5


def test_a_margin_smaller_than_the_receptive_radius_would_leave_seams():
    model = lively("edsr-small", 2)
    image = np.random.default_rng(0).random((40, 40, 3), dtype=np.float32)

    def enlarge(piece):
        return model(torch.from_numpy(piece.transpose(2, 0, 1).copy())[None])[0].numpy().transpose(1, 2, 0)

    with torch.inference_mode():
        seams = np.concatenate(list(enlarged_bands(enlarge, image, scale=2, tile=20, margin=1))) - enlarge(
            image
        )
    assert np.abs(seams).max() > 1e-3


def test_tiles_are_counted_and_announced(model, scene):
    calls = []
    image = scene(50, 33)
    list(
        enlarged_bands(
            lambda piece: piece, image, scale=1, tile=20, margin=4, on_tile=lambda: calls.append(1)
        )
    )
    assert len(calls) == tile_count(50, 33, 20) == 6


def test_no_layer_ever_sees_more_than_a_tile_and_its_margins(model, scene):
    largest = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, output: largest.append(inputs[0].shape[-2:].numel())
            )
    upscale(model, scene(200, 170), tile=32)
    assert max(largest) <= (2 * (32 + 2 * model.receptive_radius)) ** 2


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
@pytest.mark.parametrize("scale", [2, 4])
def test_default_tiles_keep_margins_affordable(arch, scale):
    with torch.device("meta"):
        model = EDSR(arch, scale)
    tile, margin = default_tile(model), model.receptive_radius
    assert (tile + 2 * margin) ** 2 <= 2.25 * tile**2


MEMORY = """
import resource, sys
import torch
from PIL import Image
from muster.apps.vision.edsr import EDSR, Architecture
from muster.vision import upscale_file
torch.set_num_threads(1)
model = EDSR(Architecture(blocks=1, features=16), 2)
Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(sys.argv[1] + "/warm.png")
upscale_file(model, sys.argv[1] + "/warm.png", sys.argv[1] + "/warm-2.png", tile=64, progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Image.radial_gradient("L").resize((1600, 1600)).convert("RGB").save(sys.argv[1] + "/large.png")
upscale_file(model, sys.argv[1] + "/large.png", sys.argv[1] + "/large-2.png", tile=64, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_does_not_grow_with_the_activations_of_the_whole_picture(tmp_path):
    grown_kib = int(subprocess.check_output([sys.executable, "-c", MEMORY, str(tmp_path)], text=True))
    activation_kib = 3200 * 3200 * 16 * 4 / 1024  # of the last convolution's input: 640 MiB
    output_kib = 3200 * 3200 * 3 / 1024
    assert grown_kib < activation_kib / 8
    assert grown_kib < 2 * output_kib
    assert Image.open(tmp_path / "large-2.png").size == (3200, 3200)


def test_an_untrained_edsr_small_enlarges_by_bicubic(scene):
    image = (scene(30, 40) // 2 + 60).astype(np.uint8)
    difference = upscale(EDSR("edsr-small", 3), image).astype(int) - bicubic_upscale(image, 3)
    assert np.abs(difference).max() <= 1  # bicubic_upscale rounds between its passes


@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 1), (9, 12, 2), (9, 12, 3), (9, 12, 4)])
def test_arrays_keep_their_axes_and_channels(model, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert upscale(model, image).shape == (18, 24, *shape[2:])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_files_keep_what_they_show(model, tmp_path, scene, mode, suffix):
    source = tmp_path / "photo.png"
    Image.fromarray(scene(20, 26)).convert("RGBA").convert(mode).save(source)
    assert upscale_file(model, source, tmp_path / f"big{suffix}", progress=False) == (52, 40)
    big = Image.open(tmp_path / f"big{suffix}")
    assert big.size == (52, 40)
    assert upscale(model, source).mode == mode
    if suffix == ".png":
        assert np.array_equal(np.asarray(big), np.asarray(upscale(model, Image.open(source))))


def test_transparency_is_enlarged_by_bicubic(model, scene):
    image = np.concatenate([scene(12, 14), scene(12, 14, seed=1)[..., :1]], axis=2)
    with_alpha = upscale(model, image)
    assert np.array_equal(with_alpha[..., :3], upscale(model, image[..., :3].copy()))
    opaque = np.concatenate([image[..., :3], np.full((12, 14, 1), 255, np.uint8)], axis=2)
    assert (upscale(model, opaque)[..., 3] == 255).all()


def test_the_orientation_of_the_camera_is_applied(model, tmp_path, scene):
    image = scene(10, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    turned = upscale(model, np.rot90(image, -1).copy())
    assert np.array_equal(np.asarray(upscale(model, tmp_path / "photo.png")), turned)


def test_the_colour_profile_is_passed_on(model, tmp_path, scene):
    Image.fromarray(scene(8, 8)).save(tmp_path / "photo.png", icc_profile=b"some profile")
    for name in ("big.png", "big.jpg", "big.webp"):
        upscale_file(model, tmp_path / "photo.png", tmp_path / name, progress=False)
        assert Image.open(tmp_path / name).info["icc_profile"] == b"some profile"


def test_the_model_is_left_in_the_mode_it_was_in(model, scene):
    model.train()
    upscale(model, scene(8, 8))
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_comes_back_to_the_bit(tmp_path, dtype, scene):
    model = lively("edsr-small", 2).to(dtype)
    path = run_file(tmp_path / "model.safetensors", model)
    loaded = load_model(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert np.array_equal(upscale(path, scene(9, 9)), upscale(model, scene(9, 9)))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"app": "graph.embedding"}, "written by 'graph.embedding'"),
        ({"arch": "edsr-full"}, "disagree"),
        ({"arch": "edsr-huge"}, "no architecture 'edsr-huge'"),
        ({"scale": "7"}, "scale 7"),
    ],
)
def test_a_model_of_something_else_is_refused(tmp_path, header, says):
    path = run_file(tmp_path / "model.safetensors", EDSR("edsr-small", 2), **header)
    with pytest.raises(DataError, match=rf"model\.safetensors: .*{says}"):
        load_model(path)


def test_a_damaged_or_missing_model_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_model(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="no such model"):
        load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("big.gif", "name it .png"),
        ("nowhere/big.png", "nowhere does not exist"),
        ("big.jpg", "cannot hold the transparency"),
    ],
)
def test_targets_that_cannot_be_written_are_refused_before_any_work(model, tmp_path, scene, target, says):
    image = np.concatenate([scene(12, 14), scene(12, 14, seed=1)[..., :1]], axis=2)
    Image.fromarray(image).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=says):
        upscale_file(model, tmp_path / "photo.png", tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


def test_webp_larger_than_the_format_allows_is_refused(model, tmp_path):
    Image.new("RGB", (8200, 4)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"\.webp cannot hold 16400x8 pixels; name it \.png"):
        upscale_file(model, tmp_path / "wide.png", tmp_path / "big.webp")


def test_an_interrupted_run_leaves_no_target(model, tmp_path, scene, monkeypatch):
    Image.fromarray(scene(40, 40)).save(tmp_path / "photo.png")
    calls = []

    def interrupted(module, inputs, output):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    model.tail[-1].register_forward_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        upscale_file(model, tmp_path / "photo.png", tmp_path / "big.png", tile=8, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


def test_arrays_that_are_no_pictures_and_tiles_of_nothing_are_refused(model):
    with pytest.raises(ValueError, match="uint8"):
        upscale(model, np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="tile of 0"):
        upscale(model, np.zeros((4, 4, 3), np.uint8), tile=0)


def test_progress_appears_only_when_it_takes_long(model, tmp_path, scene, monkeypatch, capfd):
    Image.fromarray(scene(30, 30)).save(tmp_path / "photo.png")
    assert upscale_module._PROGRESS_AFTER_S == 2.0
    monkeypatch.setattr(upscale_module, "_PROGRESS_AFTER_S", 300.0)  # a busy machine takes its time
    upscale_file(model, tmp_path / "photo.png", tmp_path / "big.png", tile=8)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(upscale_module, "_PROGRESS_AFTER_S", 0.0)
    upscale_file(model, tmp_path / "photo.png", tmp_path / "big.png", tile=8)
    assert capfd.readouterr().out == ""
