"""Rules that merge the updates of a round: averages and their corrections on the party's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from muster.errors import RefusedInput
from muster.training.merge.rule import (
    Array,
    Arrays,
    Handed,
    MergeRule,
    State,
    Trained,
    Update,
    combined,
    mean_delta,
    shares,
)

Merged = tuple[Mapping[str, Array], State]


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise RefusedInput(f"{name}: found {value}; expected at least 0")


@dataclass(frozen=True)
class FedAvg(MergeRule):
    """``W <- sum_k n_k/n W_k``.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (AISTATS 2017).
    """

    name: ClassVar[str] = "fedavg"

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        weights = shares(updates)
        return {name: combined([each.arrays[name] for each in updates], weights) for name in model}, state


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg of parties that minimize ``f_k(w) + mu/2 |w - W|^2``: their gradient gets ``mu (w - W)``.

    Source: Li et al., "Federated optimization in heterogeneous networks" (MLSys 2020).

    Arguments:
        mu: how strongly a party is held to the model it was handed.
    """

    name: ClassVar[str] = "fedprox"
    mu: float = 0.01

    def __post_init__(self) -> None:
        _not_negative("fedprox: mu", self.mu)

    def gradient(self, gradient: Arrays, weights: Arrays, handed: Handed, own: State, lr: float) -> Arrays:
        return {
            name: each + self.mu * (weights[name] - handed.model[name]) for name, each in gradient.items()
        }


@dataclass(frozen=True)
class Scaffold(MergeRule):
    """Control variates: a party's gradient gets ``c - c_k``, so that it drifts no further than the mean does.

    After K steps of rate lr: ``c_k' = c_k - c + (W - w_k)/(K lr)`` (option II), ``W <- W + lr_g sum_k p_k (w_k - W)``,
    ``c <- c + |S|/N sum_k p_k (c_k' - c_k)``; ``p_k = 1/|S|`` in the paper, the shares of samples here.

    Source: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning" (ICML 2020).

    Arguments:
        parties: N, all that there are; None: those of each round are all.
        lr: of the server, lr_g.
    """

    name: ClassVar[str] = "scaffold"
    keeps: ClassVar[Literal["", "worker", "party"]] = "party"
    parties: int | None = None
    lr: float = 1.0

    def begin(self, model: Arrays) -> State:
        return {"control": _zeros(model)}

    def send(self, model: Arrays, state: State) -> State:
        return {"control": state["control"]}

    def expects(self, model: Arrays) -> State:
        return {"control": _zeros(model)}

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        weights, share = shares(updates), len(updates) / (self.parties or len(updates))
        if any("control" not in update.extra for update in updates):
            raise RefusedInput("merge rule scaffold: an update has no control variate; make it with hand_in")
        merged = {name: array + self.lr * mean_delta(name, updates) for name, array in model.items()}
        control = {
            name: state["control"][name]
            + share * combined([each.extra["control"][name] for each in updates], weights)
            for name in model
        }
        return merged, {"control": control}

    def gradient(self, gradient: Arrays, weights: Arrays, handed: Handed, own: State, lr: float) -> Arrays:
        control = own.get("control") or _zeros(gradient)
        return {name: each - control[name] + handed.sent["control"][name] for name, each in gradient.items()}

    def hand_in(self, handed: Handed, trained: Trained, own: State) -> tuple[Update, State]:
        common = handed.sent["control"]
        before = own.get("control") or _zeros(common)
        after = {
            name: before[name]
            - common[name]
            + (handed.model[name] - trained.weights[name]) / (trained.steps * trained.lr)
            for name in common
        }
        change = {name: after[name] - before[name] for name in common}
        return trained.update(handed, extra={"control": change}), {"control": after}


