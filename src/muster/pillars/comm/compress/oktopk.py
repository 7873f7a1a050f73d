"""Ok-Topk: a sparse all-reduce that stays sparse, so that its traffic does not grow with the number of ranks.

Li and Hoefler, "Near-optimal sparse allreduce for distributed deep learning" (PPoPP'22). Each rank owns a region of the
bucket. Pairs go to the owner of their region, which sums them and keeps only what belongs to the largest k of the sum;
these are spread evenly over the ranks where they are not already, and gathered. With k pairs selected on every rank and
k of the sum, a rank sends at most 6k(P-1)/P words (2k to the owners, 2k to even out, 2k to gather, in units of (P-1)/P,
an index and a value being a word each), while gathering every rank's pairs takes 2k(P-1) and their union may have up to
kP elements.

Thresholds are used again for a period and corrected as soon as the number selected drifts; the regions' boundaries follow
the selected indices, so that owners get equally many pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import CompressorState, ComputeRates, LinkModel, Part
from muster.pillars.comm.compress.feedback import FeedbackCompressor
from muster.pillars.comm.compress.selection import largest, reaching, smallest_magnitude
from muster.pillars.comm.compress.sparse_stream import pack, unpack
from muster.pillars.comm.compress.topk import check_density, wanted
from muster.pillars.comm.compress.wire import Wire

_DRIFT = 1.25  # how far the number selected may leave its target before a threshold is found anew
_TAIL = 0.15  # d log(threshold) / d log(number above it) of a Gaussian near a density of 1 %
_TRIALS = 6
_UNEVEN = 1.5  # how much more than its share a rank may gather out before the selected are evened out


class OkTopK(FeedbackCompressor):
    """The largest magnitudes of the whole bucket's sum, among those that are large on some rank.

    An element counts as sent when this rank selected it and it is among the global selection; all others stay in the
    residual whole, so ``residual + sent == gradient + previous residual`` holds bit for bit.

    Arguments:
        density: share of the bucket's elements to select, locally and of the sum.
        threshold_every: steps that a pair of thresholds (local, global) is used for.
        partition_every: steps that the regions' boundaries are used for.

    Raises:
        RefusedInput: the density is not in (0, 1], a period is not positive, or the bucket is too long for 32-bit
        indices.

    Attributes:
        selected: how many pairs the last step selected of the sum; the k of the bound.
    """

    name = "oktopk"
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
        threshold_every: int = 32,
        partition_every: int = 64,
    ) -> None:
        super().__init__(parts, dtype, device, seed=seed, error_feedback=error_feedback)
        check_density(self.name, density, self.numel)
        if threshold_every < 1 or partition_every < 1:
            raise RefusedInput(
                f"compression oktopk: threshold_every {threshold_every} and partition_every {partition_every} "
                "count steps; use 1 or more"
            )
        self.count = wanted(self.numel, density)
        self.threshold_every, self.partition_every = threshold_every, partition_every
        self.selected = 0
        self._local_threshold = 0.0  # 0: to be found
        self._global_threshold = 0.0
        self._bounds: list[int] = []  # first element of regions 1 .. P-1

    def _send(self, bucket: torch.Tensor, wire: Wire) -> None:
        if self.steps % self.threshold_every == 0:
            self._local_threshold = self._global_threshold = 0.0
        chosen = self._choose()
        if not self._bounds or self.steps % self.partition_every == 0:
            self._bounds = _partition(chosen, self.numel, wire)
        edges = [0, *self._bounds, self.numel]
        region = self._reduce_region(chosen, edges, wire)
        start = edges[wire.rank]
        kept, counts = self._keep(region, wire)
        indices, values = self._gather(kept + start, region[kept], counts, wire)
        self.selected = len(indices)
        self._global_threshold = self._followed(self._global_threshold, self.selected)

        bucket.zero_()
        bucket[indices] = values / wire.world_size
        if self.selected:
            place = torch.searchsorted(indices, chosen).clamp_(max=self.selected - 1)
            self.residual[chosen[indices[place] == chosen]] = 0

    def _choose(self) -> torch.Tensor:
        """Indices of this rank's largest elements, ascending."""
        if self._local_threshold:
            chosen = reaching(self.residual, self._local_threshold)
            if self._on_target(len(chosen)):
                self._local_threshold = self._followed(self._local_threshold, len(chosen))
                return chosen
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        chosen = largest(self.residual, self.count, generator)
        self._local_threshold = smallest_magnitude(self.residual[chosen])
        return chosen

    def _keep(self, region: torch.Tensor, wire: Wire) -> tuple[torch.Tensor, list[int]]:
        """Which elements of this rank's region are among the global selection, and how many are in each rank's."""
        # Moving a threshold that is used again costs a word per rank and trial; finding one costs 2k/P of them.
        exponent, before = _TAIL, (0.0, 0)
        for _ in range(_TRIALS if self._global_threshold else 0):
            threshold = self._global_threshold
            kept = reaching(region, threshold)
            counts = _counts(kept, wire)
            total = sum(counts)  # the same on all ranks
            if self._on_target(total):
                return kept, counts
            if min(total, before[1]) > 0 and total != before[1]:  # from the second trial on: a secant
                exponent = -math.log(threshold / before[0]) / math.log(total / before[1])
                exponent = min(max(exponent, 0.02), 1.0)
            before = threshold, total
            self._global_threshold = threshold * (max(total, 1) / self.count) ** exponent
        self._global_threshold = _global_threshold(region, self.count, wire)
        kept = reaching(region, self._global_threshold)
        return kept, _counts(kept, wire)

    def _on_target(self, selected: int) -> bool:
        return self.count / _DRIFT <= selected <= self.count * _DRIFT

    def _followed(self, threshold: float, selected: int) -> float:
        """The threshold moved against the drift: residuals grow at first, gradients shrink later."""
        return threshold * (max(selected, 1) / self.count) ** _TAIL

    def _reduce_region(self, chosen: torch.Tensor, edges: Sequence[int], wire: Wire) -> torch.Tensor:
        """Sends every rank the pairs in its region; returns the sum over this rank's, dense: ``[length of the region]``."""
        cuts = torch.searchsorted(chosen, torch.tensor(edges, device=chosen.device)).tolist()
        values = self.residual[chosen]
        messages = [pack(chosen[begin:end], values[begin:end]) for begin, end in pairwise(cuts)]
        lengths = torch.tensor(
            [len(message) for message in messages], device=chosen.device, dtype=torch.int32
        )
        incoming = torch.cat(wire.all_to_all(lengths.split(1), [1] * wire.world_size)).tolist()
        first, last = edges[wire.rank], edges[wire.rank + 1]
        total = torch.zeros(last - first, dtype=self.dtype, device=self.device)
        for message in wire.all_to_all(messages, incoming):  # in order of rank
            indices, arrived = unpack(message, self.dtype)
            total.index_add_(0, indices - first, arrived)
        return total

    def _gather(
        self, indices: torch.Tensor, values: torch.Tensor, counts: list[int], wire: Wire
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every rank's selected pairs, ascending by index."""
        ranks, rank = wire.world_size, wire.rank
        total, message, pair = sum(counts), pack(indices, values), 4 + self.dtype.itemsize
        if max(counts) > _UNEVEN * total / ranks + 1:
            # Pair number n, counted through all ranks, goes to the rank whose even share it lies in.
            ends, shares = [0, *accumulate(counts)], [total * other // ranks for other in range(ranks + 1)]

            def overlap(holder: int, taker: int) -> tuple[int, int]:
                begin = max(ends[holder], shares[taker])
                return begin, max(begin, min(ends[holder + 1], shares[taker + 1]))

            spans = [overlap(rank, taker) for taker in range(ranks)]
            offset = ends[rank]
            moved = wire.all_to_all(
                [
                    pack(indices[begin - offset : end - offset], values[begin - offset : end - offset])
                    for begin, end in spans
                ],
                [pair * (end - begin) for begin, end in (overlap(holder, rank) for holder in range(ranks))],
            )
            pieces = [unpack(piece, self.dtype) for piece in moved]
            message = pack(
                torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])
            )
            counts = [end - begin for begin, end in pairwise(shares)]
        gathered = wire.all_to_all([message] * ranks, [pair * count for count in counts])
        everything = [unpack(piece, self.dtype) for piece in gathered]
        return torch.cat([piece[0] for piece in everything]), torch.cat([piece[1] for piece in everything])

    def state(self) -> CompressorState:
        state = super().state()
        state.bucket["thresholds"] = torch.tensor(
            [self._local_threshold, self._global_threshold], dtype=torch.float64
        )
        state.bucket["bounds"] = torch.tensor(self._bounds, dtype=torch.int64)
        return state

    def load_state(self, state: CompressorState) -> None:
        super().load_state(state)
        if "thresholds" in state.bucket:
            self._local_threshold, self._global_threshold = state.bucket["thresholds"].tolist()
            self._bounds = state.bucket["bounds"].tolist()

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
        count = wanted(numel, options.get("density", 0.01))
        pairs = 8 * count
        region = numel / world_size
        return (
            link.seconds("all_to_all", 4 * world_size, world_size)
            + link.seconds("all_to_all", pairs, world_size)
            + link.seconds("all_gather", 4, world_size)
            # The gathering is an all-to-all in which everybody gets the same; evened-out regions are the rule.
            + link.seconds("all_to_all", pairs, world_size)
            + (16 * numel + 4 * region) / compute.stream_bytes_per_s
            + (numel + region) / compute.select_elements_per_s
            + 12 * count / compute.scatter_elements_per_s
            + (60 + 20 * world_size + 4 * numel / (1 << 16)) * compute.call_s
        )


