"""The trained model as a file that any reader can open: safetensors, no pickle."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_model


def export_model(model: torch.nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Writes the weights to ``path``; complete or not at all.

    Arguments:
        model: any module; tensors that are shared are stored once.
        metadata: goes into the file's header.
        path: of the file.
    """
    draft = path.with_name(f".{path.name}.tmp")
    save_model(model, str(draft), metadata=metadata)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