@dataclass(frozen=True)
class FedNova(MergeRule):
    """``W <- W + (sum_k p_k a_k) sum_k p_k D_k/a_k``: parties that took more steps do not pull more.

    ``a_k`` is the steps of party k, or with local momentum rho ``(K - rho (1 - rho^K)/(1 - rho))/(1 - rho)``.

    Source: Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization" (NeurIPS
    2020).

    Arguments:
        momentum: rho of the parties' optimizer.
    """

    name: ClassVar[str] = "fednova"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise RefusedInput(f"fednova: momentum: found {self.momentum}; expected 0 to below 1")

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        weights, rho = shares(updates), self.momentum
        if min(update.steps for update in updates) < 1:
            raise RefusedInput("merge rule fednova: an update of no steps cannot be normalized")
        steps = np.array([update.steps for update in updates], dtype=np.float64)
        lengths = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        effective = float(weights @ lengths)
        return {
            name: array + effective * combined([update.delta(name) for update in updates], weights / lengths)
            for name, array in model.items()
        }, state


@dataclass(frozen=True)
class DiLoCo(MergeRule):
    """The mean change as a gradient of Nesterov's method.

    ``g = W - mean_k W_k``, ``b <- mu b + g``, ``W <- W - lr (g + mu b)``. Parties train with AdamW for some hundred
    steps; the mean is unweighted.

    Source: Douillard et al., "DiLoCo: distributed low-communication training of language models" (arXiv:2311.08105).

    Arguments:
        lr, momentum: of the outer optimizer.
    """

    name: ClassVar[str] = "diloco"
    lr: float = 0.7
    momentum: float = 0.9

    def begin(self, model: Arrays) -> State:
        return {"momentum": _zeros(model)}

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        even = np.full(len(updates), 1 / len(updates))
        gradient = {name: -combined([update.delta(name) for update in updates], even) for name in model}
        buffer = {name: self.momentum * state["momentum"][name] + gradient[name] for name in model}
        merged = {
            name: array - self.lr * (gradient[name] + self.momentum * buffer[name])
            for name, array in model.items()
        }
        return merged, {"momentum": buffer}


@dataclass(frozen=True)
class _FedOpt(MergeRule):
    """What the adaptive rules have in common."""

    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def begin(self, model: Arrays) -> State:
        return {
            "mean": _zeros(model),
            "square": {name: np.full(array.shape, self.tau**2) for name, array in model.items()},
        }

    def _square(self, before: Array, delta: Array) -> Array:
        raise NotImplementedError

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        deltas = {name: mean_delta(name, updates) for name in model}
        mean = {name: self.beta1 * state["mean"][name] + (1 - self.beta1) * deltas[name] for name in model}
        square = {name: self._square(state["square"][name], deltas[name]) for name in model}
        merged = {
            name: array + self.lr * mean[name] / (np.sqrt(square[name]) + self.tau)
            for name, array in model.items()
        }
        return merged, {"mean": mean, "square": square}


@dataclass(frozen=True)
class FedAdagrad(_FedOpt):
    """The mean change D as a gradient: ``v <- v + D^2``, with beta1 = 0 in the paper.

    Then ``m <- beta1 m + (1 - beta1) D`` and ``W <- W + lr m/(sqrt(v) + tau)``, without bias correction, from ``m = 0`` and
    ``v = tau^2``. Source: Reddi et al., "Adaptive federated optimization" (ICLR
    2021), algorithm 2.

    Arguments:
        lr, beta1, beta2, tau: of the server.
    """

    name: ClassVar[str] = "fedadagrad"
    beta1: float = 0.0

    def _square(self, before: Array, delta: Array) -> Array:
        return before + delta**2


@dataclass(frozen=True)
class FedAdam(_FedOpt):
    """The mean change D as a gradient: ``v <- beta2 v + (1 - beta2) D^2``.

    Then ``m <- beta1 m + (1 - beta1) D`` and ``W <- W + lr m/(sqrt(v) + tau)``, without bias correction, from ``m = 0`` and
    ``v = tau^2``. Source: Reddi et al., "Adaptive federated optimization" (ICLR
    2021), algorithm 2.

    Arguments:
        lr, beta1, beta2, tau: of the server.
    """

    name: ClassVar[str] = "fedadam"

    def _square(self, before: Array, delta: Array) -> Array:
        return self.beta2 * before + (1 - self.beta2) * delta**2


