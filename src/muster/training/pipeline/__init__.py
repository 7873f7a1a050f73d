"""Pipelines: a sequential model cut into stages over the ranks of a gang. May import the engine and errors.

`Pipeline` trains; `make_schedule` says in advance what each rank will do when, and `bubble_formula` what the authors of the
schedule promise. Torch's own schedules run on torch's own runtime; Chimera's bidirectional one, which torch lacks, runs here.
"""

from muster.training.pipeline._formula import bubble_formula
from muster.training.pipeline._layer_profile import Edge, LayerProfile, profile_layers
from muster.training.pipeline._partition import balanced_partition
from muster.training.pipeline._pipeline import Pipeline
from muster.training.pipeline._schedule import Costs, Schedule, ScheduleName, make_schedule
from muster.training.pipeline._timeline import Action, RankTimes, Span, Timeline

__all__ = [
    "Action",
    "Costs",
    "Edge",
    "LayerProfile",
    "Pipeline",
    "RankTimes",
    "Schedule",
    "ScheduleName",
    "Span",
    "Timeline",
    "balanced_partition",
    "bubble_formula",
    "make_schedule",
    "profile_layers",
]