def _counts(kept: torch.Tensor, wire: Wire) -> list[int]:
    """How many elements each rank has kept."""
    mine = torch.tensor([len(kept)], device=kept.device, dtype=torch.int32)
    return wire.all_gather(mine).view(-1).tolist()  # type: ignore[no-any-return]


def _partition(chosen: torch.Tensor, numel: int, wire: Wire) -> list[int]:
    """Boundaries between regions: the mean over ranks of those that would give every owner as many of a rank's pairs."""
    ranks = wire.world_size
    if len(chosen):
        places = [len(chosen) * region // ranks for region in range(1, ranks)]
        bounds = chosen[torch.tensor(places, device=chosen.device, dtype=torch.int64)].double()
    else:
        bounds = torch.tensor(
            [numel * region // ranks for region in range(1, ranks)], device=chosen.device, dtype=torch.float64
        )
    if ranks > 1:
        wire.all_reduce(bounds)
    return [int(bound) for bound in (bounds / ranks).tolist()]


def _global_threshold(region: torch.Tensor, count: int, wire: Wire) -> float:
    """The magnitude of the ``count``-th largest of the sum.

    Every owner tells the largest 2k/P of its region (the paper gathers all, which is much more with many ranks). That is
    exact unless one owner holds more than twice its share of the largest k; the threshold is then too low, and the
    number selected corrects it in the step after.
    """
    told = min(count, -(-2 * count // wire.world_size))
    present = reaching(region, 0.0)
    magnitudes = region[present].abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    top = magnitudes.topk(min(told, len(magnitudes))).values
    padded = torch.zeros(told, dtype=region.dtype, device=region.device)
    padded[: len(top)] = top
    everybody = wire.all_gather(padded).view(-1)
    threshold = float(everybody.topk(min(count, len(everybody))).values[-1])
    return max(threshold, torch.finfo(region.dtype).tiny)
