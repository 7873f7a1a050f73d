"""The pillar clock, from Python: cuts a loop's time into I/O, compute, communication and idle.

watched = muster.clock.watch(model, optimizer, loader)     # then iterate watched.loader
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.engine.clock import PillarClock as PillarClock
    from muster.engine.clock import Pillars as Pillars
    from muster.engine.clock.watch import Watch as Watch
    from muster.engine.clock.watch import time_exchange as time_exchange
    from muster.engine.clock.watch import watch as watch

_HOME: Final = {
    "PillarClock": "muster.engine.clock",
    "Pillars": "muster.engine.clock",
    "Watch": "muster.engine.clock.watch",
    "time_exchange": "muster.engine.clock.watch",
    "watch": "muster.engine.clock.watch",
}

__all__ = ["PillarClock", "Pillars", "Watch", "time_exchange", "watch"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'muster.clock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
