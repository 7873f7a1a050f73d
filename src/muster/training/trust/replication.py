"""Replication with a quorum, adaptive by reputation, as the trust of a coordinator."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from muster.engine.pool.trust import Result, Verdict, Wanted
from muster.engine.pool.updates import Arrays
from muster.errors import RefusedInput
from muster.training.trust.agreement import agreeing, difference, groups
from muster.training.trust.audits import Audits, Record
from muster.training.trust.tolerance import Bounds, Tolerances


class Replication:
    """Has a share of all units done twice by different workers, and retracts what a liar was believed at its word::

        trust = muster.trust.Replication(share=0.098)

    Arguments:
        share: of the units of a known worker that are checked; what that costs is this share of the work.
        quorum: results that must agree. Where two do not, more are asked for until so many do.
        probation: a worker with fewer confirmed results is checked every time.
        trusted: workers whose word decides, by name; ``worker 3`` stands for those who take its place, too (``worker 3.1``).
            They settle every dispute, and where ``audit`` is set they alone do the checks.
        audit: whether checks are done by trusted workers only.
        tolerance: limits of the differences by rounding.
        secret: of the draws; None for one that nobody knows.

    Raises:
        RefusedInput: an argument makes no sense; says which.
    """

    def __init__(
        self,
        share: float = 0.098,
        *,
        quorum: int = 2,
        probation: int = 2,
        trusted: Sequence[str] = (),
        audit: bool = False,
        tolerance: Bounds | None = None,
        secret: bytes | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise RefusedInput(f"trust: share: found {share}; expected above 0, up to 1")
        if quorum < 2:
            raise RefusedInput(f"trust: quorum: found {quorum}; expected 2 or more results that agree")
        if probation < 0:
            raise RefusedInput(f"trust: probation: found {probation}; expected 0 or more")
        if audit and not trusted:
            raise RefusedInput("trust: audit: checks by trusted workers need some; name them in trusted")
        self._audits, self._quorum = Audits(share, probation), quorum
        self._trusted, self._audit = frozenset(trusted), audit
        self._secret = secrets.token_bytes(16) if secret is None else secret
        self._tolerances = Tolerances(tolerance or Bounds())
        self._records: dict[str, Record] = {}

    @property
    def workers_needed(self) -> int:
        """With fewer workers some units would wait for ever."""
        return 2 if self._audit else self._quorum

    @property
    def records(self) -> Mapping[str, Record]:
        """What is known of each worker."""
        return dict(self._records)

    @property
    def tolerances(self) -> Tolerances:
        """What is known of rounding; a calibration on trusted machines may be put in."""
        return self._tolerances

    def about(self) -> Mapping[str, Any]:
        """See `muster.engine.pool.trust.Trust`."""
        return {
            "kind": "replication",
            "share": self._audits.share,
            "quorum": self._quorum,
            "probation": self._audits.probation,
            "trusted": sorted(self._trusted),
            "audit": self._audit,
        }

    def is_trusted(self, worker: str) -> bool:
        """See `muster.engine.pool.trust.Trust`."""
        place, _, _ = worker.partition(".")
        return worker in self._trusted or place in self._trusted

    def wanted(self, unit: int, worker: str) -> Wanted:
        """See `muster.engine.pool.trust.Trust`."""
        if self.is_trusted(worker):
            return Wanted()
        record = self._records.get(worker, Record())
        if not self._audits.due(record, secret=self._secret, unit=unit, worker=worker):
            return Wanted()
        return Wanted(2, trusted=True) if self._audit else Wanted(self._quorum)

    def judged(self, base: Arrays, results: Sequence[Result]) -> Verdict:
        """See `muster.engine.pool.trust.Trust`."""
        apart = {
            (one, two): difference(base, results[one], results[two])
            for two in range(len(results))
            for one in range(two)
        }
        allowed = {
            pair: self._tolerances.of(results[pair[0]].hardware, results[pair[1]].hardware) for pair in apart
        }
        found = groups(len(results), lambda one, two: apart[one, two] <= allowed[one, two])
        deciding = [place for place, result in enumerate(results) if self.is_trusted(result.worker)]
        group = agreeing(found, quorum=self._quorum, deciding=deciding)
        if group is None:
            return Verdict(None, wanted=Wanted(len(results) + 1, trusted=bool(self._trusted)))
        chosen = min(set(group) & set(deciding), default=min(group))
        lies = {}
        for place in range(len(results)):
            if place not in group:
                pair = (min(place, chosen), max(place, chosen))
                lies[place] = _why(apart[pair], allowed[pair], len(group), results[chosen].worker)
        differences = [
            (results[one].hardware, results[two].hardware, apart[one, two], bool({one, two} & set(deciding)))
            for one, two in apart
            if one in group and two in group
        ]
        return Verdict(chosen, lies, differences=differences)

    def believed(
        self, workers: Sequence[str], differences: Sequence[tuple[str, str, float, bool]] = ()
    ) -> None:
        """See `muster.engine.pool.trust.Trust`."""
        for worker in workers:
            record = self._records.get(worker, Record())
            self._records[worker] = record.after(agreed=len(workers) > 1)
        for one, other, apart, vouched in differences:
            self._tolerances.learn(one, other, apart, vouched=vouched)

    def caught(self, worker: str) -> None:
        """See `muster.engine.pool.trust.Trust`."""
        known = self._records.get(worker, Record())
        self._records[worker] = Record(known.confirmed, known.alone, caught=True)


def _why(apart: float, allowed: float, others: int, decided: str) -> str:
    whom = f"that of {decided}" if others == 1 else f"{others} that agree"
    if math.isinf(apart):
        return f"differs from {whom} in samples, steps or whole numbers, which rounding cannot change"
    return f"differs from {whom} by {apart:.3g} of the change, where {allowed:.3g} is allowed"
