"""`sample-photos`: the colour photographs that the scikit-image and scikit-learn packages carry with them.

Nothing is downloaded, and neither package is imported (that takes seconds): only their files are read. The
list is fixed by SHA-256, so that a result means the same everywhere; it holds for scikit-image 0.25 and
0.26 and scikit-learn 1.5 to 1.9, and a later release that changes a file is refused rather than used.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from muster.errors import DataError, MissingExtra

#: The name by which a job asks for these photographs.
SAMPLE_PHOTOS: Final = "sample-photos"


@dataclass(frozen=True)
class Sample:
    """A photograph, or other data, in an installed package.

    Arguments:
        name: what it is called in metrics.
        package: what to install.
        module, file: the top-level module, and the file below its folder.
        sha256: of the file.
        held_out: it measures quality and is never trained on.
    """

    name: str
    package: str
    module: str
    file: str
    sha256: str
    held_out: bool = False


def _skimage(file: str, sha256: str, held_out: bool = False) -> Sample:
    return Sample(Path(file).stem, "scikit-image", "skimage", f"data/{file}", sha256, held_out)


def _sklearn(file: str, sha256: str, held_out: bool = False) -> Sample:
    return Sample(Path(file).stem, "scikit-learn", "sklearn", f"datasets/images/{file}", sha256, held_out)


# The two motorcycle pictures are one scene seen by two cameras, so both are on one side of the split.
SAMPLES: Final = (
    _skimage("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    _skimage("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    _skimage("motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
    _skimage("motorcycle_right.png", "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797"),
    _skimage("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    _sklearn("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    _skimage("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", True),
    _sklearn("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29", True),
)


def sample_paths() -> dict[str, Path]:
    """The file of every sample, by name; existence and checksums are verified.

    Raises:
        MissingExtra: a package is not installed.
        DataError: a package lacks a file or holds another version of it.
    """
    return {sample.name: verified(sample, SAMPLE_PHOTOS) for sample in SAMPLES}


def verified(sample: Sample, data: str) -> Path:
    """The file of a sample.

    Arguments:
        sample: which.
        data: the name of the data set that it is part of.

    Raises:
        MissingExtra, DataError: as `sample_paths`.
    """
    spec = importlib.util.find_spec(sample.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(sample.package, "samples", f"the data set {data!r}")
    path = Path(spec.submodule_search_locations[0], sample.file)
    if not path.is_file():
        raise DataError(f"{path}: {sample.package} comes without it; {_MEND.format(sample.package)}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sample.sha256:
        raise DataError(
            f"{path}: not the file that {data!r} means (its SHA-256 differs; a newer "
            f"{sample.package} may have changed it); {_MEND.format(sample.package)}"
        )
    return path


_MEND: Final = "reinstall {} at the version that Muster names in its 'samples' extra, or use your own folder"
