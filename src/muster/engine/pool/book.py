"""What a coordinator keeps in mind: leases, claims, the models that they began from, and what must stay on the disk for them.

Equal contents are stored once, so a chunk is removed when nothing in the book consists of it any more. A book has no lock of
its own: whoever calls it holds the coordinator's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from muster.engine.pool.blobs import BlobStore, Manifest
from muster.engine.pool.course import Version
from muster.engine.pool.delivery import chunks_of
from muster.engine.pool.fold import Fold
from muster.engine.pool.ledger import Claim, Lease
from muster.engine.pool.pace import Pace
from muster.engine.pool.rules import Rules
from muster.engine.pool.updates import Arrays, flattened, pack


@dataclass
class Held:
    """A lease as the coordinator keeps it in mind: when it expires, its hard limit, and the chunks it has brought."""

    lease: Lease
    deadline: float
    last: float
    received: int = 0
    brought: set[str] = field(default_factory=set)


class Book:
    """Who has what in hand.

    Arguments:
        blobs: where models are handed out from.
        fold: says what goes out with a model.
        version: the newest model.
        rules: for workers.
        pace: what is known of their speed.
    """

    def __init__(self, blobs: BlobStore, fold: Fold, version: Version, rules: Rules, pace: Pace) -> None:
        self._blobs, self._fold, self._rules = blobs, fold, rules
        self.pace = pace
        self.version = version
        self.leases: dict[str, Held] = {}  # by their tokens
        self.claims: dict[int, list[Claim]] = {}  # of units that are being checked
        self.pins: Counter[int] = Counter()  # versions that leases and claims began from
        self.bases: dict[int, Arrays] = {}  # their models
        self.handed: dict[int, Manifest] = {}  # as chunks
        self.own: dict[str, Manifest] = {}  # what keepers keep
        self.kept: set[str] = set()  # chunks of the first model, of accepted updates and of lies
        self.saved: set[str] = set()  # chunks of the last snapshot

    # ---- leases ---------------------------------------------------------------------------------------------------------

    def hold(self, lease: Lease) -> None:
        """A lease has been granted; its version is pinned already."""
        allowed = self.pace.allowed_s(lease.worker, lease.unit.samples)
        last = lease.granted + max(self._rules.silence_s, self._rules.patience * allowed)
        self.leases[lease.token] = Held(lease, lease.deadline, last)

    def lagging(self, now: float) -> list[int]:
        """Units that have been in somebody's hands for longer than such a one takes, so that a copy may be worth it."""
        return [
            held.lease.unit.number
            for held in self.leases.values()
            if now - held.lease.granted > self.pace.typically_allowed_s(held.lease.unit.samples)
        ]

    def spare(self, deadline: float) -> None:
        """No lease expires before that time."""
        for held in self.leases.values():
            held.deadline, held.last = max(held.deadline, deadline), max(held.last, deadline)

    def let_go(self, token: str) -> None:
        """A lease has ended."""
        held = self.leases.pop(token, None)
        if held is not None:
            self.unpin(held.lease.base_version)
            self.discard(held.brought)

    # ---- versions -------------------------------------------------------------------------------------------------------

    def pin(self, version: Version) -> None:
        """One more lease or claim began from a version."""
        self.pins[version.number] += 1
        self.bases[version.number] = version.model

    def unpin(self, number: int) -> None:
        """One less began from it."""
        self.pins[number] -= 1
        if self.pins[number] <= 0:
            del self.pins[number]
            self.drop(number)

    def drop(self, number: int) -> None:
        """Forgets a version that nobody begins from any more."""
        if number == self.version.number or number in self.pins:
            return
        self.bases.pop(number, None)
        gone = self.handed.pop(number, None)
        if gone is not None:
            self.discard(gone.chunks)

    def hand_out(self, version: Version) -> Manifest:
        """A version as workers fetch it; writes it where nobody has asked for it yet."""
        if version.number not in self.handed:
            sent = self._fold.send(version.model, version.state)
            self.handed[version.number] = self._blobs.put_whole(
                pack(flattened(weights={"": version.model}, sent=sent))
            )
        return self.handed[version.number]

    # ---- chunks ---------------------------------------------------------------------------------------------------------

    def discard(self, names: Iterable[str]) -> None:
        """Removes those chunks that nothing else consists of: equal contents are stored once."""
        gone = set(names) - self.kept - self.saved
        for manifest in (*self.handed.values(), *self.own.values()):
            gone.difference_update(manifest.chunks)
        for held in self.leases.values():
            gone -= held.brought
        for claims in self.claims.values():
            for claim in claims:
                gone -= chunks_of(claim)
        self._blobs.remove(gone)
