"""EDSR, the enhanced deep residual network for single-image super-resolution.

Lim, Son, Kim, Nah, Lee: Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPR workshops
2017 (arXiv:1707.02921). Residual blocks without batch normalisation, scaled before they are added; all work
is done at low resolution, and sub-pixel convolutions (Shi et al. 2016, arXiv:1609.05158) enlarge at the
end.

`edsr-small` is ours, for laptops: 8 blocks of 32 features learn what bicubic enlargement lacks. It ends in
one sub-pixel convolution straight to RGB, so that nothing is computed at high resolution; that convolution
starts at zero, so that the untrained model *is* bicubic enlargement, to the bit
(`muster.apps.vision.bicubic`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final

import torch
from torch import nn

from muster.apps.vision.bicubic import bicubic_skip

#: Mean of the DIV2K training photographs, RGB in 0..1, as the authors subtract it.
DIV2K_MEAN: Final = (0.4488, 0.4371, 0.4040)


@dataclass(frozen=True)
class Architecture:
    """The size of an EDSR.

    Arguments:
        blocks: residual blocks.
        features: channels of every hidden layer.
        residual_scale: factor on each block's result before it is added.
        bicubic_skip: add the bicubic enlargement of the input to a tail that is one sub-pixel convolution,
            zero at the start; otherwise the tail is that of the paper.
    """

    blocks: int
    features: int
    residual_scale: float = 1.0
    bicubic_skip: bool = False


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "edsr-small": Architecture(blocks=8, features=32, bicubic_skip=True),
    "edsr-baseline": Architecture(blocks=16, features=64),
    "edsr-full": Architecture(blocks=32, features=256, residual_scale=0.1),
}


class ResidualBlock(nn.Module):
    """x + scale · conv(relu(conv(x))), without normalisation: figure 2(c) of the paper."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.first = _conv(features, features)
        self.second = _conv(features, features)
        self.residual_scale = residual_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.second(torch.relu(self.first(x)))
        return torch.add(x, residual, alpha=self.residual_scale)


class EDSR(nn.Module):
    """Enlarges RGB images by a whole factor; a plain module, of which only the weights are state.

    The mean shifts are buffers outside the state, so parameters count as papers count them: 1.37 M for the
    baseline ×2, 40.7 M for the full model ×2.

    Arguments:
        arch: `edsr-small`, `edsr-baseline`, `edsr-full`, or an `Architecture` of your own.
        scale: 2, 3 or 4; ×4 is two sub-pixel stages of ×2.

    Raises:
        ValueError: an unknown architecture or scale.
    """

    mean: torch.Tensor

    def __init__(self, arch: str | Architecture = "edsr-baseline", scale: int = 2) -> None:
        super().__init__()
        if isinstance(arch, str) and arch not in ARCHITECTURES:
            raise ValueError(f"no architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale!r} is none of 2, 3, 4")
        self.architecture = size = ARCHITECTURES[arch] if isinstance(arch, str) else arch
        self.scale = scale
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.head = _conv(3, size.features)
        blocks = [ResidualBlock(size.features, size.residual_scale) for _ in range(size.blocks)]
        self.body = nn.Sequential(*blocks, _conv(size.features, size.features))
        if size.bicubic_skip:
            detail = _conv(size.features, 3 * scale**2)
            nn.init.zeros_(detail.weight)
            nn.init.zeros_(detail.bias)  # type: ignore[arg-type]
            self.tail = nn.Sequential(detail, nn.PixelShuffle(scale))
        else:
            enlarge: list[nn.Module] = []
            for factor in _stages(scale):
                enlarge += [_conv(size.features, factor**2 * size.features), nn.PixelShuffle(factor)]
            self.tail = nn.Sequential(*enlarge, _conv(size.features, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The enlarged images.

        Arguments:
            x: float [n, 3, height, width], RGB in 0..1.

        Returns:
            [n, 3, scale · height, scale · width], nominally 0..1, not clipped.
        """
        features = self.head(x - self.mean)
        features = features + self.body(features)
        detail = self.tail(features)
        if self.architecture.bicubic_skip:
            return bicubic_skip(x, self.scale) + detail  # the skip carries the mean
        return detail + self.mean

    @property
    def receptive_radius(self) -> int:
        """How far, in low-resolution pixels, an output pixel sees beyond the input pixel it lies in.

        Every 3×3 convolution adds one pixel of its own grid; the bicubic skip needs 2, which is less.
        """
        reach = Fraction(1 + 2 * self.architecture.blocks + 1)  # head, blocks, end of the body
        if self.architecture.bicubic_skip:
            return ceil(reach + 1)
        enlarged = 1
        for factor in _stages(self.scale):
            reach += Fraction(1, enlarged)
            enlarged *= factor
        return ceil(reach + Fraction(1, enlarged))


def _stages(scale: int) -> tuple[int, ...]:
    return (2, 2) if scale == 4 else (scale,)


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
