"""Job files: what, how, where. Typed, validated, with errors that name the line and the mend.

May import nothing of Muster but `muster.errors`; never torch or Ray. The pydantic models are the single
source of validation, defaults, the JSON Schema, ``muster init`` and docs/job-file.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from muster.spec.gang_how import GangHow, Optimizer, Schedule
from muster.spec.job import Job
from muster.spec.pool_how import PoolHow
from muster.spec.section import Section, refuse
from muster.spec.shape import How
from muster.spec.values import Duration, Interval, Size
from muster.spec.what import What
from muster.spec.where import Where

if TYPE_CHECKING:
    from muster.spec.applications import application_names as application_names
    from muster.spec.applications import load_application as load_application
    from muster.spec.job_template import template as template
    from muster.spec.loading import load_job as load_job
    from muster.spec.loading import located as located
    from muster.spec.parsing import parse_job as parse_job
    from muster.spec.platforms import platform_check as platform_check
    from muster.spec.schema import job_schema as job_schema
    from muster.spec.writing import dump_job as dump_job

# Functions come on first use: an application that only wants `What` need not pay for them.
_FUNCTIONS: Final = {
    "application_names": "applications",
    "dump_job": "writing",
    "job_schema": "schema",
    "load_application": "applications",
    "load_job": "loading",
    "parse_job": "parsing",
    "located": "loading",
    "platform_check": "platforms",
    "template": "job_template",
}

__all__ = [
    "Duration",
    "GangHow",
    "How",
    "Interval",
    "Job",
    "Optimizer",
    "PoolHow",
    "Schedule",
    "Section",
    "Size",
    "What",
    "Where",
    "application_names",
    "dump_job",
    "job_schema",
    "load_application",
    "load_job",
    "located",
    "parse_job",
    "platform_check",
    "refuse",
    "template",
]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'muster.spec' has no attribute {name!r}")
    return getattr(importlib.import_module(f"muster.spec.{_FUNCTIONS[name]}"), name)
