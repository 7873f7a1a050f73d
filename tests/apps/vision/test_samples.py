"""The photographs of the wheels are found without importing the packages, and are the ones we mean."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys

import pytest

from muster.apps.vision import samples
from muster.errors import DataError, MissingExtra

needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None or importlib.util.find_spec("sklearn") is None,
    reason="scikit-image and scikit-learn carry the photographs",
)


@needs_packages
def test_every_sample_is_there_with_its_checksum():
    paths = samples.sample_paths()
    assert len(paths) == 8
    for sample in samples.SAMPLES:
        assert hashlib.sha256(paths[sample.name].read_bytes()).hexdigest() == sample.sha256


@needs_packages
def test_the_split_keeps_scenes_together():
    held_out = {sample.name for sample in samples.SAMPLES if sample.held_out}
    assert held_out == {"chelsea", "china"}
    assert {"motorcycle_left", "motorcycle_right"} <= {s.name for s in samples.SAMPLES if not s.held_out}


@needs_packages
def test_finding_them_imports_neither_package_nor_torch():
    code = (
        "import sys; from muster.apps.vision.samples import sample_paths; sample_paths(); "
        "print([m for m in ('skimage', 'sklearn', 'torch', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"scikit-image.*pip install 'muster\[samples\]'"):
        samples.sample_paths()


@pytest.mark.parametrize(
    ("content", "says"), [(b"other", "SHA-256 differs; a newer"), (None, "comes without it")]
)
def test_another_version_of_a_file_is_refused_by_name(tmp_path, monkeypatch, content, says):
    for module in ("skimage", "sklearn"):
        (tmp_path / module / "data").mkdir(parents=True)
        (tmp_path / module / "__init__.py").touch()
    if content:
        (tmp_path / "skimage" / "data" / "astronaut.png").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("skimage", "sklearn"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(DataError, match=rf"astronaut\.png: .*{says}"):
        samples.sample_paths()
