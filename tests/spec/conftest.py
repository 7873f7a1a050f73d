"""Job files to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

VALID = """\
name: superres
what:
  app: vision.superres
  model: {arch: edsr-small, scale: 2}
  data: sample-photos
  seed: 7
how:
  shape: gang
  ranks: 2
  steps: 600
  batch: 16
  optimizer:
    name: adam
    lr: 1e-3
  checkpoint_every: 30s
where:
  engine: embedded
  min_ranks: 1
"""


@pytest.fixture
def valid() -> str:
    return VALID


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a job file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "my.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
