"""Rules under which a party keeps something to itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from muster.errors import RefusedInput
from muster.training.merge.rounds import FedAvg
from muster.training.merge.rule import Array, Arrays, Handed, State, Trained, Update

Merged = tuple[Mapping[str, Array], State]


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg of all arrays but those of the last layers, which each party keeps and trains for itself.

    Source: Arivazhagan et al., "Federated learning with personalization layers" (arXiv:1912.00818).

    Arguments:
        personal: shell patterns of the names that are kept, such as ``head.*``.
    """

    name: ClassVar[str] = "fedper"
    keeps: ClassVar[Literal["", "worker", "party"]] = "party"
    personal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.personal:
            raise RefusedInput(
                f"{self.name}: personal: found nothing; give patterns of names, such as head.*"
            )

    def kept(self, names: Mapping[str, object]) -> list[str]:
        """Those of the names that parties keep."""
        return [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in self.personal)]

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        merged, state = super()._merge(model, updates, state)
        kept = set(self.kept(model))
        return {name: model[name] if name in kept else array for name, array in merged.items()}, state

    def start(self, handed: Handed, own: State) -> Arrays:
        return {**handed.model, **own.get("personal", {})}

    def hand_in(self, handed: Handed, trained: Trained, own: State) -> tuple[Update, State]:
        weights = trained.weights
        kept = {name: weights[name] for name in self.kept(weights)}
        shared = {name: handed.model[name] if name in kept else array for name, array in weights.items()}
        return trained.update(handed, shared), {"personal": kept}


@dataclass(frozen=True)
class FedBN(FedPer):
    """FedAvg of all arrays but those of batch normalization, statistics included, which each party keeps.

    Source: Li et al., "FedBN: federated learning on non-IID features via local batch normalization" (ICLR 2021).

    Arguments:
        personal: shell patterns of the names of those layers.
    """

    name: ClassVar[str] = "fedbn"
    personal: tuple[str, ...] = (
        "*bn*", "*batchnorm*", "*batch_norm*", "*.running_mean", "*.running_var", "*.num_batches_tracked",
    )  # fmt: skip


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and beside it a model of each party's own that is trained on ``f_k(v) + lambda/2 |v - W|^2``.

    A party trains the shared weights as under FedAvg, and its own ones with `personal_gradient` from where it left
    them (`personal`); only the former are handed in.

    Source: Li et al., "Ditto: fair and robust federated learning through personalization" (ICML 2021).

    Arguments:
        strength: lambda.
    """

    name: ClassVar[str] = "ditto"
    keeps: ClassVar[Literal["", "worker", "party"]] = "party"
    strength: float = 0.1

    def personal(self, handed: Handed, own: State) -> Arrays:
        """A party's own weights; at first those that it was handed."""
        return own.get("personal", handed.model)

    def personal_gradient(self, gradient: Arrays, weights: Arrays, handed: Handed) -> Arrays:
        """The gradient for a party's own weights, from that of its loss there."""
        return {
            name: each + self.strength * (np.asarray(weights[name]) - handed.model[name])
            for name, each in gradient.items()
        }
