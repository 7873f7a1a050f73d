"""No compression: the all-reduce of the bucket as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from muster.pillars.comm.compress.compressor import Compressor, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.wire import Wire


class Uncompressed(Compressor):
    """The mean in the bucket's own dtype.

    The bucket is divided first and summed then, as DistributedDataParallel does, so the bits are those of training
    without a hook.
    """

    name = "none"
    lossy = False

    def _average(self, bucket: torch.Tensor, wire: Wire) -> None:
        bucket.div_(wire.world_size)
        wire.all_reduce(bucket)

    @classmethod
    def predicted_s(
        cls,
        parts: Sequence[Part],
        world_size: int,
        link: LinkModel,
        compute: ComputeRates,
        **options: Any,
    ) -> float:
        size = 4 * sum(part.numel for part in parts)
        return link.seconds("all_reduce", size, world_size) + 2 * size / compute.stream_bytes_per_s
