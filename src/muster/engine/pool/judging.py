"""The results of units that several workers compute: compared before one of them counts, and liars are told to go."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from muster.engine.pool.book import Book
from muster.engine.pool.course import contents
from muster.engine.pool.delivery import chunks_of, detail_of, known_manifest
from muster.engine.pool.desk import Desk
from muster.engine.pool.fold import Fold
from muster.engine.pool.ledger import CAUGHT, Claim, Lease
from muster.engine.pool.progress import Progress
from muster.engine.pool.seat import Handing
from muster.engine.pool.trust import Result, Trust
from muster.engine.pool.updates import Arrays, flattened, parted, unpack
from muster.errors import DataError, MusterError

WORKER: Final = "worker/"  # begins the names of the ledger's facts of workers
_MOST_CLAIMS: Final = 9  # results of a unit without a quorum, after which there will be none


class Judge:
    """Compares claims, and keeps in mind who has lied.

    One unit is judged at a time. That lock is the judge's own, and is taken before the coordinator's, which the judge takes
    itself where it needs it. The book's claims change with both held; `caught` and `hardware` belong to the coordinator's.

    Arguments:
        trust: whom to believe.
        desk: to write with.
        book: the coordinator's.
        progress: the coordinator's.
        fold: how updates change the model.
        changed: the coordinator's lock.
    """

    def __init__(
        self,
        trust: Trust,
        desk: Desk,
        book: Book,
        progress: Progress,
        *,
        fold: Fold,
        changed: threading.Condition,
    ) -> None:
        self._trust, self._desk, self._book, self._progress = trust, desk, book, progress
        self._fold, self._changed = fold, changed
        self._judging = threading.RLock()  # taken before the other
        self.caught: dict[str, str] = {}  # workers that have lied, and how
        self.hardware: dict[str, str] = {}  # class of each worker's machine

    def claim(self, lease: Lease, result: Handing) -> int:
        """A result that is compared with others before it counts; its number, or 0 while there is none."""
        unit, now, ledger = lease.unit.number, self._desk.now(), self._desk.ledger
        with self._judging:
            with self._desk.writing():
                claim = ledger.claim(
                    lease.token,
                    content=result.update.name,
                    samples=result.samples,
                    now=now,
                    detail=detail_of(lease, result),
                )
            with self._changed:
                self._book.pace.ended(lease.worker, result.samples, now - lease.granted)
                self._book.claims.setdefault(unit, []).append(claim)
                self._book.pins[claim.base_version] += 1
                self._book.let_go(lease.token)
            self.compare(unit)
        number = ledger.accepted_by(lease.token)
        return 0 if number is None else number.number

    def compare(self, unit: int) -> None:
        """Compares the claims of a unit, once there are enough."""
        desk, book, progress = self._desk, self._book, self._progress
        with self._judging:
            claims = list(book.claims.get(unit, ()))
            wanted = desk.ledger.checks().get(unit)
            if not claims or wanted is None or len(claims) < wanted.results:
                return
            with self._changed:
                base = book.bases[claims[0].base_version]
                hardware = [self.hardware.get(claim.worker, "") for claim in claims]
            results = [self._result(claim, kind, base) for claim, kind in zip(claims, hardware, strict=True)]
            verdict = self._trust.judged(flattened(weights={"": base}), results)
            if verdict.believed is None:
                with desk.writing():
                    desk.ledger.want(unit, verdict.wanted)
                left = len(set(self.hardware) - set(self.caught))
                waits = (
                    "" if verdict.wanted.results <= left else "; it waits for a worker more than there are"
                )
                desk.testify("disputed", "", f"unit {unit}: {len(claims)} results do not agree{waits}")
                if len(claims) >= _MOST_CLAIMS:
                    with self._changed:
                        progress.fail(
                            MusterError(
                                f"unit {unit}: no quorum among {len(claims)} results; its work must be a function of its "
                                "model and its seed, up to rounding, or most workers lie"
                            )
                        )
                return
            believed = claims[verdict.believed]
            lies = {claims[place].token: why for place, why in verdict.lies.items()}
            agreed = [claim.worker for claim in claims if claim.token not in lies]
            own = believed.detail.get("own")
            with desk.writing():
                accepted, retraction = desk.ledger.settle(
                    believed,
                    now=desk.now(),
                    detail={"agreed": agreed, "differences": list(verdict.differences)},
                    notes={} if own is None else {believed.detail["keeper"]: own},
                    lies=lies,
                    anew_from=progress.opened[-1] if self._fold.arrival == "round" else 0,
                )
            with self._changed:
                self._settled(claims, lies)
                self._trust.believed(agreed, verdict.differences)
                if retraction is not None:
                    progress.retractions.append(retraction)
                arrays = contents(desk.blobs, self._fold, accepted, base)
                progress.count(accepted, arrays, base, None if own is None else known_manifest(own))
                book.discard(set().union(*(chunks_of(claim) for claim in claims if claim.token not in lies)))
                progress.go_on()
                self._changed.notify_all()
            for claim in claims:
                if claim.token in lies:
                    desk.told("lie", claim.worker, f"unit {unit}: {lies[claim.token]}")
            if retraction is not None:
                desk.told("retracted", "", f"{len(retraction.numbers)} results")

    def _settled(self, claims: Sequence[Claim], lies: Mapping[str, str]) -> None:
        """A unit's claims are no longer open, and those who lied have no others. With the coordinator's lock held."""
        book = self._book
        closed = list(claims)
        del book.claims[claims[0].unit]
        for claim in claims:
            if claim.token in lies:
                book.kept |= chunks_of(claim)  # it is evidence
                self.caught[claim.worker] = f"unit {claim.unit}: {lies[claim.token]}"
                self._trust.caught(claim.worker)
        for unit, others in list(book.claims.items()):
            closed += [claim for claim in others if claim.worker in self.caught]
            book.claims[unit] = [claim for claim in others if claim.worker not in self.caught]
            if not book.claims[unit]:
                del book.claims[unit]
        for claim in closed:
            book.unpin(claim.base_version)
        for token in [each for each, held in book.leases.items() if held.lease.worker in self.caught]:
            book.let_go(token)

    def _result(self, claim: Claim, hardware: str, base: Arrays) -> Result:
        """A claim with its arrays; what its keeper keeps is compared as well."""
        arrays = contents(self._desk.blobs, self._fold, claim, base)
        own = claim.detail.get("own")
        if own is not None:
            try:
                kept = unpack(self._desk.blobs.get_whole(known_manifest(own)))
                arrays |= flattened(own=parted(kept, "own"))
            except (DataError, ValueError):
                arrays |= {"own": np.zeros(0)}  # differs from all that can be read
        facts = {"samples": claim.samples, "steps": claim.detail["steps"]}
        return Result(claim.worker, hardware, arrays, facts, claim.detail["loss"])

    def recall(self) -> None:
        """What is on record about whom to believe; for a coordinator that begins."""
        ledger = self._desk.ledger
        for name, about in ledger.noted_below(WORKER).items():
            self.hardware[name.removeprefix(WORKER)] = str(about.get("hardware", ""))
        for each in ledger.accepted():
            differences = [tuple(told) for told in each.detail.get("differences", ())]
            self._trust.believed(each.detail.get("agreed", [each.worker]), differences)
        for name, told in ledger.noted_below(CAUGHT).items():
            self.caught[name.removeprefix(CAUGHT)] = told
            self._trust.caught(name.removeprefix(CAUGHT))
        for claim in ledger.claims():
            if claim.verdict is None:
                self._book.claims.setdefault(claim.unit, []).append(claim)
            elif claim.verdict == "lie":
                self._book.kept |= chunks_of(claim)
