"""The link between the ranks of a process group: what a collective of so many bytes costs.

A transfer of ``n`` bytes costs ``alpha + beta n`` in the model of Hockney ("The communication challenge for MPP", Parallel
Computing 20, 1994), with other constants where a library changes its algorithm or a cache is exceeded. `Link` therefore is
piecewise: medians measured at sizes a factor of four apart, joined by straight lines, so that each piece has an alpha and a
beta of its own. What the same link would cost at another number of ranks follows from the steps and the volume of the ring
and tree algorithms (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA
19, 2005), and is a prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

KINDS: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")

# Steps of latency, and bytes that one rank sends, for n bytes on P ranks; n as documented at `Link.seconds`.
_STEPS: Final[Mapping[str, Callable[[int], float]]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1),
    "all_gather": lambda ranks: ranks - 1,
    "reduce_scatter": lambda ranks: ranks - 1,
    "all_to_all": lambda ranks: ranks - 1,
    "broadcast": lambda ranks: math.ceil(math.log2(ranks)),
}
_VOLUME: Final[Mapping[str, Callable[[int], float]]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: ranks - 1,
    "reduce_scatter": lambda ranks: (ranks - 1) / ranks,
    "all_to_all": lambda ranks: (ranks - 1) / ranks,
    "broadcast": lambda ranks: math.ceil(math.log2(ranks)),
}


@dataclass(frozen=True)
class Curve:
    """Cost of one kind of collective.

    Arguments:
        bytes: sizes, rising.
        seconds: the median time at each size, not falling.
    """

    bytes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.bytes) != len(self.seconds) or not self.bytes:
            raise ValueError("a curve needs as many times as sizes, and at least one of them")
        if any(after <= before for before, after in zip(self.bytes, self.bytes[1:], strict=False)):
            raise ValueError("the sizes of a curve must rise")

    @classmethod
    def fitted(cls, bytes: Sequence[float], seconds: Sequence[float]) -> Curve:
        """The curve through measured points, made non-falling: more bytes cannot take less time, so a dip is noise.

        The non-falling curve nearest to the points in the least-squares sense of their logarithms, by pooling adjacent
        violators (Barlow, Bartholomew, Bremner and Brunk, 1972): noise is multiplicative.
        """
        pools: list[tuple[float, int]] = []
        for value in seconds:
            mean, count = math.log(max(value, 1e-9)), 1
            while pools and pools[-1][0] > mean:
                before, weight = pools.pop()
                mean, count = (before * weight + mean * count) / (weight + count), weight + count
            pools.append((mean, count))
        smooth = [math.exp(mean) for mean, count in pools for _ in range(count)]
        return cls(tuple(map(float, bytes)), tuple(smooth))

    def at(self, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Seconds for each of ``sizes`` bytes; beyond the ends the first or last piece goes on."""
        x, y = np.asarray(self.bytes), np.asarray(self.seconds)
        if len(x) == 1:
            return np.full_like(sizes, y[0])
        times = np.interp(sizes, x, y)
        times = np.where(sizes > x[-1], y[-1] + (sizes - x[-1]) * self.beta, times)
        return np.where(sizes < x[0], self.alpha + (sizes / x[0]) * (y[0] - self.alpha), times)

    @property
    def alpha(self) -> float:
        """Seconds that no bytes would take: the first piece, continued to zero, but not below half its first time."""
        if len(self.bytes) == 1:
            return self.seconds[0]
        slope = (self.seconds[1] - self.seconds[0]) / (self.bytes[1] - self.bytes[0])
        return max(self.seconds[0] - slope * self.bytes[0], self.seconds[0] / 2)

    @property
    def beta(self) -> float:
        """Seconds per byte of the largest messages: over their last factor of sixteen, where noise weighs little."""
        if len(self.bytes) == 1:
            return 0.0
        before = max(len(self.bytes) - 3, 0)
        return (self.seconds[-1] - self.seconds[before]) / (self.bytes[-1] - self.bytes[before])


