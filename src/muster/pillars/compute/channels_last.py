"""Images with the channel as the fastest dimension, the order that convolution kernels read best on many devices."""

from __future__ import annotations

from typing import Any

import torch

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_channels_last(value: Any) -> Any:
    """A module (changed in place), a tensor, or a collated batch, in channels-last order.

    Parameters and tensors of four dimensions [n, channels, height, width] and of five [n, channels, depth, height,
    width] change the order of their memory, not their shape nor a value; all others stay as they are.

    Arguments:
        value: a `torch.nn.Module`, a tensor, or a dictionary, list or tuple of such tensors.

    Returns:
        The same structure; the module itself if it was one.
    """
    if isinstance(value, torch.nn.Module):
        with torch.no_grad():
            for parameter in value.parameters():
                parameter.data = to_channels_last(parameter.data)
        return value
    if isinstance(value, torch.Tensor):
        format = _FORMATS.get(value.dim())
        return value if format is None else value.contiguous(memory_format=format)
    if isinstance(value, dict):
        return {key: to_channels_last(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_channels_last(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_channels_last(item) for item in value)
    return value
