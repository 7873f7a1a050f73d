"""Input that looks ahead, for a plain PyTorch loop::

    from muster.io import LookAheadLoader

    loader = LookAheadLoader(dataset, 32, sampler=DistributedSampler(dataset), epochs=10, workers=4)

Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.pillars.io.loader import LookAheadLoader as LookAheadLoader
    from muster.pillars.io.loader_statistics import LoaderStatistics as LoaderStatistics
    from muster.pillars.io.samples import StoredSamples as StoredSamples

_HOME: Final = {
    "LoaderStatistics": "loader_statistics",
    "LookAheadLoader": "loader",
    "StoredSamples": "samples",
}

__all__ = ["LoaderStatistics", "LookAheadLoader", "StoredSamples"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.pillars.io.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.io' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
