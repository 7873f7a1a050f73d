"""Keeps measurements of a machine in ``$XDG_CACHE_HOME/muster/roofline``, a file for each key; ``~/.cache`` by default."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

_FORMAT: Final = 1
OLDEST_S: Final = 30 * 24 * 3600


def folder() -> Path:
    """Where the files are."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "muster" / "roofline"


def path_of(key: dict[str, Any]) -> Path:
    """The file of a key."""
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    return folder() / f"{digest}.json"


def recall(key: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept under ``key``; None where that is nothing, damaged, for another key, or older than 30 days."""
    try:
        content = json.loads(path_of(key).read_text(encoding="utf-8"))
        value = content["value"]
        intact = (
            content["format"] == _FORMAT
            and content["key"] == key
            and content["checksum"] == _checksum(value)
            and 0 <= time.time() - content["kept_unix_s"] <= OLDEST_S
            and isinstance(value, dict)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if intact else None


def keep(key: dict[str, Any], value: dict[str, Any]) -> bool:
    """Keeps ``value`` under ``key``, complete or not at all; false where that cannot be written, which costs time only."""
    content = {
        "format": _FORMAT,
        "key": key,
        "kept_unix_s": time.time(),
        "checksum": _checksum(value),
        "value": value,
    }
    path = path_of(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".", suffix=".tmp", delete=False, encoding="utf-8"
        ) as draft:
            json.dump(content, draft, indent=1)
        os.replace(draft.name, path)
    except OSError:
        return False
    return True


def _checksum(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
