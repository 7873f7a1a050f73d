"""The contract of a compressor: how one bucket of gradients becomes its mean over ranks with fewer bytes on the wire.

A compressor is made for one bucket and one rank, lives as long as the bucket's layout does, and is called once per step,
always from the exchange's communication thread, always in the same order on all ranks. It may therefore use as many
blocking collectives as it likes. What it leaves in the bucket must be the same bits on all ranks.

A third party adds one by subclassing `Compressor` and naming the class in the entry-point group ``muster.compressors``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from muster.pillars.comm.compress.wire import Wire


@dataclass(frozen=True)
class Part:
    """One parameter's gradient within a bucket.

    Arguments:
        offset: of its first element in the bucket.
        shape: of the parameter; its elements are contiguous in the bucket.
        name: of the parameter in its model; empty where nobody needs it.
    """

    offset: int
    shape: torch.Size
    name: str = ""

    @property
    def numel(self) -> int:
        """How many elements."""
        return self.shape.numel()

    def of(self, bucket: torch.Tensor) -> torch.Tensor:
        """This part of a bucket: a view of shape ``[numel]``."""
        return bucket.narrow(0, self.offset, self.numel)


def parts_of(shapes: Sequence[torch.Size | tuple[int, ...]], names: Sequence[str] = ()) -> list[Part]:
    """Parts that lie one behind the other, as DistributedDataParallel lays out a bucket."""
    parts, offset = [], 0
    for position, shape in enumerate(shapes):
        parts.append(Part(offset, torch.Size(shape), names[position] if names else ""))
        offset += parts[-1].numel
    return parts


class LinkModel(Protocol):
    """What a collective costs on this link."""

    def seconds(self, kind: str, bytes: int, world_size: int) -> float:
        """Predicted duration of one collective.

        Arguments:
            kind: ``all_reduce``, ``all_gather`` or ``all_to_all``.
            bytes: of the tensor that a rank hands in: what is reduced; one rank's contribution; all its chunks together.
            world_size: how many ranks take part.
        """
        ...


@dataclass(frozen=True)
class ComputeRates:
    """How fast this machine does what compressors do beside communicating; `rates.measure_rates` measures it.

    Arguments:
        stream_bytes_per_s: element-wise arithmetic, bytes read and written.
        select_elements_per_s: finding the elements above a threshold (comparison, then their indices).
        scatter_elements_per_s: adding values at given indices, or reading them.
        matmul_flops_per_s: products of a matrix with a few vectors.
        call_s: overhead of one small tensor operation.
    """

    stream_bytes_per_s: float
    select_elements_per_s: float
    scatter_elements_per_s: float
    matmul_flops_per_s: float
    call_s: float


@dataclass
class CompressorState:
    """What a compressor must keep so that a resumed run goes on with the same bits.

    Arguments:
        parts: for each part, in order, its tensors by key. The key ``residual`` is the error feedback of this rank;
            ``shared`` state begins with ``shared_`` and is equal on all ranks.
        bucket: tensors that mean something for this very bucket only.
    """

    parts: list[dict[str, torch.Tensor]]
    bucket: dict[str, torch.Tensor]


class Compressor(ABC):
    """Averages one bucket over the ranks.

    Arguments:
        parts: the tensors in the bucket.
        dtype, device: of the bucket.
        seed: of whatever the compressor draws; the same on all ranks.
        options: of the method; a subclass names them.

    Attributes:
        name: as users write it.
        lossy: whether the result may differ from the mean by more than rounding in the wire's format;
            users must consent to it.
        wire_bytes: payload that this rank has sent to others so far, in bytes.
    """

    name: ClassVar[str]
    lossy: ClassVar[bool]

    def __init__(
        self, parts: Sequence[Part], dtype: torch.dtype, device: torch.device, *, seed: int = 0
    ) -> None:
        self.parts, self.dtype, self.device, self.seed = tuple(parts), dtype, device, seed
        self.numel = sum(part.numel for part in self.parts)
        self.wire_bytes = 0

    def average(self, bucket: torch.Tensor, wire: Wire) -> None:
        """Makes ``bucket`` the mean over ranks, in place; blocks until it is.

        Arguments:
            bucket: ``[numel]``, this rank's gradients.
            wire: the collectives of the ranks that share the bucket.

        Raises:
            RuntimeError: a collective failed (a peer died, a timeout); the bucket's content is then undefined.
        """
        before = wire.sent_bytes
        self._average(bucket, wire)
        self.wire_bytes += wire.sent_bytes - before

    @abstractmethod
    def _average(self, bucket: torch.Tensor, wire: Wire) -> None:
        """What `average` does, without the accounting."""

    def state(self) -> CompressorState:
        """Copies of nothing: the live tensors. Clone them to keep them beyond the next step."""
        return CompressorState([{} for _ in self.parts], {})

    def load_state(self, state: CompressorState) -> None:  # noqa: B027 (most have no state)
        """Takes up a state by value. Keys that are missing, as after a change of the bucket layout, begin afresh."""

    @classmethod
    @abstractmethod
    def predicted_s(
        cls,
        parts: Sequence[Part],
        world_size: int,
        link: LinkModel,
        compute: ComputeRates,
        **options: Any,
    ) -> float:
        """Predicted duration of `average` in seconds, selection and arithmetic included, for an fp32 bucket.

        Arguments:
            parts: the bucket's tensors.
            world_size: how many ranks.
            link: what collectives cost.
            compute: what arithmetic costs.
            options: as for the constructor.
        """
