"""Job files: what, how, where. Typed, validated, with errors that name the line and the mend.

May import nothing of Muster but `muster.errors`; never torch or Ray. The pydantic models are the single source of
validation, defaults, the JSON Schema, ``muster init`` and docs/job-file.md.
"""

from __future__ import annotations

from muster.spec.gang_how import GangHow, Optimizer, Schedule
from muster.spec.job import Job
from muster.spec.section import Section, refuse
from muster.spec.shape import How
from muster.spec.values import Duration, Interval, Size
from muster.spec.what import What
from muster.spec.where import Where

__all__ = [
    "Duration",
    "GangHow",
    "How",
    "Interval",
    "Job",
    "Optimizer",
    "Schedule",
    "Section",
    "Size",
    "What",
    "Where",
    "refuse",
]
