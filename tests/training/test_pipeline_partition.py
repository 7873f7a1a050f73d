"""Cutting a model into stages: optimal against enumeration, and from costs that were really measured."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from muster.training.pipeline import balanced_partition, profile_layers


def _costliest(costs: list[float], sizes: list[int]) -> float:
    bounds = np.cumsum([0, *sizes])
    return max(sum(costs[begin:end]) for begin, end in pairwise(bounds))


@pytest.mark.parametrize("seed", range(40))
def test_no_contiguous_cut_has_a_cheaper_costliest_stage(seed: int) -> None:
    generator = np.random.default_rng(seed)
    layers = int(generator.integers(1, 12))
    parts = int(generator.integers(1, layers + 1))
    costs = [float(cost) for cost in generator.integers(0, 20, size=layers)]
    sizes = balanced_partition(costs, parts)
    assert len(sizes) == parts
    assert min(sizes) >= 1
    assert sum(sizes) == layers
    every = [
        [end - begin for begin, end in pairwise((0, *cuts, layers))]
        for cuts in combinations(range(1, layers), parts - 1)
    ]
    assert _costliest(costs, sizes) == min(_costliest(costs, cut) for cut in every)


def test_equal_layers_are_dealt_evenly_and_a_costly_one_stands_alone() -> None:
    assert balanced_partition([1.0] * 8, 4) == [2, 2, 2, 2]
    assert balanced_partition([1, 1, 9, 1, 1], 3) == [2, 1, 2]


@pytest.mark.parametrize(
    ("costs", "parts"), [([1.0, 2.0], 3), ([1.0], 0), ([1.0, -1.0], 1), ([float("nan")], 1)]
)
def test_a_partition_that_cannot_be_is_refused(costs: list[float], parts: int) -> None:
    with pytest.raises(ValueError, match=r"cannot make|at least 0"):
        balanced_partition(costs, parts)


class _Slow(nn.Module):
    """Sleeps in forward and twice as long in backward."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        output = value + self.bias
        if output.requires_grad:
            output.register_hook(self._wait)
        return output

    def _wait(self, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(2 * self.seconds)
        return gradient


def test_layers_are_timed_forward_and_backward_on_what_they_really_get() -> None:
    model = nn.Sequential(_Slow(0.03), nn.Linear(4, 6), _Slow(0.09), nn.Flatten(), _Slow(0.06))
    profiles = profile_layers(list(model), torch.randn(3, 4), repeats=2)
    for index, seconds in ((0, 0.03), (2, 0.09), (4, 0.06)):
        assert seconds <= profiles[index].forward_s < 2 * seconds
        assert 2 * seconds <= profiles[index].backward_s < 4 * seconds
    assert [profile.output.shape for profile in profiles] == [(3, 4), (3, 6), (3, 6), (3, 6), (3, 6)]


def test_profiling_leaves_the_model_and_the_generators_as_they_were() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Embedding(3, 2)
    )
    state: dict[str, Any] = {name: value.clone() for name, value in model[:4].state_dict().items()}
    drawn = torch.get_rng_state()
    profiles = profile_layers(list(model[:4]), torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model[:4].state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [profile.output.requires_grad for profile in profiles] == [True] * 4
    assert profile_layers([model[4]], torch.tensor([0, 2]), repeats=0)[0].output.dtype == torch.float32


def test_a_layer_that_returns_more_than_a_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"layer 1 \(LSTM\) returns tuple, not one tensor"):
        profile_layers([nn.Identity(), nn.LSTM(3, 2)], torch.randn(5, 3))
