"""Mixed precision: what is computed in which dtype, and what an overflow does."""

from __future__ import annotations

import pytest
import torch

from muster.errors import JobError
from muster.pillars.compute import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "weights", "products"),
    [
        ("fp64", torch.float64, torch.float64),
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ],
)
def test_products_have_the_precision_s_dtype_and_weights_theirs(
    name: str, weights: torch.dtype, products: torch.dtype
) -> None:
    precision = Precision(name)
    precision.check(CPU)
    layer = torch.nn.Linear(4, 4).to(precision.weights)
    with precision.autocast(CPU):
        result = layer(torch.ones(2, 4, dtype=precision.weights))
    assert (layer.weight.dtype, result.dtype) == (weights, products)
    result.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == weights
    assert torch.is_autocast_enabled("cpu") is False


def test_only_fp16_scales_its_loss() -> None:
    scaled = {name: Precision(name).scaler(CPU).is_enabled() for name in ("fp64", "fp32", "bf16", "fp16")}
    assert scaled == {"fp64": False, "fp32": False, "bf16": False, "fp16": True}
    assert Precision("fp32").scaler(CPU).state_dict() == {}


def test_a_step_whose_gradient_overflows_is_skipped_and_halves_the_scale() -> None:
    """65504 is the largest number of fp16: a gradient of 2 times the first scale, 65536, is infinite."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.25), Precision("fp16").scaler(CPU)
    moved = []
    for _ in range(3):
        loss = (weight.half() * 2.0).sum()
        scaler.scale(loss).backward()
        before = weight.item()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved.append((before - weight.item(), scaler.get_scale()))
    # 2·65536 and 2·32768 overflow; 2·16384 does not, and the step is lr times the true gradient, 2
    assert moved == [(0.0, 32768.0), (0.0, 16384.0), (0.5, 16384.0)]


def test_a_device_without_the_kernels_is_refused_in_a_sentence() -> None:
    with pytest.raises(JobError, match=r"how\.precision: fp16 is not supported on meta .*; set bf16 or fp32"):
        Precision("fp16").check(torch.device("meta"))


def test_the_check_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    Precision("fp16").check(CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(KeyError):
        Precision("fp8")
