from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from make_run import make_run

from muster.engine.run_folder import RunFolder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two ranks, 300 steps, killed after step 180 and continued from 160; read-only for the tests."""
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes a run folder of the test's own; arguments as `make_run`."""
    return lambda name="superres", **settings: make_run(tmp_path, name, **settings)
