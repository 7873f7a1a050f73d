"""Communication from Python, for a plain PyTorch loop::

    attached = muster.comm.attach(ddp_model)                   # tuned buckets, compression where it pays
    link = muster.comm.measure_link()                          # what collectives cost here

Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.pillars.comm.attach import Attached as Attached
    from muster.pillars.comm.attach import attach as attach
    from muster.pillars.comm.eager import EagerExchange as EagerExchange
    from muster.pillars.comm.exchange import Exchange as Exchange
    from muster.pillars.comm.hierarchical import HierarchicalWire as HierarchicalWire
    from muster.pillars.comm.layout import plan_layout as plan_layout
    from muster.pillars.comm.link import Link as Link
    from muster.pillars.comm.link_probe import measure_link as measure_link
    from muster.pillars.comm.local_sgd import local_sgd as local_sgd
    from muster.pillars.comm.predict import predict_step as predict_step
    from muster.pillars.comm.step_profile import StepProfile as StepProfile
    from muster.pillars.comm.tuner import Pace as Pace

_HOME: Final = {
    "Attached": "attach",
    "EagerExchange": "eager",
    "Exchange": "exchange",
    "HierarchicalWire": "hierarchical",
    "Link": "link",
    "Pace": "tuner",
    "StepProfile": "step_profile",
    "attach": "attach",
    "local_sgd": "local_sgd",
    "measure_link": "link_probe",
    "plan_layout": "layout",
    "predict_step": "predict",
}

__all__ = [
    "Attached",
    "EagerExchange",
    "Exchange",
    "HierarchicalWire",
    "Link",
    "Pace",
    "StepProfile",
    "attach",
    "local_sgd",
    "measure_link",
    "plan_layout",
    "predict_step",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.pillars.comm.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.comm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
