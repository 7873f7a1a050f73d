"""Sparse vectors on the wire: pairs of a value and a 32-bit index, and their sum by recursive doubling.

Renggli et al., "SparCML: high-performance sparse communication for machine learning" (SC'19): streams of pairs are
merged stage by stage, and a stream that has filled in so far that pairs would take more room than the vector becomes
dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from muster.pillars.comm.compress.wire import Wire

MAX_NUMEL = 2**31 - 1


def pack(indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Pairs as bytes, ``[count * (4 + element size)]``: first the values, then the indices as int32."""
    if not indices.numel():  # torch gives some empty tensors strides that bytes cannot have
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    return torch.cat([values.contiguous().view(torch.uint8), indices.to(torch.int32).view(torch.uint8)])


def unpack(packed: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `pack`: indices (int64) and values (``dtype``)."""
    count = packed.numel() // (4 + dtype.itemsize)
    cut = count * dtype.itemsize
    # Copies, since a piece of a longer message need not be aligned.
    values = packed[:cut].clone().view(dtype)
    return packed[cut:].clone().view(torch.int32).long(), values


@dataclass(frozen=True)
class Stream:
    """A vector: pairs, or dense where ``indices`` is None.

    Arguments:
        indices: ascending int64, ``[count]``, or None.
        values: ``[count]``, or ``[numel]`` where dense.
        numel: length of the vector.
    """

    indices: torch.Tensor | None
    values: torch.Tensor
    numel: int

    @property
    def dense(self) -> bool:
        """Whether it has been written out."""
        return self.indices is None

    def plus(self, other: Stream) -> Stream:
        """The sum; the same bits whichever is added to which. Dense once pairs would take more room."""
        if other.dense:
            self, other = other, self
        if self.indices is None:
            if other.indices is None:
                return Stream(None, self.values + other.values, self.numel)
            total = self.values.clone()
            total[other.indices] += other.values
            return Stream(None, total, self.numel)
        assert other.indices is not None
        indices, place = torch.cat([self.indices, other.indices]).unique(return_inverse=True)
        values = torch.zeros(len(indices), dtype=self.values.dtype, device=self.values.device)
        mine, theirs = place[: len(self.indices)], place[len(self.indices) :]
        values[mine] += self.values
        values[theirs] += other.values
        merged = Stream(indices, values, self.numel)
        pair = 4 + values.element_size()
        return merged if len(indices) * pair <= self.numel * values.element_size() else merged.written_out()

    def written_out(self) -> Stream:
        """The same vector, dense."""
        if self.indices is None:
            return self
        total = torch.zeros(self.numel, dtype=self.values.dtype, device=self.values.device)
        total[self.indices] = self.values
        return Stream(None, total, self.numel)


def sum_streams(stream: Stream, wire: Wire) -> Stream:
    """The sum over ranks, the same bits on all of them.

    Recursive doubling over the largest power of two of ranks; the others hand theirs in before and get the result after.
    The order of summation is a tree that does not depend on the rank, and addition of two numbers commutes.
    """
    ranks, rank = wire.world_size, wire.rank
    core = 1 << (ranks.bit_length() - 1)
    extra = ranks - core
    if rank >= core:
        _exchange(wire, rank - core, stream, None)
        return _exchange(wire, rank - core, None, stream)
    if rank < extra:
        stream = stream.plus(_exchange(wire, rank + core, None, stream))
    distance = 1
    while distance < core:
        stream = stream.plus(_exchange(wire, rank ^ distance, stream, stream))
        distance *= 2
    if rank < extra:
        _exchange(wire, rank + core, stream, None)
    return stream


def _exchange(wire: Wire, peer: int, mine: Stream | None, like: Stream | None) -> Stream:
    """Sends ``mine`` and receives one ``like`` it, either of which may be left out: first how long, then what."""
    known = mine if mine is not None else like
    assert known is not None
    device, dtype, numel = known.values.device, known.values.dtype, known.numel
    message = None
    header = None
    if mine is not None:
        message = (
            pack(mine.indices, mine.values) if mine.indices is not None else mine.values.view(torch.uint8)
        )
        header = torch.tensor([message.numel(), int(mine.dense)], dtype=torch.int64, device=device)
    arrived = wire.swap(peer, header, 2 if like is not None else 0, torch.int64, device)
    length, dense = (int(word) for word in arrived) if like is not None else (0, 0)
    packed = wire.swap(peer, message, length, torch.uint8, device)
    if like is None:
        return known
    if dense:
        return Stream(None, packed.view(dtype), numel)
    indices, values = unpack(packed, dtype)
    return Stream(indices, values, numel)
