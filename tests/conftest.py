"""What all tests share: the applications they train, the data folder, one embedded engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

APPLICATIONS = Path(__file__).parent / "applications"
sys.path.insert(0, str(APPLICATIONS))
# The command `muster` of the environment that runs the tests, also where it has not been activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(APPLICATIONS), os.environ.get("PYTHONPATH", "")])
)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data to measure on; not part of the project."""
    folder = Path(os.environ.get("MUSTER_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set MUSTER_DATA")
    return folder


@pytest.fixture(scope="session")
def local_engine() -> Iterator[object]:
    """Ranks as forked processes, without Ray."""
    from muster import gang

    with gang.engine("local", preload=["muster.training.synchronous"]) as engine:
        yield engine


@pytest.fixture(scope="session")
def ray_engine() -> Iterator[object]:
    """One embedded Ray for the whole suite; a test that kills its engine starts its own."""
    from muster import gang

    with gang.engine("embedded", cpus=4) as engine:
        yield engine
