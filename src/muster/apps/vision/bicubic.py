"""Bicubic enlargement of tensors: the global skip of `edsr-small` and the baseline that evaluation reports.

The filter is that of `muster.apps.vision.resize.bicubic_upscale` (a = −0.5, replicated edges) without
rounding and clipping between the passes. One function serves both uses on purpose: at step 0 the model's
output and the baseline are then the same bits, and the gain over bicubic is exactly zero. On Set5 it lies
0.02 dB or less from the published bicubic rows.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from muster.apps.vision.resize import cubic_kernel


@torch.no_grad()
def bicubic_skip(x: torch.Tensor, scale: int) -> torch.Tensor:
    """Images enlarged by a whole factor; never differentiated, never in reduced precision.

    Each of the scale² sub-pixel positions is one fixed 5×5 filter, so the whole is a convolution and a
    pixel shuffle.

    Arguments:
        x: float [n, channels, height, width].
        scale: a whole factor.

    Returns:
        [n, channels, scale · height, scale · width]; float64 for float64, float32 for all else.
    """
    n, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        planes = F.pad(x.reshape(n * channels, 1, height, width), (2, 2, 2, 2), mode="replicate")
        phases = F.conv2d(planes, _phase_filters(scale, x.dtype, x.device))
        return F.pixel_shuffle(phases, scale).reshape(n, channels, scale * height, scale * width)


@functools.cache
def _phase_filters(scale: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[scale², 1, 5, 5]: filter k makes sub-pixel (k // scale, k % scale), pixel shuffle's order."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training later
        return _make_phase_filters(scale).to(device, dtype)


def _make_phase_filters(scale: int) -> torch.Tensor:
    offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = torch.arange(-2, 3, dtype=torch.float64)
    weights = torch.from_numpy(cubic_kernel((offsets[:, None] - taps).numpy()))
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("iy,jx->ijyx", weights, weights).reshape(scale * scale, 1, 5, 5)
