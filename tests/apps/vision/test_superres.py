"""The application: what a job may say, what is refused, what ranks train on and how quality is measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from muster.apps.vision.photo_cache import CachedPhotograph
from muster.apps.vision.resize import bicubic_downscale
from muster.apps.vision.strips import telling_crop
from muster.apps.vision.superres import SuperResolution
from muster.errors import DataError, JobError, RefusedInput
from muster.vision import load_model

needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None or importlib.util.find_spec("sklearn") is None,
    reason="scikit-image and scikit-learn carry the photographs",
)


def application(**what) -> SuperResolution:
    return SuperResolution(SuperResolution.What(app="vision.superres", **what))


@pytest.fixture
def prepared(folder) -> SuperResolution:
    app = application(data=str(folder), patch=32)
    app.check(16)
    app.prepare()
    return app


def test_a_job_can_be_checked_without_torch(folder):
    code = (
        "import sys; from muster.apps.vision.superres import SuperResolution as S; "
        f"S(S.What(app='vision.superres', data={str(folder)!r}, patch=32)).check(16); print('torch' in "
        "sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_public_names_are_imported_on_first_use():
    code = "import sys, muster.vision; print('torch' in sys.modules); from muster.vision import EDSR, upscale"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_every_key_of_a_job_is_described():
    schema = SuperResolution.What.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert all("description" in key for section in sections for key in section["properties"].values())


def test_relative_folders_become_absolute_so_that_ranks_elsewhere_find_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert application(data="photographs").what.data == str(tmp_path / "photographs")
    assert application().what.data == "sample-photos"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"patch": 97}, "scale 2 does not divide"),
        ({"patch": 32, "model": {"scale": 3}}, "a multiple of 3, such as 33"),
        ({"patch": 4}, "greater than or equal to 8"),
        ({"model": {"arch": "edsr-huge"}}, "edsr-small"),
        ({"model": {"scale": 5}}, "2, 3 or 4"),
        ({"colour": True}, "Extra inputs"),
        ({"patches_per_photograph": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_keys_are_refused(what, says):
    with pytest.raises(ValidationError, match=says):
        application(**what)


def test_a_patch_larger_than_the_smallest_photograph_names_it_and_the_largest_patch(folder):
    with pytest.raises(JobError, match=r"patch of 96 pixels .*a\.png \(72x64\); use at most 64") as refused:
        application(data=str(folder), patch=96).check(16)
    assert refused.value.key == "what.patch"


@pytest.mark.parametrize("key", ["data", "evaluation"])
def test_a_missing_or_empty_folder_names_the_key_and_the_mend(tmp_path, folder, key):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, says in [
        ("nowhere", "does not exist"),
        ("empty", "holds no photograph"),
        ("file", "is not a folder"),
    ]:
        with pytest.raises(JobError, match=rf"{name} {says}; give a folder of JPEG") as refused:
            application(**({"data": str(folder), "patch": 32} | {key: str(tmp_path / name)})).check(16)
        assert refused.value.key == f"what.{key}"


def test_an_unreadable_photograph_is_named(folder):
    content = (folder / "trip" / "c.png").read_bytes()
    (folder / "trip" / "c.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"trip/c\.png"):
        application(data=str(folder), patch=32).check(16)


def test_one_photograph_alone_is_refused_because_none_is_left_to_measure_on(tmp_path, scene):
    Image.fromarray(scene(64, 64)).save(tmp_path / "only.png")
    with pytest.raises(JobError, match=r"single photograph.*what\.evaluation"):
        application(data=str(tmp_path), patch=32).check(16)


def test_held_out_photographs_too_small_to_measure_on_are_refused(tmp_path, folder, scene):
    (tmp_path / "held-out").mkdir()
    Image.fromarray(scene(14, 40)).save(tmp_path / "held-out" / "small.png")
    with pytest.raises(JobError, match=r"small\.png \(40x14\) is too small"):
        application(data=str(folder), patch=32, evaluation=str(tmp_path / "held-out")).check(16)


def test_training_on_held_out_photographs_is_refused(folder):
    with pytest.raises(JobError, match="both the training and the evaluation"):
        application(data=str(folder), patch=32, evaluation=str(folder / "trip")).check(16)


@needs_packages
def test_sample_photos_hold_out_chelsea_and_china():
    app = application()
    app.check(16)
    app.prepare()
    assert [item.name for item in app.evaluation_data()] == ["chelsea", "china"]
    assert len(app.training_data()) == 6 * app.what.patches_per_photograph


@pytest.mark.parametrize(("photographs", "held_out"), [(2, 1), (9, 1), (25, 2), (300, 10)])
def test_a_folder_holds_out_a_tenth_at_least_1_at_most_10(tmp_path, photographs, held_out):
    small = Image.new("RGB", (32, 32))
    for number in range(photographs):
        small.save(tmp_path / f"{number:03d}.png")
    app = application(data=str(tmp_path), patch=32)
    training, evaluation = app._split()
    assert len(evaluation) == held_out
    assert len(training) == photographs - held_out
    assert not training.keys() & evaluation.keys()


def test_an_evaluation_folder_leaves_all_of_the_data_for_training(tmp_path, folder, scene):
    (tmp_path / "held-out").mkdir()
    Image.fromarray(scene(50, 50, seed=8)).save(tmp_path / "held-out" / "e.png")
    app = application(data=str(folder), patch=32, evaluation=str(tmp_path / "held-out"))
    app.check(16)
    assert [item.name for item in app.evaluation_data()] == ["e.png"]
    assert len({name for name in app._split()[0]}) == 4


def test_samples_are_aligned_pairs_in_all_orientations(prepared):
    data = prepared.training_data()
    photographs = data.photographs
    torch.manual_seed(0)
    seen = set()
    for index in range(120):
        lr, hr = data[index % len(data)]
        assert (lr.dtype, lr.shape, hr.dtype, hr.shape) == (
            torch.uint8,
            (3, 16, 16),
            torch.uint8,
            (3, 32, 32),
        )
        # Inside, away from the crop's own border, shrinking the large patch gives the small one, whatever
        # way it is
        # turned; a misaligned pair would be off by tens of grey levels. Rounding between the passes costs
        # one level.
        again = bicubic_downscale(np.ascontiguousarray(hr.numpy().transpose(1, 2, 0)), 2)
        assert np.abs(again[3:-3, 3:-3] - lr.numpy().transpose(1, 2, 0)[3:-3, 3:-3].astype(int)).max() <= 2
        whole = photographs[index % len(photographs)].hr
        seen.add(next(k for k in range(8) if _occurs(whole, hr.numpy().transpose(1, 2, 0), k)))
    assert seen == set(range(8))


def _occurs(whole, patch, orientation):
    turned = np.rot90(patch if orientation < 4 else patch[:, ::-1], orientation % 4)
    windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], (1, 32))[..., 0, :]
    for top, left in np.argwhere((windows == turned[0, :, 0]).all(axis=-1)):
        candidate = whole[top : top + 32, left : left + 32]
        if np.array_equal(candidate, turned):
            return True
    return False


def test_a_sample_depends_on_torchs_seed_alone(prepared):
    data = prepared.training_data()

    def sample(seed):
        torch.manual_seed(seed)
        return data[1]

    assert all(torch.equal(a, b) for a, b in zip(sample(4), sample(4), strict=True))
    assert not torch.equal(sample(4)[0], sample(5)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_the_mean_absolute_error(prepared, dtype):
    model = prepared.build_model().to(dtype)
    batch = torch.utils.data.default_collate([prepared.training_data()[k] for k in range(4)])
    loss = prepared.loss(model, batch)
    expected = (model(batch[0].to(dtype) / 255) - batch[1].to(dtype) / 255).abs().mean()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_falls_when_trained_on_edges(prepared):
    torch.manual_seed(0)
    model = prepared.build_model()
    stripes = (
        np.tile(np.repeat([20, 230, 90, 160], 5), 2)[None, :40, None]
        .repeat(40, 0)
        .repeat(3, 2)
        .astype(np.uint8)
    )
    pair = [bicubic_downscale(stripes, 2), stripes]
    batch = [torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in pair]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = prepared.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gain_of_an_untrained_edsr_small_is_exactly_0(folder, scale, dtype):
    app = application(data=str(folder), patch=24, model={"scale": scale})
    compute = torch.bfloat16 if dtype == torch.bfloat16 else None
    model = app.build_model().to(torch.float32 if compute else dtype).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute is not None):
        qualities = [app.evaluate(model, item) for item in app.evaluation_data()]
    assert [one["psnr_y_gain"] for one in qualities] == [0.0]
    assert qualities[0]["ssim_y"] == qualities[0]["ssim_y_bicubic"]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_reported_bicubic_of_set5_is_the_published_one(set5, scale):
    app = application(model={"scale": scale})
    model = app.build_model().eval()
    items = [CachedPhotograph(name, high, low) for name, high, low in set5(scale)]
    rows = [app.evaluate(model, item) for item in items]
    published_psnr = {2: 33.64, 3: 30.39, 4: 28.42}[scale]
    # SSIM of bicubic on Set5 in the tables of VDSR (arXiv:1511.04587).
    published_ssim = {2: 0.9299, 3: 0.8682, 4: 0.8104}[scale]
    assert np.mean([row["psnr_y_bicubic"] for row in rows]) == pytest.approx(published_psnr, abs=0.03)
    assert np.mean([row["ssim_y_bicubic"] for row in rows]) == pytest.approx(published_ssim, abs=0.001)
    assert all(row["psnr_y_gain"] == 0 for row in rows)


def test_a_run_leaves_a_model_that_can_be_rebuilt(prepared, tmp_path):
    model = prepared.build_model()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata=prepared.metadata())
    rebuilt = load_model(tmp_path / "model.safetensors")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(rebuilt(x), model(x))


def test_strips_show_four_panels_of_each_held_out_photograph(prepared, tmp_path):
    model = prepared.build_model().eval()
    prepared.illustrate(model, tmp_path / "pictures")
    prepared.illustrate(model, tmp_path / "pictures")  # again, as after a resume: replaced, not repeated
    lines = (tmp_path / "pictures" / "strips.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(prepared.evaluation_data())
    strip = json.loads(lines[0])
    assert [panel["label"] for panel in strip["panels"]] == [
        "low resolution",
        "bicubic",
        "edsr-small",
        "original",
    ]
    assert strip["panels"][2]["caption"].endswith("dB (+0.00)")
    sizes = {Image.open(tmp_path / "pictures" / panel["file"]).size for panel in strip["panels"]}
    assert len(sizes) == 1


def test_the_crop_of_a_strip_is_where_bicubic_errs_most():
    original = np.full((300, 400, 3), 128, np.uint8)
    bicubic = original.copy()
    bicubic[150:200, 260:330] = 90
    top, left, side = telling_crop(original, bicubic)
    assert top <= 150
    assert top + side >= 200
    assert left <= 260
    assert left + side >= 330


def test_refusals_end_with_exit_code_2(tmp_path):
    with pytest.raises(RefusedInput) as refused:
        application(data=str(tmp_path / "nowhere")).check(16)
    assert refused.value.exit_code == 2
