"""Gradients in 16 bits on the wire, summed in 32.

torch's hooks sum in the wire's format, with a rounding at every hop of the ring, and torch refuses bfloat16 over Gloo.
Here the all-reduce is spelled out as what it is, a reduce-scatter and an all-gather: an all-to-all of 16-bit numbers
gives each rank everybody's piece of its chunk, it sums them in fp32 in order of rank, and the mean is gathered in 16
bits. The result is the fp32 mean of the rounded gradients, rounded once, and 2 bytes travel where 4 did. Two ranks swap
all of theirs instead, which is as many bytes in one exchange, and then nothing is rounded a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from muster.pillars.comm.compress.compressor import Compressor, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.wire import Wire


class _Half(Compressor):
    """Averages in a format of 16 bits."""

    format: ClassVar[torch.dtype]

    def _average(self, bucket: torch.Tensor, wire: Wire) -> None:
        ranks = wire.world_size
        if ranks == 2:
            first, second = wire.all_gather(bucket.to(self.format))
            bucket.copy_(first).add_(second).mul_(0.5)
            return
        chunk = -(-self.numel // ranks)
        rounded = torch.empty(chunk * ranks, dtype=self.format, device=bucket.device)
        rounded[: self.numel] = bucket
        rounded[self.numel :] = 0
        pieces = wire.all_to_all(rounded.split(chunk), [chunk] * ranks)
        total = pieces[0].float()
        for piece in pieces[1:]:
            total += piece
        mean = total.div_(ranks).to(self.format)
        bucket.copy_(wire.all_gather(mean).view(-1)[: self.numel])

    @classmethod
    def predicted_s(
        cls,
        parts: Sequence[Part],
        world_size: int,
        link: LinkModel,
        compute: ComputeRates,
        **options: Any,
    ) -> float:
        numel = sum(part.numel for part in parts)
        size = 2 * numel
        if world_size == 2:
            # Rounding reads 4 bytes and writes 2, the copy the other way round; the sum moves 10 and its half 8.
            arithmetic_s = (6 + 6 + 10 + 8) * numel / compute.stream_bytes_per_s + 5 * compute.call_s
            return link.seconds("all_gather", size, world_size) + arithmetic_s
        # Rounding and its inverse read and write 6 bytes per element, and so does each addition to a chunk.
        streamed = (2 * 6 + 10 + 6 / world_size) * numel
        return (
            link.seconds("all_to_all", size, world_size)
            + link.seconds("all_gather", -(-size // world_size), world_size)
            + streamed / compute.stream_bytes_per_s
            + (10 + world_size) * compute.call_s
        )


class Bf16(_Half):
    """bfloat16: the range of fp32, 8 bits of precision."""

    name = "bf16"
    lossy = False
    format = torch.bfloat16


class Fp16(_Half):
    """IEEE half precision: 11 bits of precision; below 6e-8 gradients vanish, above 65504 they become infinite."""

    name = "fp16"
    lossy = True
    format = torch.float16
