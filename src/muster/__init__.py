"""Muster: scalable deep learning on whatever machines you can muster.

The public names are re-exported here and in `muster.vision`, `muster.gang`, `muster.federated`, `muster.merge`,
`muster.trust`, `muster.io`, `muster.comm` and `muster.clock`; everything is imported on first use, so that ``import muster``
is quick and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster import clock as clock
    from muster import comm as comm
    from muster import federated as federated
    from muster import gang as gang
    from muster import io as io
    from muster import merge as merge
    from muster import training as training
    from muster import trust as trust
    from muster import vision as vision
    from muster._run import Run as Run
    from muster._run import run as run

__version__ = "0.1.0"
_MODULES: Final = ("clock", "comm", "federated", "gang", "io", "merge", "training", "trust", "vision")

__all__ = ["Run", "clock", "comm", "federated", "gang", "io", "merge", "run", "training", "trust", "vision"]


def __getattr__(name: str) -> Any:
    if name in ("run", "Run"):
        return getattr(importlib.import_module("muster._run"), name)
    if name in _MODULES:
        return importlib.import_module(f"muster.{name}")
    raise AttributeError(f"module 'muster' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
