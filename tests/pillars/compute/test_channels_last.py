"""The channel as the fastest dimension changes memory, not results."""

from __future__ import annotations

import copy
from collections import namedtuple

import torch

from muster.pillars.compute import to_channels_last


def test_the_result_and_the_gradients_are_those_of_the_other_order() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    ).double()
    other, x = to_channels_last(copy.deepcopy(model)), torch.randn(2, 3, 9, 11, dtype=torch.float64)
    first, second = model(x), other(to_channels_last(x))
    assert second.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    first.square().sum().backward(), second.square().sum().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_strides_change_and_values_do_not() -> None:
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    y = to_channels_last(x)
    assert torch.equal(x, y)
    assert y.stride() == (60, 1, 15, 3)  # n, c, h, w of an array stored as n, h, w, c
    volume = torch.zeros(1, 2, 3, 4, 5)
    assert to_channels_last(volume).is_contiguous(memory_format=torch.channels_last_3d)


def test_batches_keep_their_structure_and_what_is_no_image_stays() -> None:
    Pair = namedtuple("Pair", "image label")
    image, label = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(5, 3)
    batch = to_channels_last([{"a": image, "b": label, "c": "name"}, (image, 3), Pair(image, label)])
    assert batch[0]["a"].is_contiguous(memory_format=torch.channels_last)
    assert batch[0]["b"] is label
    assert batch[0]["c"] == "name"
    assert isinstance(batch[1], tuple)
    assert isinstance(batch[2], Pair)
