"""Data for the tests of super-resolution."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "vision-cache"))


@pytest.fixture(scope="session")
def superres_data() -> Path:
    """The folder ``superres`` of the shared data: Set5 and its low-resolution files."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("MUSTER_DATA") or beside) / "superres"
    if not folder.is_dir():
        pytest.skip(f"no Set5 in {folder}; set MUSTER_DATA to the folder that holds superres/set5")
    return folder


@pytest.fixture(scope="session")
def set5(superres_data: Path) -> Callable[[int], list[tuple[str, Pixels, Pixels]]]:
    """Name, high and low resolution of the five photographs at a scale, high cropped to scale x low."""

    def load(scale: int) -> list[tuple[str, Pixels, Pixels]]:
        triples = []
        for path in sorted((superres_data / "set5").glob("*.png")):
            low_path = superres_data / "set5_lr" / f"image_SRF_{scale}" / f"{path.stem}_SRF_{scale}_LR.png"
            low = np.asarray(Image.open(low_path).convert("RGB"))
            high = np.asarray(Image.open(path).convert("RGB"))
            triples.append((path.stem, high[: scale * low.shape[0], : scale * low.shape[1]], low))
        assert len(triples) == 5
        return triples

    return load


@pytest.fixture
def scene() -> Callable[..., Pixels]:
    """Makes a smooth picture with texture and edges, different for every seed."""

    def make(height: int, width: int, seed: int = 0) -> Pixels:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        phases = rng.uniform(0, 6, 3)
        waves = np.stack([np.sin(x / (3 + k) + phases[k]) * np.cos(y / (5 + k)) for k in range(3)], axis=-1)
        edges = 40 * ((x + y) // 23 % 2)[..., None]
        return np.clip(110 + 60 * waves + edges + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)

    return make


@pytest.fixture
def folder(tmp_path: Path, scene: Callable[..., Pixels]) -> Path:
    """A folder of four PNG photographs, 64x72 and larger, one of them in a subfolder."""
    root = tmp_path / "photographs"
    (root / "trip").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "trip/c.png", "trip/d.png"]):
        Image.fromarray(scene(64 + 6 * number, 72 + 4 * number, seed=number)).save(root / name)
    return root