@dataclass(frozen=True)
class FedYogi(_FedOpt):
    """The mean change D as a gradient: ``v <- v - (1 - beta2) D^2 sign(v - D^2)``.

    Then ``m <- beta1 m + (1 - beta1) D`` and ``W <- W + lr m/(sqrt(v) + tau)``, without bias correction, from ``m = 0`` and
    ``v = tau^2``. Source: Reddi et al., "Adaptive federated optimization" (ICLR
    2021), algorithm 2.

    Arguments:
        lr, beta1, beta2, tau: of the server.
    """

    name: ClassVar[str] = "fedyogi"

    def _square(self, before: Array, delta: Array) -> Array:
        square: Array = delta**2
        return before - (1 - self.beta2) * square * np.sign(before - square)


@dataclass(frozen=True)
class QFedAvg(MergeRule):
    """Parties with a high loss count more: ``W <- W - sum_k F_k^q d_k / sum_k (q F_k^(q-1) |d_k|^2 + L F_k^q)``.

    ``d_k = L (W - W_k)`` with L the inverse of the parties' learning rate, and F_k the loss of W at party k; q = 0 is the
    unweighted mean.

    Source: Li et al., "Fair resource allocation in federated learning" (ICLR 2020), algorithm 2.

    Arguments:
        q: how much fairness counts.
        lr: the parties' learning rate.
    """

    name: ClassVar[str] = "q-fedavg"
    wants_loss: ClassVar[bool] = True
    q: float = 1.0
    lr: float = 0.1

    def __post_init__(self) -> None:
        _not_negative("q-fedavg: q", self.q)

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        inverse, numerator, denominator = 1 / self.lr, _zeros(model), 0.0
        for update in updates:
            if update.loss is None or update.loss <= 0:
                raise RefusedInput(
                    "merge rule q-fedavg: an update needs the loss, above 0, of the model before training"
                )
            step = {name: -inverse * update.delta(name) for name in model}
            norm = sum(float(np.vdot(each, each)) for each in step.values())
            for name in model:
                numerator[name] += update.loss**self.q * step[name]
            denominator += self.q * update.loss ** (self.q - 1) * norm + inverse * update.loss**self.q
        return {name: array - numerator[name] / denominator for name, array in model.items()}, state


@dataclass(frozen=True)
class FedPlus(MergeRule):
    """Every party keeps a model of its own, drawn to a centre z: it minimizes ``f_k(w) + mu/2 |w - z|^2``.

    After each step of rate lr the party's weights are ``theta w + (1 - theta) z`` with ``theta = 1/(1 + lr mu)``; the centre
    is the mean, the coordinate-wise median or the geometric median of the parties' weights.

    Source: Kundu et al., "Robustness and personalization in federated learning: a unified approach via regularization"
    (IEEE EDGE 2022), known as Fed+.

    Arguments:
        mu: how strongly a party is drawn.
        centre: ``mean`` (weighed by samples), ``median`` or ``geometric-median``.
    """

    name: ClassVar[str] = "fed+"
    keeps: ClassVar[Literal["", "worker", "party"]] = "party"
    mu: float = 0.1
    centre: Literal["mean", "median", "geometric-median"] = "mean"

    def __post_init__(self) -> None:
        _not_negative("fed+: mu", self.mu)
        if self.centre not in ("mean", "median", "geometric-median"):
            raise RefusedInput(
                f"fed+: centre: found {self.centre!r}; expected mean, median or geometric-median"
            )

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        from muster.training.merge.robust import CoordinateMedian, GeometricMedian

        rules: dict[str, MergeRule] = {
            "mean": FedAvg(),
            "median": CoordinateMedian(),
            "geometric-median": GeometricMedian(),
        }
        return rules[self.centre]._merge(model, updates, state)

    def start(self, handed: Handed, own: State) -> Arrays:
        return own.get("weights", handed.model)

    def gradient(self, gradient: Arrays, weights: Arrays, handed: Handed, own: State, lr: float) -> Arrays:
        theta = 1 / (1 + lr * self.mu)
        centre = handed.model
        return {
            name: (weights[name] - theta * (weights[name] - lr * each) - (1 - theta) * centre[name]) / lr
            for name, each in gradient.items()
        }

    def hand_in(self, handed: Handed, trained: Trained, own: State) -> tuple[Update, State]:
        return trained.update(handed), {"weights": trained.weights}


def _zeros(like: Arrays) -> dict[str, Array]:
    return {name: np.zeros(array.shape) for name, array in like.items()}
