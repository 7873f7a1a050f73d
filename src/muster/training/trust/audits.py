"""Who is checked: a share of everybody's units, and nearly all of those of a worker that nobody has confirmed yet.

A check is a second result of the same unit by another worker. It is drawn before the unit is leased for the first time,
and the second lease looks like the first, so neither of the two workers knows that it is being checked, and one extra
computation checks both. The share never falls towards zero with good conduct, which is where a worker that lies rarely
would escape; see `survival`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Record:
    """What is known of a worker.

    Arguments:
        confirmed: results that agreed with those of others.
        alone: results that were believed at its word.
        caught: whether one of its results was a lie.
    """

    confirmed: int = 0
    alone: int = 0
    caught: bool = False

    def after(self, *, agreed: bool) -> Record:
        """With one result more."""
        return replace(self, confirmed=self.confirmed + agreed, alone=self.alone + (not agreed))


@dataclass(frozen=True)
class Audits:
    """How often a unit is checked: ``max(share, min(1, probation / (1 + confirmed)))``.

    Arguments:
        share: of the units of a worker that is known.
        probation: a worker with fewer confirmed results is always checked; from there the probability falls.
    """

    share: float = 0.098
    probation: int = 2

    def probability(self, record: Record) -> float:
        """That a worker's next unit is checked."""
        return max(self.share, min(1.0, self.probation / (1 + record.confirmed)))

    def due(self, record: Record, *, secret: bytes, unit: int, worker: str) -> bool:
        """Whether a unit is checked; the same for the same arguments, and nothing to be guessed without the secret."""
        return draw(secret, unit, worker) < self.probability(record)


def draw(secret: bytes, unit: int, worker: str) -> float:
    """A number from 0 up to 1, uniform over units and workers: keyed BLAKE2b."""
    told = hashlib.blake2b(f"{unit}\x1f{worker}".encode(), key=secret, digest_size=8).digest()
    return int.from_bytes(told, "big") / 2**64