@dataclass(frozen=True)
class Link:
    """What collectives cost between the ranks of a process group; equal on all of them.

    Arguments:
        world_size: ranks it was measured with.
        curves: a curve for each kind of `KINDS` that was measured.
        shared: 0 when a link carries both directions at full rate (a switch), 1 when all traffic shares one rate (a bus, a
            token bucket on loopback), in between when something else limits. Only predictions for other world sizes use it.
        backend: of the process group.
    """

    world_size: int
    curves: Mapping[str, Curve] = field(default_factory=dict)
    shared: float = 0.0
    backend: str = ""

    @overload
    def seconds(self, kind: str, bytes: float, world_size: int | None = None) -> float: ...
    @overload
    def seconds(
        self, kind: str, bytes: npt.NDArray[Any], world_size: int | None = None
    ) -> npt.NDArray[np.float64]: ...
    def seconds(
        self, kind: str, bytes: float | npt.NDArray[Any], world_size: int | None = None
    ) -> float | npt.NDArray[np.float64]:
        """Predicted seconds of one collective, entered by all ranks at once on an idle link.

        Arguments:
            kind: one of `KINDS`.
            bytes: the tensor's size for ``all_reduce`` and ``broadcast``; what one rank contributes for ``all_gather``; the
                whole input of one rank for ``reduce_scatter`` and ``all_to_all``. A number or an array of them.
            world_size: ranks; by default those it was measured with.

        Raises:
            KeyError: no such kind has been measured, nor one it could be derived from.
        """
        ranks = self.world_size if world_size is None else world_size
        sizes = np.asarray(bytes, dtype=np.float64)
        if ranks <= 1:
            times = np.zeros_like(sizes)
        else:
            curve = self._curve(kind)
            times = curve.at(sizes)
            if ranks != self.world_size:
                latency = _STEPS[kind](ranks) / _STEPS[kind](self.world_size)
                volume = self._volume(kind, ranks) / self._volume(kind, self.world_size)
                times = curve.alpha * latency + (times - curve.alpha) * volume
        return times if sizes.ndim else float(times)

    def bytes_per_second(self, kind: str = "all_reduce") -> float:
        """Bytes of ``kind`` (counted as for `seconds`) per second, for messages so large that latency does not count."""
        beta = self._curve(kind).beta
        return 1.0 / beta if beta > 0 else math.inf

    def slower(self, factor: float) -> Link:
        """This link with every time multiplied by ``factor``."""
        curves = {
            kind: Curve(curve.bytes, tuple(time * factor for time in curve.seconds))
            for kind, curve in self.curves.items()
        }
        return Link(self.world_size, curves, self.shared, self.backend)

    def sustained(self) -> Link:
        """This link when it is kept busy: no message takes less than the rate of the largest ones allows.

        A token bucket, as shapers and cloud networks have it, lets a burst through at once after a pause. A message that was
        measured alone profits from that; one of many in a row does not.
        """
        curves = {}
        for kind, curve in self.curves.items():
            least = [curve.alpha + size * curve.beta for size in curve.bytes]
            curves[kind] = Curve(
                curve.bytes, tuple(max(pair) for pair in zip(curve.seconds, least, strict=True))
            )
        return Link(self.world_size, curves, self.shared, self.backend)

    def to_json(self) -> str:
        """As JSON, which `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Link:
        """The link that `to_json` wrote."""
        values = json.loads(text)
        curves = {
            kind: Curve(tuple(curve["bytes"]), tuple(curve["seconds"]))
            for kind, curve in values["curves"].items()
        }
        return cls(values["world_size"], curves, values["shared"], values["backend"])

    @classmethod
    def uniform(cls, world_size: int, *, latency_s: float, bytes_per_s: float, shared: float = 0.0) -> Link:
        """A link of one latency per step and one bandwidth per rank and direction, which all kinds follow by algorithm."""
        bare = cls(world_size, {}, shared)
        sizes = (1.0, float(1 << 30))
        curves = {
            kind: Curve(
                sizes,
                tuple(
                    latency_s * _STEPS[kind](world_size) + size * bare._volume(kind, world_size) / bytes_per_s
                    for size in sizes
                ),
            )
            for kind in KINDS
            if world_size > 1
        }
        return cls(world_size, curves, shared, "uniform")

    def _curve(self, kind: str) -> Curve:
        if kind in self.curves:
            return self.curves[kind]
        for twin in {"reduce_scatter": ("all_to_all",), "all_to_all": ("reduce_scatter",)}.get(kind, ()):
            if twin in self.curves:  # the same steps and volume
                return self.curves[twin]
        raise KeyError(f"the link was not measured for {kind!r}, only for {', '.join(sorted(self.curves))}")

    def _volume(self, kind: str, ranks: int) -> float:
        """Bytes, per byte of the message, that the busiest piece of the link carries."""
        sent = _VOLUME[kind](ranks)
        total = ranks - 1.0 if kind == "broadcast" else ranks * sent
        return (1 - self.shared) * sent + self.shared * total
