"""What a run has left: the header and the weights of its `model.safetensors`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from muster.engine.run_folder import RunFolder
from muster.errors import DataError


class HasModel(Protocol):
    """A run, in whatever form: it knows where its model is."""

    @property
    def model_path(self) -> Path: ...


def read_model(
    path: str | os.PathLike[str] | HasModel, app: str
) -> tuple[Path, dict[str, str], dict[str, torch.Tensor]]:
    """The file, its header and its weights.

    Arguments:
        path: a `model.safetensors`, the run folder that holds one, or a `RunFolder`.
        app: the application that must have written it.

    Raises:
        RunNotFound: the folder is no run folder.
        DataError: no such file, or it is not a model of that application.
    """
    if not isinstance(path, (str, os.PathLike)):
        file = path.model_path
    else:
        file = RunFolder(path).model_path if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(
            f"{file}: no such model; a run writes it when it is done (`muster ls` lists the runs)"
        )
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{file}: it cannot be read as safetensors ({error}); export the model again"
        ) from error
    if header.get("app") != app:
        raise DataError(
            f"{file}: written by {header.get('app', 'another program')!r}; want a model of {app!r}"
        )
    return file, header, weights
