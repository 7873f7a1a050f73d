"""Gradients in 8 bits, each block with a scale of its own, with error feedback on both sides.

Blockwise quantisation after Dettmers et al., "8-bit optimizers via block-wise quantization" (ICLR 2022), with a linear
code. The reduction is a reduce-scatter by all-to-all and an all-gather, and both carry 8 bits: the rank that sums a
chunk rounds the mean again and keeps that error for its next step, as in Tang et al., "DoubleSqueeze" (ICML 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import CompressorState, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.feedback import FeedbackCompressor
from muster.pillars.comm.compress.wire import Wire

_LEVELS = 127


class Int8(FeedbackCompressor):
    """Signed 8-bit codes and an fp32 scale per block.

    ``residual + sent == gradient + previous residual`` holds bit for bit: what rounds to zero is kept whole, and
    otherwise code times scale lies within a factor of two of the value, where subtraction is exact (Sterbenz 1974).

    Arguments:
        block: elements that share a scale; the wire carries 1 + 4/block bytes per element.

    Raises:
        RefusedInput: the block is not positive.
    """

    name = "int8"
    lossy = True

    def __init__(
        self,
        parts: Sequence[Part],
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        error_feedback: bool = True,
        block: int = 256,
    ) -> None:
        super().__init__(parts, dtype, device, seed=seed, error_feedback=error_feedback)
        if block < 1:
            raise RefusedInput(f"compression int8: block {block} is not a size; use 1 or more, usually 256")
        self.block = block
        self._chunk_residual: torch.Tensor | None = None  # of the mean, for the chunk this rank sums

    def _send(self, bucket: torch.Tensor, wire: Wire) -> None:
        ranks, block = wire.world_size, self.block
        chunk = -(-self.numel // (ranks * block)) * block
        padded = torch.zeros(chunk * ranks, dtype=torch.float32, device=bucket.device)
        padded[: self.numel] = self.residual
        codes, scales = quantise(padded, block)
        sent = dequantise(codes, scales)[: self.numel].to(self.dtype)
        # A gradient that is not finite makes its block so: all ranks see it, and nothing of it stays.
        self.residual.sub_(sent).masked_fill_(~sent.isfinite(), 0)

        packed = torch.cat(
            [codes.view(ranks, chunk).view(torch.uint8), scales.view(ranks, -1).view(torch.uint8)], dim=1
        )
        pieces = wire.all_to_all(packed.unbind(0), [packed.shape[1]] * ranks)
        total = _unpacked(pieces[0], chunk)
        for piece in pieces[1:]:
            total += _unpacked(piece, chunk)
        total /= ranks
        if self.error_feedback:
            if self._chunk_residual is None or self._chunk_residual.shape != total.shape:
                self._chunk_residual = torch.zeros_like(total)
            total += self._chunk_residual
        codes, scales = quantise(total, block)
        if self.error_feedback:
            mean = dequantise(codes, scales)
            self._chunk_residual = (total - mean).masked_fill_(~mean.isfinite(), 0)
        packed = torch.cat([codes.view(torch.uint8), scales.view(torch.uint8)])
        gathered = wire.all_gather(packed)
        everything = torch.cat([_unpacked(row, chunk) for row in gathered])
        bucket.copy_(everything[: self.numel])

    def state(self) -> CompressorState:
        state = super().state()
        if self._chunk_residual is not None:
            state.bucket["chunk_residual"] = self._chunk_residual
        return state

    def load_state(self, state: CompressorState) -> None:
        super().load_state(state)
        if "chunk_residual" in state.bucket:
            self._chunk_residual = state.bucket["chunk_residual"].to(self.device, copy=True)

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
        size = int(numel * (1 + 4 / options.get("block", 256)))
        # Quantising touches about 40 bytes per element (maximum, division, rounding, conversion), dequantising 15,
        # feedback 24.
        streamed = numel * (24 + 12 + 2 * (40 + 15) + (40 + 15) / world_size)
        return (
            link.seconds("all_to_all", size, world_size)
            + link.seconds("all_gather", -(-size // world_size), world_size)
            + streamed / compute.stream_bytes_per_s
            + (40 + 6 * world_size) * compute.call_s
        )


def quantise(values: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds to multiples of 1/127 of each block's largest magnitude.

    Arguments:
        values: fp32, ``[n]``, n a multiple of ``block``.
        block: elements that share a scale.

    Returns:
        codes, int8 ``[n]``, and scales, fp32 ``[n / block]``; a block that is not finite has a scale that is not.
    """
    blocks = values.view(-1, block)
    scales = blocks.abs().amax(dim=1) / _LEVELS
    # Below this a quotient would lose bits to denormal numbers; such blocks wait in the residual.
    scales = scales.masked_fill(scales < torch.finfo(torch.float32).tiny, 0)
    divisors = torch.where(scales > 0, scales, torch.inf)
    # A true division, not the product with a reciprocal: only then does rounding half to even keep `Int8`'s promise.
    codes = (blocks / divisors[:, None]).round_().clamp_(-_LEVELS, _LEVELS).nan_to_num_().to(torch.int8)
    return codes.view(-1), scales


def dequantise(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantise` but for the rounding: fp32, ``[n]``."""
    return (codes.view(len(scales), -1) * scales[:, None]).view(-1)


def _unpacked(packed: torch.Tensor, chunk: int) -> torch.Tensor:
    codes, scales = packed[:chunk], packed[chunk:]
    return dequantise(codes.view(torch.int8), scales.clone().view(torch.float32))
