"""The trained model as a file that any reader can open: safetensors, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_model


def export_model(model: torch.nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Writes the weights to ``path``; complete or not at all, and equal weights give equal bytes.

    Arguments:
        model: any module; tensors that are shared are stored once.
        metadata: goes into the file's header.
        path: of the file.
    """
    draft = path.with_name(f".{path.name}.tmp")
    save_model(model, str(draft), metadata=metadata)
    _sort_metadata(draft)
    draft.chmod(0o644)  # safetensors makes it private; a model is there to be read
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _sort_metadata(path: Path) -> None:
    """Puts the header's metadata in order of key, in place: safetensors writes it in an order that changes between runs.

    The file begins with the header's length (8 bytes, little-endian) and the header, JSON padded with spaces.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"the header of {path} grew from {length} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(length))
