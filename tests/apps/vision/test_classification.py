"""Classification: its networks and data, what is refused, and a job on two ranks."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muster.apps.vision.classification import Classification
from muster.apps.vision.labelled_pictures import (
    PictureFiles,
    archived_pictures,
    channel_statistics,
    middle_square,
    read_pictures,
)
from muster.errors import DataError, JobError, RefusedInput
from muster.spec import load_job, template
from muster.training.evaluation import evaluate_exact
from muster.vision import LabelledSamples, Perceptron, ResNet, SmallCNN, load_classifier, read_digits

needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn carries the digits"
)


def application(**what: object) -> Classification:
    return Classification(Classification.What(app="vision.classification", **what))


@pytest.fixture
def pictures(tmp_path: Path, scene: Callable) -> Path:
    """`cat` and `dog`, three pictures of 16x12 each to train on and two held out; all are different."""
    root = tmp_path / "pets"
    for number in range(10):
        part, label = ("train" if number % 5 < 3 else "test"), ("cat" if number < 5 else "dog")
        (root / part / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(12, 16, seed=number)).save(root / part / label / f"{number}.png")
    return root


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_residual_networks_have_the_papers_numbers_of_parameters(depth: int, millions: float) -> None:
    """He et al. 2016, table 6."""
    count = sum(each.numel() for each in ResNet(depth).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if millions < 1 else 0.05)
    assert count == 269_722 or depth != 20


def test_a_residual_network_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"21 is not 6n \+ 2"):
        ResNet(21)


def test_the_networks_have_as_many_parameters_as_their_layers() -> None:
    counts = [
        sum(each.numel() for each in model.parameters())
        for model in (Perceptron(), SmallCNN(shape=(1, 8, 8)))
    ]
    assert counts == [
        64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10,
        16 * 9 + 16 + 32 * 16 * 9 + 32 + 128 * 10 + 10,
    ]


@pytest.mark.parametrize("model", [Perceptron(10, (3, 8, 8)), SmallCNN(10, (3, 8, 8)), ResNet(8)])
def test_pictures_are_standardized_within_whatever_their_type(model: torch.nn.Module) -> None:
    pictures = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    model.eval()
    assert torch.equal(model(pictures), model(pictures / 255))
    assert not any("mean" in name.split(".")[-1] and "standard" in name for name in model.state_dict())


def test_a_network_that_is_told_mean_and_deviation_sees_standardized_pictures() -> None:
    pictures = torch.rand(5, 2, 8, 8)
    plain, told = (Perceptron(3, (2, 8, 8), mean=mean, deviation=deviation) for mean, deviation in (
        ((0.0, 0.0), (1.0, 1.0)), ((0.5, 0.25), (0.5, 2.0)),
    ))  # fmt: skip
    told.load_state_dict(plain.state_dict())
    by_hand = (pictures - torch.tensor([0.5, 0.25]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    torch.testing.assert_close(told(pictures), plain(by_hand))


# ---- data -----------------------------------------------------------------------------------------------------------


@needs_digits
def test_digits_are_scikit_learns_and_a_fifth_of_every_class_is_held_out() -> None:
    from sklearn.datasets import load_digits

    whole, digits = load_digits(), read_digits()
    assert len(digits.train) + len(digits.test) == 1797
    given = sorted(
        zip(whole.images.round().astype(int).reshape(-1, 64).tolist(), whole.target.tolist(), strict=True)
    )
    read = [
        (np.rint(pixels.ravel() * (16 / 255)).astype(int).tolist(), int(label))
        for part in (digits.train, digits.test)
        for pixels, label in zip(part.pixels, part.labels, strict=True)
    ]
    assert sorted(read) == given
    assert np.array_equal(np.bincount(digits.test.labels), np.bincount(whole.target) // 5)


def test_mean_and_deviation_are_those_of_all_pixels(scene: Callable) -> None:
    pixels = np.stack([scene(9, 7, seed) for seed in range(3)])
    mean, deviation = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, (pixels / 255).std((0, 1, 2)), rtol=1e-12)
    assert channel_statistics(np.full((1, 2, 2, 1), 7, np.uint8))[1] == (1.0,)


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz", "folder of archives"])
def test_a_folder_and_its_archives_are_the_same_data(pictures: Path, tmp_path: Path, kind: str) -> None:
    path = pictures
    if kind != "folder":
        (tmp_path / "archives").mkdir()
        suffix = "tar.xz" if kind == "tar.xz" else "tar"
        path = tmp_path / "archives" / f"all.{suffix}"
        if kind == "folder of archives":
            for part in ("train", "test"):
                with tarfile.open(tmp_path / "archives" / f"{part}.tar", "w") as tar:
                    tar.add(pictures / part, f"pets/{part}")
            path = tmp_path / "archives"
        else:
            with tarfile.open(path, "w:xz" if suffix == "tar.xz" else "w") as tar:
                tar.add(pictures, "./")
    found = read_pictures(PictureFiles(path))
    assert found.classes == ("cat", "dog")
    assert (found.shape, found.train.labels.tolist(), found.test.labels.tolist()) == (
        (3, 12, 16), [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]
    )  # fmt: skip
    for part, numbers in ((found.train, (0, 1, 2, 5, 6, 7)), (found.test, (3, 4, 8, 9))):
        files = sorted(pictures.rglob("*.png"), key=lambda file: int(file.stem))
        assert all(
            np.array_equal(pixels, np.asarray(Image.open(files[number])))
            for pixels, number in zip(part.pixels, numbers, strict=True)
        )


def test_decoded_pictures_are_mapped_again_where_they_are_sent(pictures: Path) -> None:
    train = read_pictures(PictureFiles(pictures)).train
    sent = pickle.dumps(train)
    assert len(sent) < train.pixels.nbytes  # the path, not the pixels
    assert np.array_equal(pickle.loads(sent).pixels, train.pixels)


def test_a_damaged_cache_is_named(pictures: Path) -> None:
    size = read_pictures(PictureFiles(pictures)).train.pixels.size
    (cached,) = (Path(os.environ["XDG_CACHE_HOME"]) / "muster" / "pictures").glob(
        f"{PictureFiles(pictures).key()}/train.npy"
    )
    cached.unlink()
    np.save(cached, np.zeros(size - 1, np.uint8))
    with pytest.raises(DataError, match=r"the cache of decoded pictures is damaged .*; remove that folder"):
        read_pictures(PictureFiles(pictures))
    shutil.rmtree(cached.parent)


def test_pictures_of_several_sizes_are_brought_to_one(pictures: Path, scene: Callable) -> None:
    Image.fromarray(scene(20, 40)).save(pictures / "train" / "dog" / "wide.png")
    found = read_pictures(PictureFiles(pictures), 8)
    assert found.shape == (3, 8, 8)
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (20, 40, 3))
    assert np.array_equal(middle_square(np.ascontiguousarray(ramp), 20), ramp[:, 10:30])


def test_samples_are_shifted_and_mirrored_by_the_seed_alone(pictures: Path) -> None:
    data = application(data=str(pictures)).training_data()
    assert (len(data), data.labels.tolist(), data.augmentation) == (6, [0, 0, 0, 1, 1, 1], "crop-flip")
    original = data.pictures.pixels[4]
    margins = original.shape[0] // 8, original.shape[1] // 8
    wide = np.pad(original, ((margins[0],) * 2, (margins[1],) * 2, (0, 0)))
    possible = {
        window[:, ::turn].tobytes()
        for turn in (1, -1)
        for top in range(2 * margins[0] + 1)
        for left in range(2 * margins[1] + 1)
        for window in [wide[top : top + 12, left : left + 16]]
    }
    seen = set()
    for seed in range(300):
        torch.manual_seed(seed)
        sample, label = data[4]
        torch.manual_seed(seed)
        assert torch.equal(sample, data[4][0])
        assert (sample.dtype, sample.shape, label) == (torch.uint8, (3, 12, 16), 1)
        seen.add(np.ascontiguousarray(sample.numpy().transpose(1, 2, 0)).tobytes())
    assert len(possible) == 30  # 3 x 5 places, two ways round
    assert seen == possible


@needs_digits
def test_digits_are_neither_shifted_nor_mirrored_unless_asked() -> None:
    data = application().training_data()
    assert isinstance(data, LabelledSamples)
    assert np.array_equal(data[7][0].numpy()[0], read_digits().train.pixels[7, ..., 0])


# ---- what is refused ------------------------------------------------------------------------------------------------


def _spoil(root: Path, how: str) -> None:
    if how == "no test folder":
        for file in sorted((root / "test").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    elif how == "class unknown to train":
        (root / "test" / "cow").mkdir()
        (root / "test" / "dog" / "8.png").rename(root / "test" / "cow" / "8.png")
    elif how == "class missing in test":
        for file in (root / "test" / "dog").iterdir():
            file.unlink()
    elif how == "unreadable":
        (root / "train" / "cat" / "1.png").write_bytes(b"no picture")
    elif how == "truncated":
        content = (root / "train" / "cat" / "1.png").read_bytes()
        (root / "train" / "cat" / "1.png").write_bytes(content[: len(content) // 2])
    elif how == "another size":
        Image.new("RGB", (9, 9)).save(root / "train" / "dog" / "z.png")
    elif how == "too small":
        for file in root.rglob("*.png"):
            Image.new("RGB", (9, 3)).save(file)
    elif how == "in no class":
        Image.new("RGB", (16, 12)).save(root / "train" / "z.png")
    elif how == "one class":
        for part in ("train", "test"):
            for file in (root / part / "dog").iterdir():
                file.unlink()
    else:
        for file in root.rglob("*.png"):
            file.unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no test folder", r"pets: it holds no pictures in test/; give a folder with train/<class>/"),
        ("class unknown to train", r"test/cow is a class without pictures in train/; add some"),
        ("class missing in test", r"the class 'dog' has no pictures in test/; add test/dog/"),
        ("unreadable", r"train/cat/1\.png: it is no JPEG, PNG or WebP picture; convert or remove it"),
        ("truncated", r"train/cat/1\.png: .*; copy it again or remove it"),
        ("another size", r"z\.png: it has 9x9 pixels where .*/cat/\d\.png has 16x12; .* what\.size"),
        ("too small", r"test/cat/3\.png: 9x3 pixels are too few; give at least 4 on each side"),
        ("in no class", r"train/z\.png: it lies in no class; move it to train/<class>/"),
        ("one class", r"all pictures are of one class, 'cat'; give two or more"),
        ("no pictures", r"pets: it holds no pictures in train/"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused_in_a_sentence(pictures: Path, how: str, says: str) -> None:
    _spoil(pictures, how)
    with pytest.raises(DataError, match=says) as refused:
        application(data=str(pictures)).check(16)
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=says):
        application(data=str(pictures)).prepare()  # nor could it be decoded


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "no such folder or archive; give a folder with train"),
        ("empty", "it holds no folder 'train' and no tar archive"),
        ("notes.txt", "neither a folder nor a tar archive"),
    ],
)
def test_what_is_no_data_set_names_the_key_and_the_mend(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(JobError, match=f"{says}.*, or 'digits'") as refused:
        application(data=str(tmp_path / name)).check(16)
    assert refused.value.key == "what.data"


def test_a_broken_archive_is_named(pictures: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.tar.xz"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        tar.add(pictures, ".")
    archive.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
    with pytest.raises(DataError, match=r"all\.tar\.xz: it cannot be read as a tar archive .*copy it again"):
        application(data=str(archive)).check(16)


def test_digits_have_a_size_of_their_own() -> None:
    with pytest.raises(JobError, match="8x8 pixels as they are") as refused:
        application(size=16).check(16)
    assert refused.value.key == "what.size"
    assert refused.value.exit_code == RefusedInput.exit_code


def test_a_job_can_be_checked_without_torch(pictures: Path) -> None:
    code = (
        "import sys; from muster.apps.vision.classification import Classification as C; "
        f"C(C.What(app='vision.classification', data={str(pictures)!r})).check(16); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# ---- quality and results ----------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_all_held_out_pictures_also_where_classes_differ_in_size(
    pictures: Path,
) -> None:
    for number in range(5):  # seven dogs, two cats
        Image.new("RGB", (16, 12)).save(pictures / "test" / "dog" / f"more-{number}.png")
    app = application(data=str(pictures), model={"arch": "cnn-small"})
    torch.manual_seed(1)
    model = app.build_model().eval()
    test = app.pictures.test
    with torch.no_grad():
        scores = model(torch.from_numpy(test.pixels.transpose(0, 3, 1, 2).copy()))
    labels = torch.from_numpy(test.labels)
    found = evaluate_exact(model, app.evaluation_data(), app.evaluate).means()
    assert found["accuracy"] == pytest.approx(float((scores.argmax(1) == labels).double().mean()), abs=1e-12)
    assert found["cross_entropy"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5
    )


def test_the_loss_of_a_network_that_knows_nothing_is_the_logarithm_of_the_number_of_classes(
    pictures: Path,
) -> None:
    app = application(data=str(pictures))
    model = app.build_model()
    torch.nn.init.zeros_(model.layers[-1].weight)
    torch.nn.init.zeros_(model.layers[-1].bias)
    batch = torch.utils.data.default_collate([app.training_data()[index] for index in range(6)])
    assert app.loss(model, batch).item() == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("arch", ["mlp", "cnn-small", "resnet-20"])
def test_a_run_leaves_a_model_that_can_be_rebuilt(pictures: Path, tmp_path: Path, arch: str) -> None:
    from safetensors.torch import save_file

    app = application(data=str(pictures), model={"arch": arch, "width": 8})
    model = app.build_model().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata=app.metadata())
    rebuilt, classes = load_classifier(tmp_path / "model.safetensors")
    assert classes == ("cat", "dog")
    x = torch.randint(256, (2, 3, 12, 16), dtype=torch.uint8)
    assert torch.equal(rebuilt(x), model(x))


@needs_digits
def test_the_commented_job_file_loads_and_can_run(tmp_path: Path) -> None:
    path = tmp_path / "classification.yaml"
    path.write_text(template("classification"), encoding="utf-8")
    job = load_job(path, environ={})
    assert job.what.app == "vision.classification"
    Classification(job.what).check(job.how.batch)


@needs_digits
def test_digits_are_learnt_on_two_ranks(tmp_path: Path) -> None:
    """A perceptron reaches 95 % on held-out digits, where guessing gets 10 %; the run reports as all do."""
    (tmp_path / "job.yaml").write_text(
        "what: {app: vision.classification, model: {arch: mlp}, data: digits, seed: 1}\n"
        "how: {shape: gang, ranks: 2, steps: 250, batch: 64, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}\n"
        "where: {engine: local}\n"
    )
    ran = subprocess.run(
        ["muster", "run", "job.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280
    )
    assert ran.returncode == 0, ran.stderr
    (run,) = (tmp_path / "runs").glob("job-*")
    shown = json.loads(
        subprocess.check_output(["muster", "show", str(run), "--json"], text=True, timeout=120)
    )
    means = shown["metrics"]
    assert means["accuracy"] >= 0.95
    model, classes = load_classifier(run)
    test = read_digits().test
    with torch.no_grad():
        told = model(torch.from_numpy(test.pixels.transpose(0, 3, 1, 2).copy())).argmax(1).numpy()
    assert classes == tuple("0123456789")
    assert means["accuracy"] == pytest.approx((told == test.labels).mean(), abs=1e-12)
    assert "held-out pictures are mistaken" in (run / "report.html").read_text()


def test_cifar10_is_read_from_its_archives(data: Path) -> None:
    """Mean and deviation are those that everybody uses for CIFAR-10, though those are of other pictures, before JPEG."""
    archive = data / "cifar10" / "test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no cifar10 in {data}")
    found = archived_pictures([archive])
    assert np.bincount(found.labels).tolist() == [1000] * 10
    mean, deviation = channel_statistics(found.pixels)
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.005)
    np.testing.assert_allclose(deviation, (0.2470, 0.2435, 0.2616), atol=0.005)
