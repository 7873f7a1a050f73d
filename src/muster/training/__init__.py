"""Training loops and merge rules; knows no application. May import pillars, fleet, engine and spec.

`evaluate_exact` is a part for any PyTorch loop; it is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.training.evaluation import Evaluation as Evaluation
    from muster.training.evaluation import evaluate_exact as evaluate_exact

_HOME: Final = {"Evaluation": "evaluation", "evaluate_exact": "evaluation"}

__all__ = ["Evaluation", "evaluate_exact"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.training.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.training' has no attribute {name!r}")
