"""Top-k: each layer's largest gradients, as pairs of index and value, with error feedback.

Aji and Heafield, "Sparse communication for distributed gradient descent" (EMNLP 2017); Stich et al., "Sparsified SGD
with memory" (NeurIPS 2018). Momentum correction, momentum factor masking and the warm-up of the density are those of Lin
et al., "Deep gradient compression" (ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import CompressorState, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.feedback import FeedbackCompressor
from muster.pillars.comm.compress.selection import largest
from muster.pillars.comm.compress.sparse_stream import MAX_NUMEL, Stream, pack, sum_streams, unpack
from muster.pillars.comm.compress.wire import Wire

_FIRST_DENSITY = 0.25  # of a warm-up


class TopK(FeedbackCompressor):
    """The largest magnitudes of each layer.

    ``residual + sent == gradient + previous residual`` holds bit for bit: an element is either sent whole or kept whole.

    Arguments:
        density: share of each layer's elements to send; at least one per layer.
        reduction: ``gather`` sends every rank's pairs to every rank, one collective: against a dense fp32 all-reduce
        that pays
            below a density of 1 / world size. ``streams`` merges pairs by recursive doubling and goes on densely once
            they fill in (SparCML): pairs that ranks have in common travel once.

    Raises:
        RefusedInput: the density is not in (0, 1], there is no such reduction, or the bucket is too long for 32-bit
        indices.
    """

    name = "topk"
    lossy = True

    def __init__(
        self,
        parts: Sequence[Part],
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        error_feedback: bool = True,
        density: float = 0.01,
        reduction: str = "gather",
        momentum: float = 0.0,
        warm_up_steps: int = 0,
    ) -> None:
        super().__init__(parts, dtype, device, seed=seed, error_feedback=error_feedback)
        check_density(self.name, density, self.numel)
        if reduction not in ("gather", "streams"):
            raise RefusedInput(f"compression topk: no reduction {reduction!r}; use gather or streams")
        if not 0 <= momentum < 1 or warm_up_steps < 0:
            raise RefusedInput(
                f"compression topk: momentum {momentum} and warm_up_steps {warm_up_steps} do not make sense; "
                "use 0 up to but not including 1, and 0 or more"
            )
        self.density, self.reduction = density, reduction
        self.momentum, self.warm_up_steps = momentum, warm_up_steps
        self.velocity = torch.zeros_like(self.residual) if momentum else None

    def _average(self, bucket: torch.Tensor, wire: Wire) -> None:
        if self.velocity is not None:
            bucket.copy_(self.velocity.mul_(self.momentum).add_(bucket))
        super()._average(bucket, wire)

    def _counts(self) -> list[int]:
        """How many elements of each part this step sends."""
        density, first = self.density, max(self.density, _FIRST_DENSITY)
        if self.steps < self.warm_up_steps:
            density = first * (density / first) ** (self.steps / self.warm_up_steps)
        return [wanted(part.numel, density) for part in self.parts]

    def _send(self, bucket: torch.Tensor, wire: Wire) -> None:
        # A stream of its own for each step: a resumed run draws the same sample without a generator's state.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        counts = self._counts()
        indices = torch.cat(
            [
                largest(part.of(self.residual), count, generator).add_(part.offset)
                for part, count in zip(self.parts, counts, strict=True)
                if count
            ]
        )
        values = self.residual[indices]
        self.residual[indices] = 0
        if self.velocity is not None:
            self.velocity[indices] = 0
        if self.reduction == "streams":
            total = sum_streams(Stream(indices, values / wire.world_size, self.numel), wire).written_out()
            bucket.copy_(total.values)
        else:
            self._gather(bucket, indices, values / wire.world_size, sum(counts), wire)

    def _gather(
        self, bucket: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, count: int, wire: Wire
    ) -> None:
        # Every rank sends equally many, which spares a collective to agree on how many: a missing pair is a zero to add.
        missing = count - len(indices)
        if missing:
            indices = torch.cat([indices, indices.new_zeros(missing)])
            values = torch.cat([values, values.new_zeros(missing)])
        bucket.zero_()
        for row in wire.all_gather(pack(indices, values)):  # in order of rank: the same sums on all ranks
            bucket.index_add_(0, *unpack(row, self.dtype))

    def state(self) -> CompressorState:
        state = super().state()
        if self.velocity is not None:
            for part, tensors in zip(self.parts, state.parts, strict=True):
                tensors["velocity"] = part.of(self.velocity)
        return state

    def load_state(self, state: CompressorState) -> None:
        super().load_state(state)
        if self.velocity is not None:
            for part, tensors in zip(self.parts, state.parts, strict=True):
                if "velocity" in tensors:
                    part.of(self.velocity).copy_(tensors["velocity"])

    @classmethod
    def predicted_s(
        cls,
        parts: Sequence[Part],
        world_size: int,
        link: LinkModel,
        compute: ComputeRates,
        **options: Any,
    ) -> float:
        density = options.get("density", 0.01)
        numel = sum(part.numel for part in parts)
        count = sum(wanted(part.numel, density) for part in parts)
        selection = (
            16 * numel / compute.stream_bytes_per_s
            + numel / compute.select_elements_per_s
            + (4 + world_size) * count / compute.scatter_elements_per_s
            + (30 * len(parts) + 4 * numel / (1 << 16) + 10 * world_size) * compute.call_s
        )
        if options.get("reduction", "gather") == "gather":
            return selection + link.seconds("all_gather", 8 * count, world_size)
        # Gradients of different ranks rarely agree about what is large: the streams' lengths add up until they are dense.
        wire, length, stages = 0.0, count, (world_size - 1).bit_length()
        for _ in range(stages):
            wire += link.seconds("all_gather", min(8 * length, 4 * numel), 2)
            length = min(2 * length, numel)
        merging = stages * 20 * count / compute.scatter_elements_per_s
        return selection + wire + merging


def wanted(numel: int, density: float) -> int:
    """How many of ``numel`` elements a density selects: at least one of any."""
    return min(numel, max(1, round(density * numel))) if numel else 0


def check_density(name: str, density: float, numel: int) -> None:
    """Refuses what cannot be selected or indexed.

    Raises:
        RefusedInput: the density is not in (0, 1], or the bucket is too long for 32-bit indices.
    """
    if not 0 < density <= 1:
        raise RefusedInput(
            f"compression {name}: density {density} is not a share; use more than 0 and at most 1"
        )
    if numel > MAX_NUMEL:
        raise RefusedInput(
            f"compression {name}: a bucket of {numel} elements is too long for 32-bit indices; use smaller buckets"
        )
