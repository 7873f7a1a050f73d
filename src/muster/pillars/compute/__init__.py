"""The compute pillar: precision, memory format, compilation, checkpointing, averaging, and the roofline that judges a step.

Each part works on any `torch.nn.Module` in a plain PyTorch loop; `muster.training.synchronous` puts them together from a
job's ``how``. May import `muster.engine` and what lies below it. Everything is imported on first use, and
`muster.pillars.compute.roofline` needs no torch at all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.pillars.compute.activation_checkpointing import checkpoint_blocks as checkpoint_blocks
    from muster.pillars.compute.activation_checkpointing import repeated_blocks as repeated_blocks
    from muster.pillars.compute.channels_last import to_channels_last as to_channels_last
    from muster.pillars.compute.compiled_forward import CompiledForward as CompiledForward
    from muster.pillars.compute.compiled_forward import CompileTrial as CompileTrial
    from muster.pillars.compute.compiled_forward import try_compiling as try_compiling
    from muster.pillars.compute.peak_measurement import machine_peaks as machine_peaks
    from muster.pillars.compute.precision import Precision as Precision
    from muster.pillars.compute.roofline import Peaks as Peaks
    from muster.pillars.compute.roofline import Placement as Placement
    from muster.pillars.compute.roofline import Work as Work
    from muster.pillars.compute.roofline import place as place
    from muster.pillars.compute.traffic import TrafficCounter as TrafficCounter
    from muster.pillars.compute.weight_averaging import averaged_model as averaged_model

_HOME: Final = {
    "CompileTrial": "compiled_forward",
    "CompiledForward": "compiled_forward",
    "Peaks": "roofline",
    "Placement": "roofline",
    "Precision": "precision",
    "TrafficCounter": "traffic",
    "Work": "roofline",
    "averaged_model": "weight_averaging",
    "checkpoint_blocks": "activation_checkpointing",
    "machine_peaks": "peak_measurement",
    "place": "roofline",
    "repeated_blocks": "activation_checkpointing",
    "to_channels_last": "channels_last",
    "try_compiling": "compiled_forward",
}

__all__ = [
    "CompileTrial",
    "CompiledForward",
    "Peaks",
    "Placement",
    "Precision",
    "TrafficCounter",
    "Work",
    "averaged_model",
    "checkpoint_blocks",
    "machine_peaks",
    "place",
    "repeated_blocks",
    "to_channels_last",
    "try_compiling",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.pillars.compute.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.pillars.compute' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
