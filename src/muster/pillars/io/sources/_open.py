"""The source that an address stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from muster.errors import DataError
from muster.pillars.io.sources._folder import Folder
from muster.pillars.io.sources._mosaic import MosaicShards
from muster.pillars.io.sources._npy import Npy
from muster.pillars.io.sources._parquet import Parquet
from muster.pillars.io.sources._source import Source
from muster.pillars.io.sources._store import Store
from muster.pillars.io.sources._webdataset import WebDatasetTar
from muster.pillars.io.sources._zarr import Zarr


def open_source(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    options: dict[str, Any] | None = None,
    timeout_s: float = 60.0,
    **arguments: Any,
) -> Source:
    """The source of an address, by its extension or by what its folder holds.

    ======================================== ===============
    address                                  source
    ======================================== ===============
    ``x.tar``, several, with ``{00..12}``    `WebDatasetTar`
    ``x.parquet``, several, with ``{00..12}``  `Parquet`
    ``x.npy``                                `Npy`
    a folder with ``zarr.json`` or ``.zarray``   `Zarr`
    a folder with ``index.json``             `MosaicShards`
    a folder of ``*.tar`` only               `WebDatasetTar`
    a folder of ``*.parquet`` only           `Parquet`
    any other folder                         `Folder`
    ======================================== ===============

    Arguments:
        url: a path or URL, or several of tars or of Parquet files.
        options: for fsspec's file system.
        timeout_s: how long a connection may deliver nothing.
        arguments: what the source takes besides.

    Raises:
        DataError: nothing there, or nothing that is known; and as the source raises.
        MissingExtra: the store or the format needs a package that is not installed.
        OSError: the store failed.
    """
    common = {"options": options, "timeout_s": timeout_s, **arguments}
    several = [os.fspath(url)] if isinstance(url, str | os.PathLike) else [os.fspath(each) for each in url]
    if not several:
        raise DataError("no address of a file was given")
    kinds = {each.rstrip("/").rpartition("/")[2].rpartition(".")[2].lower() for each in several}
    if kinds == {"tar"}:
        return WebDatasetTar(several, **common)
    if kinds <= {"parquet", "pq"}:
        return Parquet(several, **common)
    if len(several) > 1:
        raise DataError(
            f"{several[0]} and {len(several) - 1} more: several addresses are of tars or of Parquet files"
        )
    if kinds == {"npy"}:
        return Npy(several[0], **common)
    if kinds == {"zarr"}:
        return Zarr(several[0], **common)

    store = Store(several[0], options, timeout_s)
    found = _names(store)
    if found & {"zarr.json", ".zarray"}:
        return Zarr(several[0], **common)
    if "index.json" in found:
        return MosaicShards(several[0], **common)
    for extension, source in ((".tar", WebDatasetTar), (".parquet", Parquet)):
        chosen = sorted(name for name in found if name.lower().endswith(extension))
        if chosen and len(chosen) == len({name for name in found if not name.startswith(("_", "."))}):
            return source([f"{several[0].rstrip('/')}/{name}" for name in chosen], **common)
    return Folder(several[0], **common)


def _names(store: Store) -> set[str]:
    """What lies directly in a folder."""
    return {path.rstrip("/").rpartition("/")[2] for path in store.children()}
