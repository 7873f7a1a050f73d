"""Rules that merge each update as it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from muster.errors import RefusedInput
from muster.training.merge.rule import (
    Array,
    Arrays,
    Arrival,
    Handed,
    MergeRule,
    State,
    Trained,
    Update,
    number,
)

Merged = tuple[Mapping[str, Array], State]


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RefusedInput(f"{name}: found {value}; expected {low:g} to {high:g}")


def _towards(model: Arrays, other: Arrays, share: float) -> dict[str, Array]:
    """``(1 - share) model + share other``."""
    return {
        name: (1 - share) * np.asarray(array, np.float64) + share * np.asarray(other[name], np.float64)
        for name, array in model.items()
    }


@dataclass(frozen=True)
class VCASGD(MergeRule):
    """``W <- alpha W + (1 - alpha) W_c``, with alpha constant, or ``e/(e+1)`` at the e-th arrival.

    With ``e/(e+1)``, counted from 1, the model is the running mean of the initial one and of all that has arrived.

    Source: Atre, Jha and Rao, "Distributed deep learning using volunteer computing-like paradigm" (PAISE 2021).

    Arguments:
        alpha: how much of the model stays, 0 to 1; None for ``e/(e+1)``.
    """

    name: ClassVar[str] = "vc-asgd"
    arrival: ClassVar[Arrival] = "each"
    alpha: float | None = 0.95

    def __post_init__(self) -> None:
        if self.alpha is not None:
            _between("vc-asgd: alpha", self.alpha, 0, 1)

    def begin(self, model: Arrays) -> State:
        return {"arrivals": number(0)}

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        arrival = float(state["arrivals"][""]) + 1
        alpha = arrival / (arrival + 1) if self.alpha is None else self.alpha
        return _towards(model, updates[0].arrays, 1 - alpha), {"arrivals": number(arrival)}


@dataclass(frozen=True)
class Downpour(MergeRule):
    """``W <- W + lr D`` with ``D = W_c - W_base``, the worker's accumulated steps; or with AdaGrad's rates.

    With ``adagrad``: ``h <- h + D^2``, ``W <- W + lr D / (sqrt(h) + eps)``.

    Source: Dean et al., "Large scale distributed deep networks" (NIPS 2012).

    Arguments:
        lr: of the server.
        adagrad: whether each weight has a rate of its own.
        eps: added to the root.
    """

    name: ClassVar[str] = "downpour"
    arrival: ClassVar[Arrival] = "each"
    lr: float = 1.0
    adagrad: bool = False
    eps: float = 1e-8

    def begin(self, model: Arrays) -> State:
        return (
            {"squares": {name: np.zeros(array.shape) for name, array in model.items()}}
            if self.adagrad
            else {}
        )

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        deltas = {name: updates[0].delta(name) for name in model}
        if not self.adagrad:
            return {name: array + self.lr * deltas[name] for name, array in model.items()}, state
        squares = {name: state["squares"][name] + deltas[name] ** 2 for name in model}
        merged = {
            name: array + self.lr * deltas[name] / (np.sqrt(squares[name]) + self.eps)
            for name, array in model.items()
        }
        return merged, {"squares": squares}


@dataclass(frozen=True)
class EASGD(MergeRule):
    """``W <- W + alpha (x - W)`` at the centre, ``x <- x - alpha (x - W)`` at the worker, which goes on from its own x.

    Source: Zhang, Choromanska and LeCun, "Deep learning with elastic averaging SGD" (NIPS 2015), algorithm 1. The worker's
    half is done when its next lease begins, with the centre as it is handed then.

    Arguments:
        alpha: the elastic force, 0 to 1.
    """

    name: ClassVar[str] = "easgd"
    arrival: ClassVar[Arrival] = "each"
    keeps: ClassVar[Literal["", "worker", "party"]] = "worker"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _between("easgd: alpha", self.alpha, 0, 1)

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        return _towards(model, updates[0].arrays, self.alpha), state

    def start(self, handed: Handed, own: State) -> Arrays:
        if "weights" not in own:
            return handed.model
        return _towards(own["weights"], handed.model, self.alpha)

    def hand_in(self, handed: Handed, trained: Trained, own: State) -> tuple[Update, State]:
        return trained.update(handed), {"weights": trained.weights}


@dataclass(frozen=True)
class FedAsync(MergeRule):
    """``W <- (1 - a_t) W + a_t W_c`` with ``a_t = alpha s(t - tau)``, less the staler the update is.

    ``s`` of a staleness d is 1 (``constant``), ``(d + 1)^-a`` (``polynomial``), or 1 up to b and ``1/(a (d - b) + 1)`` beyond
    (``hinge``).

    Source: Xie, Koyejo and Gupta, "Asynchronous federated optimization" (arXiv:1903.03934).

    Arguments:
        alpha: the share of a fresh update, 0 to 1.
        staleness: the kind of s.
        a, b: its constants; by default those of the paper's experiments, a = 0.5 (polynomial) or 10 (hinge), b = 4.
    """

    name: ClassVar[str] = "fedasync"
    arrival: ClassVar[Arrival] = "each"
    alpha: float = 0.6
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: float | None = None
    b: float = 4.0

    def __post_init__(self) -> None:
        _between("fedasync: alpha", self.alpha, 0, 1)
        if self.staleness not in ("constant", "polynomial", "hinge"):
            raise RefusedInput(
                f"fedasync: staleness: found {self.staleness!r}; expected constant, polynomial or hinge"
            )

    def freshness(self, staleness: int) -> float:
        """``s`` of so many merges."""
        if self.staleness == "constant":
            return 1.0
        if self.staleness == "polynomial":
            return float((staleness + 1) ** -(0.5 if self.a is None else self.a))
        beyond = staleness - self.b
        return 1.0 if beyond <= 0 else 1 / ((10.0 if self.a is None else self.a) * beyond + 1)

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        share = self.alpha * self.freshness(updates[0].staleness)
        return _towards(model, updates[0].arrays, share), state


@dataclass(frozen=True)
class FedBuff(MergeRule):
    """``W <- W + lr/K sum_k s_k D_k`` once K updates have arrived, with ``s = 1/sqrt(1 + staleness)``.

    Source: Nguyen et al., "Federated learning with buffered asynchronous aggregation" (AISTATS 2022).

    Arguments:
        buffer: K.
        lr: of the server.
        discount: whether stale updates count less; False: ``s = 1``.
    """

    name: ClassVar[str] = "fedbuff"
    arrival: ClassVar[Arrival] = "each"
    buffer: int = 10
    lr: float = 1.0
    discount: bool = True

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise RefusedInput(f"fedbuff: buffer: found {self.buffer}; expected at least 1")

    def begin(self, model: Arrays) -> State:
        return {"sum": {name: np.zeros(array.shape) for name, array in model.items()}, "held": number(0)}

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        scale = (1 + updates[0].staleness) ** -0.5 if self.discount else 1.0
        held = int(state["held"][""]) + 1
        total = {name: state["sum"][name] + scale * updates[0].delta(name) for name in model}
        if held < self.buffer:
            return model, {"sum": total, "held": number(held)}
        merged = {name: array + self.lr / self.buffer * total[name] for name, array in model.items()}
        return merged, {
            "sum": {name: np.zeros(array.shape) for name, array in model.items()},
            "held": number(0),
        }
