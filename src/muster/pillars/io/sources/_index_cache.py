"""Tables that are costly to read from a store, kept in a folder of this machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHECKSUM_BYTES = 16  # after the table, since Parquet has none of its metadata


def index_folder(name: str) -> Path:
    """Where indexes of a kind are kept unless told otherwise: ``$XDG_CACHE_HOME/muster/<name>``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muster" / name


def kept_table(identity: str, folder: Path, make: Callable[[], Any]) -> Any:
    """The Arrow table of that identity from ``folder``, else by ``make``, and kept there.

    Processes of this machine that want the same table at the same time make it once. A table that cannot be kept is a
    warning.

    Arguments:
        identity: what the table was made of, down to its version.
        folder: made if it is not there.
        make: returns the table.

    Raises:
        Exception: whatever ``make`` raises.
    """
    path = folder / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.index"
    table = _load(path, identity)
    if table is not None:
        return table
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        _warn(identity, folder, error)
        return make()
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the file, and so with the process that holds it
        table = _load(path, identity)
        if table is None:
            table = make()
            try:
                _keep(path, identity, table)
            except OSError as error:
                _warn(identity, folder, error)
    return table


def _warn(identity: str, folder: Path, error: OSError) -> None:
    name = identity.partition("\n")[0]
    warnings.warn(f"the index of {name} cannot be kept in {folder}: {error}", stacklevel=3)


def _keep(path: Path, identity: str, table: Any) -> None:
    """Writes the table under a name of its own, then gives it its name, so that no reader meets half of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"of": identity}), written)
    content = written.getvalue().to_pybytes()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(content + _checksum(content))
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _load(path: Path, identity: str) -> Any:
    """A kept table, or None where there is none that is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = path.read_bytes()
    except OSError:  # missing or not to be read: made again
        return None
    content, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        return None
    table = pq.read_table(pa.BufferReader(content))
    return table if table.schema.metadata.get(b"of") == identity.encode() else None


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
