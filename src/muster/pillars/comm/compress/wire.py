"""The collectives that compressors use, blocking, with every byte counted.

What is counted is payload that this rank sends to other ranks: for an all-reduce that of a bandwidth-optimal
algorithm, ``2 (P-1)/P`` times the tensor (Patarasuk and Yuan, 2009), else what is handed over for other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


class Wire:
    """A process group as compressors see it.

    Arguments:
        group: the ranks; None for the default group. Nothing else may use it meanwhile.

    Attributes:
        rank, world_size: of this process within the group.
        sent_bytes: payload sent so far.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self.sent_bytes = 0

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sums ``tensor`` over ranks, in place."""
        self.sent_bytes += 2 * _bytes(tensor) * (self.world_size - 1) // self.world_size
        dist.all_reduce(tensor, group=self.group)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every rank's ``tensor``, ``[n]`` and equally long everywhere: ``[world_size, n]``."""
        self.sent_bytes += _bytes(tensor) * (self.world_size - 1)
        gathered = tensor.new_empty((self.world_size, tensor.numel()))
        dist.all_gather([_raw(row) for row in gathered], _raw(tensor.contiguous()), group=self.group)
        return gathered

    def all_to_all(self, chunks: Sequence[torch.Tensor], receive: Sequence[int]) -> list[torch.Tensor]:
        """Sends ``chunks[r]`` to rank r; returns what each rank sent here, in order of rank.

        Arguments:
            chunks: one 1-D tensor for each rank, of one dtype.
            receive: how many elements each rank sends here.
        """
        width = chunks[0].element_size()
        own = chunks[self.rank].numel()
        self.sent_bytes += (sum(chunk.numel() for chunk in chunks) - own) * width
        arrived = chunks[0].new_empty(sum(receive))
        dist.all_to_all_single(
            _raw(arrived),
            _raw(torch.cat(list(chunks))),
            output_split_sizes=[count * width for count in receive],
            input_split_sizes=[chunk.numel() * width for chunk in chunks],
            group=self.group,
        )
        return list(arrived.split(list(receive)))

    def swap(
        self, peer: int, tensor: torch.Tensor | None, receive: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Sends a 1-D tensor to ``peer`` (or nothing) and receives ``receive`` elements of ``dtype`` from it."""
        arrived = torch.empty(receive, dtype=dtype, device=device)
        # NCCL numbers peers by their global rank too, hence the translation.
        group = self.group if self.group is not None else dist.group.WORLD
        assert group is not None
        other = dist.get_global_rank(group, peer)
        operations = []
        if tensor is not None and tensor.numel():
            self.sent_bytes += _bytes(tensor)
            operations.append(dist.P2POp(dist.isend, _raw(tensor.contiguous()), other, group))
        if receive:
            operations.append(dist.P2POp(dist.irecv, _raw(arrived), other, group))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        return arrived


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes: Gloo moves bytes of every type, but not every type."""
    return tensor.view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
