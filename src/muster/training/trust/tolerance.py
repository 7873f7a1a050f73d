"""How much two classes of hardware differ by rounding, learned from pairs of results that agreed.

Of the last differences between two classes the upper 99 % quantile is taken, times a margin:

    tolerance = margin * quantile(differences, 0.99),  at least `least`,  at most `most`

The quantile is an order statistic (the next larger one), so with fewer than a hundred pairs it is their maximum. Until
`enough` pairs are known the tolerance is `first`. Pairs that only workers vouch for can lower it below `first`, never
raise it above: else a liar could stretch it, lie by lie, each as large as the last one allowed. Only pairs that a trusted
worker was part of can raise it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_QUANTILE: Final = 0.99


@dataclass(frozen=True)
class Bounds:
    """Limits of what is learned.

    Arguments:
        first: tolerance while little is known.
        least: no tolerance is below; a few roundings of float32.
        most: nor above, whoever vouches.
        margin: times the quantile.
        enough: pairs of two classes that make it known.
        remembered: last pairs that count.
    """

    first: float = 2e-4
    least: float = 1e-6
    most: float = 2e-2
    margin: float = 10.0
    enough: int = 20
    remembered: int = 512


@dataclass
class Tolerances:
    """What is known of each two classes of hardware.

    Arguments:
        bounds: limits.
    """

    bounds: Bounds = field(default_factory=Bounds)
    _pairs: dict[tuple[str, str], deque[tuple[float, bool]]] = field(default_factory=dict)

    def learn(self, one: str, other: str, difference: float, *, vouched: bool) -> None:
        """A pair of results was found to agree.

        Arguments:
            one, other: classes of hardware.
            difference: as `muster.training.trust.agreement.difference`.
            vouched: whether one of the two was a trusted worker's.
        """
        known = self._pairs.setdefault(_key(one, other), deque(maxlen=self.bounds.remembered))
        known.append((difference, vouched))

    def of(self, one: str, other: str) -> float:
        """The largest difference at which two results count as the same."""
        pairs = self._pairs.get(_key(one, other), ())
        vouched = [difference for difference, vouched in pairs if vouched]
        if len(vouched) >= self.bounds.enough:
            return self._from(vouched)
        if len(pairs) >= self.bounds.enough:
            return min(self.bounds.first, self._from([difference for difference, _ in pairs]))
        return self.bounds.first

    def _from(self, differences: list[float]) -> float:
        quantile = float(np.quantile(differences, _QUANTILE, method="higher"))
        return min(self.bounds.most, max(self.bounds.least, self.bounds.margin * quantile))


def _key(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one <= other else (other, one)
