"""PowerSGD: each gradient matrix as a product of rank r, by one step of a power iteration with a warm start.
last one ended.

Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization" (NeurIPS
2019), algorithms 1 and 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import CompressorState, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.feedback import FeedbackCompressor
from muster.pillars.comm.compress.wire import Wire


class PowerSGD(FeedbackCompressor):
    """Low-rank averages.

    A parameter of shape ``[n, ...]`` is a matrix ``M`` of n rows. With the last step's ``Q``: ``P`` is the mean over
    ranks of ``M Q``, orthogonalised; ``Q`` the mean of ``M^T P``; the result is ``P Q^T``. Vectors, and matrices that
    would not become smaller by ``min_saving``, are averaged as they are, in the same collective as the ``P``: two
    all-reduces per bucket.

    What this rank has sent is ``P (M^T P)^T`` with its own ``M``, the projection of the paper's algorithm 2. torch's hook
    subtracts the mean instead, which gives the same averages but lets each rank's residual grow with the differences
    between ranks. ``residual + sent`` equals gradient plus previous residual up to rounding.

    Each rank orthogonalises (Householder QR) and multiplies for itself, from the same bits; ranks end with the same bits
    where they run the same build of torch on processors with the same instructions.

    Arguments:
        rank: of the approximation.
        min_saving: smallest ratio of elements before and after.

    Raises:
        RefusedInput: the rank is not positive.
    """

    name = "powersgd"
    lossy = True

    def __init__(
        self,
        parts: Sequence[Part],
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        error_feedback: bool = True,
        rank: int = 4,
        min_saving: float = 2.0,
    ) -> None:
        super().__init__(parts, dtype, device, seed=seed, error_feedback=error_feedback)
        if rank < 1:
            raise RefusedInput(f"compression powersgd: rank {rank} is not a rank; use 1 or more, usually 4")
        self.approximation_rank = rank
        self._whole: list[Part] = []
        self._factors: dict[int, torch.Tensor] = {}  # by position of the part: Q, [m, r]
        for position, part in enumerate(self.parts):
            used = _rank_of(part.shape, rank, min_saving)
            if used:
                columns = part.numel // part.shape[0]
                self._factors[position] = self._initial(part.name or str(position), columns, used)
            else:
                self._whole.append(part)

    def _initial(self, name: str, columns: int, rank: int) -> torch.Tensor:
        """Standard normal, the same on all ranks and in any bucket layout."""
        word = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(word, "little"))
        return torch.randn(columns, rank, generator=generator).to(self.device, self.dtype)

    def _send(self, bucket: torch.Tensor, wire: Wire) -> None:
        matrices = {
            position: self.parts[position].of(self.residual).view(self.parts[position].shape[0], -1)
            for position in self._factors
        }
        whole = [part.of(self.residual) for part in self._whole]
        products = [matrix @ self._factors[position] for position, matrix in matrices.items()]
        averaged = _mean([*whole, *products], wire)
        bases = [torch.linalg.qr(_clean(product)).Q for product in averaged[len(whole) :]]
        own = [matrix.mT @ basis for matrix, basis in zip(matrices.values(), bases, strict=True)]
        factors = _mean(own, wire)

        for part, tensor, mean in zip(self._whole, whole, averaged, strict=False):
            part.of(bucket).copy_(mean)
            tensor.zero_()
        for (position, matrix), basis, mine, factor in zip(
            matrices.items(), bases, own, factors, strict=True
        ):
            torch.mm(basis, factor.mT, out=self.parts[position].of(bucket).view_as(matrix))
            if factor.isfinite().all():  # the same on all ranks
                matrix.addmm_(basis, mine.mT, alpha=-1)
                self._factors[position] = factor
            else:
                matrix.zero_()

    def state(self) -> CompressorState:
        state = super().state()
        for position, factor in self._factors.items():
            state.parts[position]["shared_factor"] = factor
        return state

    def load_state(self, state: CompressorState) -> None:
        super().load_state(state)
        for position, tensors in enumerate(state.parts):
            if "shared_factor" in tensors and position in self._factors:
                kept = tensors["shared_factor"]
                if kept.shape == self._factors[position].shape:  # another rank of approximation begins afresh
                    self._factors[position] = kept.to(self.device, self.dtype, copy=True)

    @classmethod
    def predicted_s(
        cls,
        parts: Sequence[Part],
        world_size: int,
        link: LinkModel,
        compute: ComputeRates,
        **options: Any,
    ) -> float:
        rank, min_saving = options.get("rank", 4), options.get("min_saving", 2.0)
        first = second = flops = calls = 0
        for part in parts:
            used = _rank_of(part.shape, rank, min_saving)
            if not used:
                first += part.numel
                calls += 3
                continue
            rows, columns = part.shape[0], part.numel // part.shape[0]
            first += rows * used
            second += columns * used
            flops += 4 * 2 * part.numel * used + 4 * rows * used * used
            calls += 25
        numel = sum(part.numel for part in parts)
        return (
            link.seconds("all_reduce", 4 * first, world_size)
            + link.seconds("all_reduce", 4 * second, world_size)
            + flops / compute.matmul_flops_per_s
            + 24 * numel / compute.stream_bytes_per_s
            + calls * compute.call_s
        )


def _rank_of(shape: torch.Size, rank: int, min_saving: float) -> int:
    """The rank with which a parameter is approximated; 0: not at all."""
    if len(shape) < 2 or not shape.numel():
        return 0
    rows, columns = shape[0], shape.numel() // shape[0]
    used = min(rank, rows, columns)
    return used if (rows + columns) * used * min_saving <= shape.numel() else 0


def _mean(tensors: Sequence[torch.Tensor], wire: Wire) -> list[torch.Tensor]:
    """The means over ranks, in one collective; views of one vector, shaped as ``tensors``."""
    if not tensors:
        return []
    together = torch.cat([tensor.reshape(-1) for tensor in tensors]).div_(wire.world_size)
    wire.all_reduce(together)
    pieces = together.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def _clean(product: torch.Tensor) -> torch.Tensor:
    """LAPACK may never come back from what is not finite; the factor that follows carries the news to all ranks."""
    return product if product.isfinite().all() else torch.zeros_like(product)
