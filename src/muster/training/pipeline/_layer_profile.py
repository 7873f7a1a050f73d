"""What each layer of a model costs, and what goes from one layer to the next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Edge:
    """A tensor that one layer hands to the next, without its values.

    Arguments:
        shape, dtype: of one micro-batch.
        requires_grad: whether a gradient comes back.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def empty(self, device: torch.device | str) -> Tensor:
        """Room for such a tensor."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class LayerProfile:
    """A layer's cost and output.

    Arguments:
        forward_s, backward_s: shortest times on one micro-batch; 0 if it was not timed.
        output: of one micro-batch.
    """

    forward_s: float
    backward_s: float
    output: Edge


def profile_layers(layers: Sequence[nn.Module], example: Tensor, *, repeats: int = 5) -> list[LayerProfile]:
    """Runs the layers one by one on a micro-batch and times forward and backward of each.

    Parameters, their gradients, buffers (such as running statistics) and generators are left as they were. Each layer is on
    the device of ``example`` for its turn only, so that a model may be larger than that.

    Arguments:
        layers: in order; each takes the tensor that the one before returns.
        example: one micro-batch, on the device where to time.
        repeats: how often each is timed, after one pass that is not; 0: once, untimed.

    Raises:
        TypeError: a layer returns something else than one tensor.
    """
    devices = [example.device] if example.device.type == "cuda" else []
    profiles: list[LayerProfile] = []
    with torch.random.fork_rng(devices), torch.enable_grad():
        value = example.detach()
        for index, layer in enumerate(layers):
            state = next((tensor for tensor in (*layer.parameters(), *layer.buffers())), value)
            home = state.device
            layer.to(value.device)
            buffers = [(buffer, buffer.clone()) for buffer in layer.buffers()]
            times: list[tuple[float, float]] = []
            for _ in range(repeats + 1):
                output, passed = _pass(layer, value, index)
                times.append(passed)
            with torch.no_grad():
                for buffer, earlier in buffers:
                    buffer.copy_(earlier)
            layer.to(home)
            edge = Edge(tuple(output.shape), output.dtype, output.requires_grad)
            timed = times[1:] or [(0.0, 0.0)]
            forward, backward = (min(column) for column in zip(*timed, strict=True))  # noise only adds
            profiles.append(LayerProfile(forward, backward, edge))
            value = output.detach().requires_grad_(output.requires_grad)
    return profiles


def _pass(layer: nn.Module, value: Tensor, index: int) -> tuple[Tensor, tuple[float, float]]:
    """One forward and backward of a layer whose gradients go nowhere."""
    # a copy, so that a layer that works in place meets no leaf
    given = value.clone() if value.requires_grad else value.detach().clone()
    begin = _now(value)
    output = layer(given)
    middle = _now(value)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"layer {index} ({type(layer).__name__}) returns {type(output).__name__}, not one tensor"
        )
    wanted: list[Tensor] = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if value.requires_grad:
        wanted.append(value)
    if output.requires_grad and wanted:
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
    return output.detach().requires_grad_(output.requires_grad), (middle - begin, _now(value) - middle)


def _now(value: Tensor) -> float:
    if value.device.type == "cuda":
        torch.cuda.synchronize(value.device)
    return time.perf_counter()
