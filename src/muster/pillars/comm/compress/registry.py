"""Compressors by name: those that come with Muster, and those of the entry-point group ``muster.compressors``."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from muster.errors import RefusedInput

if TYPE_CHECKING:
    from muster.pillars.comm.compress.compressor import Compressor

GROUP = "muster.compressors"

_HERE = "muster.pillars.comm.compress"
_BUILT_IN = {
    "none": f"{_HERE}.uncompressed:Uncompressed",
    "fp16": f"{_HERE}.half:Fp16",
    "bf16": f"{_HERE}.half:Bf16",
    "int8": f"{_HERE}.int8:Int8",
    "powersgd": f"{_HERE}.powersgd:PowerSGD",
    "topk": f"{_HERE}.topk:TopK",
    "oktopk": f"{_HERE}.oktopk:OkTopK",
}


def compressor_names() -> list[str]:
    """All names that `load_compressor` knows, sorted."""
    return sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def load_compressor(name: str) -> type[Compressor]:
    """The compressor's class.

    Raises:
        RefusedInput: there is none of that name, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        loaded: type[Compressor] = getattr(importlib.import_module(module), attribute)
        return loaded
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()  # type: ignore[no-any-return]
        except ImportError as error:
            raise RefusedInput(
                f"compression: {name!r} comes from {entry.value}, which cannot be imported ({error}); install its package"
            ) from error
    raise RefusedInput(f"compression: no compressor {name!r}; use one of {', '.join(compressor_names())}")
