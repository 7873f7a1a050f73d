"""What a party does with the model it is handed: some epochs of gradient descent on its own data, as its merge rule wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from muster.errors import RefusedInput
from muster.training.merge.personal import Ditto
from muster.training.merge.rule import Arrays, Handed, MergeRule, State, Trained, Update

Loss = Callable[[Tensor, Tensor], Tensor]

Objective = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a model over a batch."""


@dataclass(frozen=True)
class LocalTraining:
    """The training of a party in a round.

    Arguments:
        epochs: over its data.
        batch: samples of a step; a party with fewer takes all of them.
        lr, momentum, weight_decay: of SGD.
        loss: of outputs and targets; their mean over a batch.
        steps: instead of epochs, if given: the same number for every party.
    """

    epochs: int = 1
    batch: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: Loss = nn.functional.cross_entropy
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch", self.batch), ("steps", self.steps)):
            if value is not None and value < 1:
                raise RefusedInput(f"{name}: found {value}; expected 1 or more")
        if not self.lr > 0:
            raise RefusedInput(f"lr: found {self.lr}; expected a number above 0")


class PartyData(Protocol):
    """What training wants of a party's data."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> Any:
        """The batch of the samples at these positions, as the objective takes it."""
        ...


class Party:
    """A party's data: a pair of arrays or tensors, or anything with a length and items ``(input, target)``."""

    def __init__(self, data: Any) -> None:
        self._tensors: tuple[Tensor, Tensor] | None = None
        self._items: Any = data
        if isinstance(data, tuple) and len(data) == 2 and all(hasattr(each, "shape") for each in data):
            inputs, targets = (torch.as_tensor(each) for each in data)
            if len(inputs) != len(targets):
                raise RefusedInput(
                    f"a party has {len(inputs)} inputs and {len(targets)} targets; expected as many"
                )
            self._tensors = inputs, targets

    def __len__(self) -> int:
        return len(self._tensors[0]) if self._tensors is not None else len(self._items)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets at these positions."""
        if self._tensors is not None:
            return self._tensors[0][positions], self._tensors[1][positions]
        inputs, targets = default_collate([self._items[int(position)] for position in positions])
        return inputs, targets


def weights_of(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters and buffers by name, copied."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, weights: Arrays) -> None:
    """Sets parameters and buffers, in place."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            array = np.asarray(weights[name])
            tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def train_party(
    model: nn.Module,
    party: PartyData,
    rule: MergeRule,
    how: LocalTraining,
    handed: Handed,
    own: State,
    *,
    seed: Sequence[int],
    must_end: Callable[[], bool] = lambda: False,
    objective: Objective | None = None,
) -> tuple[Update, State, float]:
    """A round of a party.

    Arguments:
        model: is used for it; its weights are overwritten.
        party: its data.
        rule: whose party's side is followed.
        how: to train.
        handed: by the coordinator.
        own: what the party has kept.
        seed: of the order of its samples and of whatever the model draws.
        must_end: asked before every step but the first.
        objective: the mean loss of a batch; None: ``how.loss`` of a pair of inputs and targets.

    Returns:
        The update, what the party keeps, and the share of its steps that were done.
    """
    order, noise = np.random.SeedSequence(list(seed)).generate_state(2)
    of_batch = objective or (lambda model, batch: how.loss(model(batch[0]), batch[1]))
    loss = _loss(model, party, how.batch, handed.model, of_batch) if rule.wants_loss else None
    with _drawing(int(noise)):
        load_weights(model, rule.start(handed, own))
        correct = None
        if type(rule).gradient is not MergeRule.gradient:
            correct = lambda gradient, weights: rule.gradient(gradient, weights, handed, own, how.lr)  # noqa: E731
        done, planned = _descend(model, party, how, int(order), correct, must_end, of_batch)
        trained = Trained(weights_of(model), len(party), done, how.lr, loss)
        update, keeps = rule.hand_in(handed, trained, own)
        if isinstance(rule, Ditto):
            load_weights(model, rule.personal(handed, own))
            _descend(
                model,
                party,
                how,
                int(order),
                lambda gradient, weights: rule.personal_gradient(gradient, weights, handed),
                lambda: False,
                of_batch,
            )
            keeps = {**keeps, "personal": weights_of(model)}
    return update, keeps, done / planned


@contextmanager
def drawing_from(seed: Sequence[int]) -> Iterator[None]:
    """What the model draws on the CPU, such as dropout, follows from the seed; other draws of the process do not notice."""
    with _drawing(int(np.random.SeedSequence(list(seed)).generate_state(1)[0])):
        yield


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _descend(
    model: nn.Module,
    party: PartyData,
    how: LocalTraining,
    seed: int,
    correct: Callable[[Arrays, Arrays], Arrays] | None,
    must_end: Callable[[], bool],
    objective: Objective,
) -> tuple[int, int]:
    """Gradient descent from the model's weights; returns the steps done, and those that were to be done."""
    model.train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        parameters.values(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay
    )
    per_epoch = -(-len(party) // how.batch)
    planned = how.steps or how.epochs * per_epoch
    done = 0
    for positions in _batches(len(party), how.batch, planned, seed):
        if done and must_end():
            break
        batch = party.batch(positions)
        optimizer.zero_grad()
        objective(model, batch).backward()  # type: ignore[no-untyped-call]
        if correct is not None:
            correct_gradients(parameters, correct)
        optimizer.step()
        done += 1
    return done, planned


def _batches(samples: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Positions of so many steps: epoch after epoch in an order of its own, the last batch of each as it is."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for positions in torch.randperm(samples, generator=generator).split(batch):
            yield positions
            done += 1
            if done == steps:
                return


def correct_gradients(
    parameters: Mapping[str, nn.Parameter], correct: Callable[[Arrays, Arrays], Arrays]
) -> None:
    """Replaces the gradients by what the rule makes of them."""
    given = {name: each for name, each in parameters.items() if each.grad is not None}
    corrected = correct(
        {name: each.grad.numpy() for name, each in given.items() if each.grad is not None},
        {name: each.detach().numpy() for name, each in given.items()},
    )
    for name, each in given.items():
        each.grad = torch.as_tensor(np.asarray(corrected[name]), dtype=each.dtype).reshape(each.shape)


def _loss(model: nn.Module, party: PartyData, batch: int, weights: Arrays, objective: Objective) -> float:
    """Mean loss of some weights on a party's data."""
    load_weights(model, weights)
    model.eval()
    total = 0.0
    with torch.no_grad():
        for positions in torch.arange(len(party)).split(max(batch, 256)):
            total += float(objective(model, party.batch(positions))) * len(positions)
    return total / len(party)
