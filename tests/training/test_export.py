"""The exported model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from muster.training.export import export_model


def test_equal_weights_give_equal_bytes_and_the_metadata_can_be_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    metadata = {name: f"Wert “{name}”" for name in "zyxwvutsrq"}
    contents = set()
    for attempt in range(5):
        export_model(
            model, dict(sorted(metadata.items(), reverse=attempt % 2 == 0)), tmp_path / "model.safetensors"
        )
        contents.add((tmp_path / "model.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        read = file.metadata()
        assert {name: read[name] for name in metadata} == metadata
        assert torch.equal(file.get_tensor("weight"), model.weight)


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    first = torch.nn.Linear(100, 100, bias=False)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), first)
    export_model(model, {"a": "b"}, tmp_path / "model.safetensors")
    assert 40_000 < (tmp_path / "model.safetensors").stat().st_size < 42_000
