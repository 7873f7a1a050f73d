"""The moving average of the weights against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muster.pillars.compute import averaged_model


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_has_its_closed_form(decay: float) -> None:
    """m_n = d^(n-1) w_1 + (1-d) Σ_{k=2..n} d^(n-k) w_k."""
    model = torch.nn.Linear(3, 2).double()
    averaged = averaged_model(model, decay)
    history = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        with torch.no_grad():
            model.weight.copy_(torch.rand(2, 3, generator=generator, dtype=torch.float64))
        averaged.update_parameters(model)
        history.append(model.weight.detach().numpy().copy())
    n = len(history)
    expected = decay ** (n - 1) * history[0]
    expected = expected + (1 - decay) * sum(decay ** (n - k) * history[k - 1] for k in range(2, n + 1))
    np.testing.assert_allclose(averaged.module.weight.detach().numpy(), expected, rtol=1e-13)


def test_constant_weights_are_their_own_average() -> None:
    model = torch.nn.Linear(4, 4)
    averaged = averaged_model(model, 0.75)
    for _ in range(20):
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, model.weight)


def test_running_means_are_the_model_s_last_ones() -> None:
    model = torch.nn.BatchNorm1d(3)
    averaged = averaged_model(model, 0.99)
    for _ in range(3):
        model(torch.randn(8, 3) + 5)
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.running_mean, model.running_mean)
    assert averaged.module.num_batches_tracked == 3


def test_it_wants_no_gradients_and_its_state_brings_it_back() -> None:
    model = torch.nn.Linear(2, 2)
    averaged = averaged_model(model, 0.9)
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    averaged.update_parameters(model)
    again = averaged_model(torch.nn.Linear(2, 2), 0.9)
    again.load_state_dict(averaged.state_dict())
    with torch.no_grad():
        model.weight.add_(1.0)
    averaged.update_parameters(model), again.update_parameters(model)
    assert torch.equal(averaged.module.weight, again.module.weight)
    assert again.n_averaged == 2
