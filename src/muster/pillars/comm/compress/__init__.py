"""Compressed exchange of gradients: one compressor per bucket. May import torch, engine and errors.

`Compressor` is the contract, `load_compressor` finds one by name. Imported on first use, since torch is heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from muster.pillars.comm.compress.registry import compressor_names, load_compressor

if TYPE_CHECKING:
    from muster.pillars.comm.compress.compressor import (
        Compressor,
        CompressorState,
        ComputeRates,
        LinkModel,
        Part,
        parts_of,
    )
    from muster.pillars.comm.compress.rates import measure_rates
    from muster.pillars.comm.compress.wire import Wire

__all__ = [
    "Compressor",
    "CompressorState",
    "ComputeRates",
    "LinkModel",
    "Part",
    "Wire",
    "compressor_names",
    "load_compressor",
    "measure_rates",
    "parts_of",
]

_MODULES = dict.fromkeys(
    ["Compressor", "CompressorState", "ComputeRates", "LinkModel", "Part", "parts_of"], "compressor"
) | {"measure_rates": "rates", "Wire": "wire"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
