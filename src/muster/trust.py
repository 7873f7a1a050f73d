"""Lying workers from Python: whom a pool believes::

found = muster.federated.simulate(make_model, parties, workers=4, trust=muster.trust.Replication())
"""

from muster.engine.pool.trust import Result, Trust, Verdict, Wanted
from muster.training.trust.replication import Replication
from muster.training.trust.tolerance import Bounds

__all__ = ["Bounds", "Replication", "Result", "Trust", "Verdict", "Wanted"]
