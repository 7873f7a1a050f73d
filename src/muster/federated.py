"""Federated training from Python: parties that keep their data, one model::

parties = [(inputs[mine], labels[mine]) for mine in muster.federated.dirichlet(labels, 10, alpha=0.1)]
found = muster.federated.simulate(make_model, parties, rule="fedavg", rounds=50)
"""

from muster.training.federated.local_training import LocalTraining
from muster.training.federated.partition import by_class, dirichlet, even
from muster.training.federated.simulation import Simulated, simulate
from muster.training.merge.compressed_updates import UpdateCompression

__all__ = ["LocalTraining", "Simulated", "UpdateCompression", "by_class", "dirichlet", "even", "simulate"]
