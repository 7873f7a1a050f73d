"""The contract of a merge rule, and what a worker hands in.

A rule has two sides, both pure functions of arrays: the coordinator's (`begin`, `send`, `expects`, `merge`) and the
party's (`start`, `gradient`, `hand_in`), with a state on each that its caller keeps. Models are mappings from names to
arrays, as in a safetensors file; a `torch.nn.Module`, a linear model of scikit-learn or a table of counts are all the
same here.

A new rule is one class::

    @dataclass(frozen=True)
    class Halfway(MergeRule):
        name: ClassVar[str] = "halfway"
        arrival: ClassVar[Arrival] = "each"

        def _merge(self, model, updates, state):
            return {key: (value + updates[0].arrays[key]) / 2 for key, value in model.items()}, state

registered by an entry point of the group ``muster.merge_rules``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from muster.engine.pool.updates import Array, Arrays, State, Update
from muster.errors import RefusedInput

__all__ = [
    "Array", "Arrays", "Arrival", "Handed", "MergeRule", "State", "Trained", "Update", "combined", "mean_delta", "number",
    "shares",
]  # fmt: skip

Arrival = Literal["each", "round"]
"""Whether a rule merges every update as it arrives, or a round of them at once."""


@dataclass(frozen=True)
class Handed:
    """What a party is handed: the model, and what the rule sends with it (`MergeRule.send`)."""

    model: Arrays
    sent: State = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A party's training, when it is done.

    Arguments:
        weights: that it has ended with.
        samples, steps, loss: as in `Update`.
        lr: learning rate of its steps.
    """

    weights: Arrays
    samples: int = 1
    steps: int = 1
    lr: float = 0.1
    loss: float | None = None

    def update(self, handed: Handed, weights: Arrays | None = None, extra: State | None = None) -> Update:
        """What is handed in: by default the weights as they are, and nothing else."""
        arrays = self.weights if weights is None else weights
        return Update(arrays, handed.model, self.samples, self.steps, loss=self.loss, extra=extra or {})


class MergeRule(ABC):
    """How updates change a model; its options are the fields of a frozen dataclass.

    Attributes:
        name: as users write it.
        arrival: when it merges.
        robust: whether it withstands some updates that are not what they should be.
        wants_loss: whether an update must tell the loss of the model that was handed out.
        keeps: who keeps something from one training to the next: nobody, the ``worker`` (what is lost with it is begun anew),
            or the ``party``, for which alone the rule makes sense.
    """

    name: ClassVar[str]
    arrival: ClassVar[Arrival] = "round"
    robust: ClassVar[bool] = False
    wants_loss: ClassVar[bool] = False
    keeps: ClassVar[Literal["", "worker", "party"]] = ""

    # ---- the coordinator's side -------------------------------------------------------------------------------------

    def begin(self, model: Arrays) -> State:
        """The state before any update."""
        return {}

    def send(self, model: Arrays, state: State) -> State:
        """What a party needs beside the model."""
        return {}

    def expects(self, model: Arrays) -> State:
        """The groups of arrays that an update's ``extra`` must have; their shapes and dtypes count, not their values."""
        return {}

    def merge(self, model: Arrays, updates: Sequence[Update], state: State) -> tuple[dict[str, Array], State]:
        """The model and the state after some updates, in the order given; nothing that was passed in is changed.

        Arrays of integers, such as the counters of batch normalization, are no vectors that could be averaged: of those the
        largest is kept, element by element.

        Arguments:
            model: before.
            updates: one if `arrival` is ``each``, else all of a round.
            state: as `begin` or the merge before has returned it.

        Raises:
            RefusedInput: no updates, too few for the rule, or an array that is not the model's in name or shape.
        """
        if not updates:
            raise RefusedInput(f"merge rule {self.name}: no updates to merge")
        if self.arrival == "each" and len(updates) != 1:
            raise RefusedInput(
                f"merge rule {self.name}: merges each update as it arrives; found {len(updates)}"
            )
        for number, update in enumerate(updates):
            _check(self.name, number, model, update)
        vectors = {name: array for name, array in model.items() if np.issubdtype(array.dtype, np.floating)}
        merged, state = self._merge(vectors, updates, state)
        whole: dict[str, Array] = {}
        for name, array in model.items():
            if name in vectors:
                whole[name] = merged[name].astype(array.dtype, copy=False)
            else:
                whole[name] = np.maximum.reduce([array, *(update.arrays[name] for update in updates)])
        return whole, state

    @abstractmethod
    def _merge(
        self, model: Arrays, updates: Sequence[Update], state: State
    ) -> tuple[Mapping[str, Array], State]:
        """What `merge` does, for the arrays of floating-point numbers alone."""

    # ---- the party's side -------------------------------------------------------------------------------------------

    def start(self, handed: Handed, own: State) -> Arrays:
        """The weights that a party begins to train with.

        Arguments:
            handed: by the coordinator.
            own: what the party has kept since its last training; empty the first time.
        """
        return handed.model

    def gradient(self, gradient: Arrays, weights: Arrays, handed: Handed, own: State, lr: float) -> Arrays:
        """The gradient that a party's optimizer uses instead of ``gradient``, at ``weights`` and learning rate ``lr``."""
        return gradient

    def hand_in(self, handed: Handed, trained: Trained, own: State) -> tuple[Update, State]:
        """A party's update after training, and what it keeps."""
        return trained.update(handed), own


def number(value: float) -> Arrays:
    """A single number as a group of a `State`."""
    return {"": np.asarray(value, dtype=np.float64)}


def shares(updates: Sequence[Update]) -> npt.NDArray[np.float64]:
    """The share of each update in all samples, of shape ``(updates,)``.

    Raises:
        RefusedInput: they have no samples.
    """
    counts = np.array([update.samples for update in updates], dtype=np.float64)
    if not (counts >= 0).all() or counts.sum() <= 0:
        raise RefusedInput(f"updates of {counts.astype(int).tolist()} samples have no mean")
    return counts / counts.sum()


def combined(arrays: Sequence[Array], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``sum_k weights[k] arrays[k]`` in float64, in the order given."""
    total = np.zeros(arrays[0].shape)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * np.asarray(array, dtype=np.float64)
    return total


def mean_delta(name: str, updates: Sequence[Update]) -> npt.NDArray[np.float64]:
    """How the updates have changed an array, on average, weighed by samples."""
    return combined([update.delta(name) for update in updates], shares(updates))


def _check(rule: str, position: int, model: Arrays, update: Update) -> None:
    for held, arrays in (("update", update.arrays), ("base", update.base)):
        if missing := model.keys() - arrays.keys():
            raise RefusedInput(f"merge rule {rule}: {held} {position} lacks the array {min(missing)!r}")
        if surplus := arrays.keys() - model.keys():
            raise RefusedInput(
                f"merge rule {rule}: {held} {position} has an array {min(surplus)!r} that the model has not"
            )
        for name, array in model.items():
            if arrays[name].shape != array.shape:
                raise RefusedInput(
                    f"merge rule {rule}: {name!r} of {held} {position} has shape {list(arrays[name].shape)}; "
                    f"expected {list(array.shape)}"
                )
