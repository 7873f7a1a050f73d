"""Which buckets, and what compresses each: a plan from measured times, by predicted time, selection included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from muster.pillars.comm.compress.compressor import ComputeRates, Part, parts_of
from muster.pillars.comm.compress.registry import compressor_names, load_compressor
from muster.pillars.comm.layout import Flight, fly, merged, plan_layout
from muster.pillars.comm.link import Link
from muster.pillars.comm.step_profile import StepProfile

MOST_GROUPS = 64
"""A plan looks at so many groups of neighbouring gradients at most; its cost grows with their square."""


@dataclass(frozen=True)
class Plan:
    """A bucket layout with a compressor for each bucket.

    Arguments:
        names: parameters in the order in which their gradients become ready.
        ends: where buckets end in ``names``.
        compressors: the name of each bucket's compressor.
        flights: the buckets on the link, predicted; ``first`` and ``stop`` count parameters.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    compressors: tuple[str, ...]
    flights: tuple[Flight, ...]

    @property
    def end_s(self) -> float:
        """When the exchange is over, predicted; seconds since the forward pass began."""
        return self.flights[-1].end

    @property
    def communication_s(self) -> float:
        """Predicted seconds in which the link is busy."""
        return sum(flight.end - flight.start for flight in self.flights)

    def by_bucket(self) -> dict[tuple[str, ...], str]:
        """Each bucket's compressor under the names of its parameters."""
        starts = (0, *self.ends[:-1])
        return {
            self.names[first:stop]: name
            for first, stop, name in zip(starts, self.ends, self.compressors, strict=True)
        }


class Costs:
    """What each possible bucket costs with each compressor, predicted.

    Arguments:
        profile: of the step.
        shapes: of the parameters, by name.
        link, rates: what collectives and arithmetic cost here.
        options: of each compressor, by its name.
        world_size: ranks to predict for; by default those of the profile.
    """

    def __init__(
        self,
        profile: StepProfile,
        shapes: Mapping[str, torch.Size],
        link: Link,
        rates: ComputeRates,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        world_size: int | None = None,
    ) -> None:
        self._profile, self._shapes, self._rates = profile, shapes, rates
        self._link = link.sustained()
        self._options = options or {}
        self._world_size = world_size or profile.world_size
        self.seconds = lru_cache(maxsize=None)(self._seconds)

    def parts(self, first: int, stop: int) -> list[Part]:
        """The tensors of the bucket of parameters ``first..stop-1``."""
        names = self._profile.names[first:stop]
        return parts_of([self._shapes[name] for name in names], names)

    def _seconds(self, name: str, first: int, stop: int) -> float:
        options = self._options.get(name, {})
        parts = self.parts(first, stop)
        return load_compressor(name).predicted_s(parts, self._world_size, self._link, self._rates, **options)

    def best(self, names: Sequence[str], first: int, stop: int) -> tuple[str, float]:
        """The quickest of some compressors for a bucket, and its seconds; of equals the first."""
        quickest = min(names, key=lambda name: self.seconds(name, first, stop))
        return quickest, self.seconds(quickest, first, stop)


def make_plan(profile: StepProfile, costs: Costs, compressors: Sequence[str], *, slack: float = 0.01) -> Plan:
    """The layout that ends first when each bucket gets the quickest of ``compressors`` for it.

    Arguments:
        profile: of the step.
        costs: of buckets.
        compressors: names; of equally quick ones the first is taken.
        slack: as for `layout.plan_layout`.
    """
    groups = merged(profile.ready_s, profile.bytes, MOST_GROUPS)
    edges = (0, *groups)

    def cost(starts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.float64]:
        return np.array([costs.best(compressors, edges[start], edges[stop])[1] for start in starts])

    ends = plan_layout([profile.ready_s[group - 1] for group in groups], cost, slack=slack)
    return plan_for(profile, costs, compressors, [groups[end - 1] for end in ends])


def plan_for(profile: StepProfile, costs: Costs, compressors: Sequence[str], ends: Sequence[int]) -> Plan:
    """The plan with a given layout: the quickest of ``compressors`` for each of its buckets."""
    starts = (0, *ends[:-1])
    chosen = tuple(costs.best(compressors, first, stop)[0] for first, stop in zip(starts, ends, strict=True))
    names = dict(zip(starts, chosen, strict=True))

    def cost(firsts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.float64]:
        return np.array([costs.seconds(names[int(first)], int(first), stop) for first in firsts])

    flights = tuple(fly(profile.ready_s, ends, cost))
    return Plan(profile.names, tuple(ends), chosen, flights)


def sparse_pays(name: str, density: float, world_size: int, against: str = "bf16") -> bool:
    """Whether sending the largest elements alone can move fewer bytes than sending all.

    A dense all-reduce of ``n`` elements sends ``2n (P-1)/P`` words per rank. Gathering the index and value of ``k``
    elements from every rank sends ``2k (P-1)``: fewer only where ``k/n < 1/P``. Ok-Topk sends at most ``6k (P-1)/P``
    (Li and Hoefler, "Near-optimal sparse allreduce for distributed deep learning", PPoPP 2022): fewer only where
    ``k/n < 1/3``. A word is four bytes; bf16 halves the dense side, and so the bounds.

    Arguments:
        name: ``topk`` or ``oktopk``; every other compressor is not sparse, and nothing speaks against it here.
        density: ``k/n``, the share of elements that are sent.
        world_size: ``P``.
        against: ``fp32`` or ``bf16``.
    """
    if name not in ("topk", "oktopk"):
        return True
    bound = 1 / world_size if name == "topk" else 1 / 3
    return density < (bound / 2 if against == "bf16" else bound)


def automatic_candidates(lossy: bool, dtype: torch.dtype, world_size: int) -> list[str]:
    """What ``auto`` may choose each bucket's compressor from, the least intrusive first.

    Arguments:
        lossy: whether the user consents to lossy compression.
        dtype: of the gradients.
        world_size: how many ranks exchange.
    """
    if dtype != torch.float32:
        return ["none"]
    names = ["none", "bf16"]
    if lossy:
        for name in compressor_names():
            kind = load_compressor(name)
            density = getattr(kind, "default_density", 0.01)
            if kind.lossy and name not in names and sparse_pays(name, density, world_size):
                names.append(name)
    return names
