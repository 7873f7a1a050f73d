"""Input that looks ahead, for a plain PyTorch loop::

    from muster.io import LookAheadLoader, WebDatasetTar

    dataset = WebDatasetTar("s3://bucket/train-{000..099}.tar")
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
    from muster.pillars.io.sources import Folder as Folder
    from muster.pillars.io.sources import MosaicShards as MosaicShards
    from muster.pillars.io.sources import Npy as Npy
    from muster.pillars.io.sources import Parquet as Parquet
    from muster.pillars.io.sources import WebDatasetTar as WebDatasetTar
    from muster.pillars.io.sources import Zarr as Zarr
    from muster.pillars.io.sources import open_source as open_source
    from muster.pillars.io.sources import register_decoder as register_decoder

_HOME: Final = {
    "Folder": "sources",
    "LoaderStatistics": "loader_statistics",
    "LookAheadLoader": "loader",
    "MosaicShards": "sources",
    "Npy": "sources",
    "Parquet": "sources",
    "StoredSamples": "samples",
    "WebDatasetTar": "sources",
    "Zarr": "sources",
    "open_source": "sources",
    "register_decoder": "sources",
}

__all__ = [
    "Folder",
    "LoaderStatistics",
    "LookAheadLoader",
    "MosaicShards",
    "Npy",
    "Parquet",
    "StoredSamples",
    "WebDatasetTar",
    "Zarr",
    "open_source",
    "register_decoder",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.pillars.io.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.io' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
