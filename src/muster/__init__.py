"""Muster: scalable deep learning on whatever machines you can muster.

The public names are re-exported here and in `muster.vision` and `muster.gang`; everything is imported on first use, so that
``import muster`` is quick and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster import gang as gang
    from muster import vision as vision
    from muster._run import Run as Run
    from muster._run import run as run

__version__ = "0.1.0"
__all__ = ["Run", "gang", "run", "vision"]


def __getattr__(name: str) -> Any:
    if name in ("run", "Run"):
        return getattr(importlib.import_module("muster._run"), name)
    if name in ("gang", "vision"):
        return importlib.import_module(f"muster.{name}")
    raise AttributeError(f"module 'muster' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
