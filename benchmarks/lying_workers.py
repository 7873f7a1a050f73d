"""A worker that lies in one of a hundred leases: how many of its lies stay, and what it costs to find them.

Simulates leases, not training: every policy decides with its real code whom to check and, from arrays that are compared,
whom to believe. One of the workers lies; every worker would take `--leases` leases, so the liar's share of them is one by
the number of workers. Until it is caught the liar lies in one of a hundred of its leases, drawn at random. Extra work is
what was computed beyond one result of each unit: checks, disputes, and units done again because their worker was caught.

Policies: Muster's default, against a liar that cannot tell which leases check others and one that can, and then lies in
none of those; the same share checked by a trusted machine alone; and BOINC's adaptive replication as it documents it
(https://boinc.berkeley.edu/trac/wiki/AdaptiveReplication): a host with fewer than 10 consecutive valid results is not
trusted, another with probability 1 - 1/CV is; an invalid result sets CV to 0; nothing is retracted.

    python benchmarks/lying_workers.py [--quick] [--seeds 200] [--workers 10] [--leases 3000]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field, replace

import numpy as np

from muster.engine.pool.trust import Result, Wanted
from muster.training.trust import survival
from muster.training.trust.audits import Audits
from muster.trust import Replication

LYING = 0.01
LIAR, TRUSTED = "liar", "trusted machine"
TRUTH, LIE = {"weights\x1f\x1fw": np.ones(2)}, {"weights\x1f\x1fw": np.array([1.0, 1.5])}
BASE = {"weights\x1f\x1fw": np.zeros(2)}


class Boinc(Replication):
    """Whom BOINC's rule has checked; the comparison is ours."""

    def __init__(self, seed: int) -> None:
        super().__init__(secret=bytes([1]) * 16)
        self._valid: dict[str, int] = {}
        self._random = np.random.default_rng([seed, 7])

    def wanted(self, unit: int, worker: str) -> Wanted:
        """Two results from a host that is not trusted this time."""
        valid = self._valid.get(worker, 0)
        trusted = valid >= 10 and self._random.random() < 1 - 1 / valid
        return Wanted(1 if trusted else 2)

    def believed(self, workers: list[str], differences: object = ()) -> None:  # type: ignore[override]
        """A replicated job that validates counts for all hosts that agree."""
        if len(workers) > 1:
            for worker in workers:
                self._valid[worker] = self._valid.get(worker, 0) + 1

    def caught(self, worker: str) -> None:
        """An invalid result: the host begins anew, and works on."""
        self._valid[worker] = 0


@dataclass
class Unit:
    """One that waits for more results."""

    number: int
    wanted: Wanted
    results: list[Result] = field(default_factory=list)


@dataclass(frozen=True)
class Tally:
    """What a run has come to: lies told and surviving, results computed, units."""

    told: int
    survived: int
    computed: int
    units: int
    caught: bool

    @property
    def extra(self) -> float:
        """Work beyond one result of each unit."""
        return self.computed / self.units - 1


def run(
    trust: Replication, *, workers: int, leases: int, seed: int, role_known: bool, retracts: bool
) -> Tally:
    """A pool of `workers * leases` units; the liar lies in a hundredth of what it may lie in."""
    random = np.random.default_rng(seed)
    names = [LIAR, *(f"worker {number}" for number in range(1, workers))]
    units, following = workers * leases, 0
    again: list[int] = []
    open_units: list[Unit] = []
    alone: set[int] = set()  # of the liar
    lies: set[int] = set()  # units believed at a lie
    told = computed = done = 0
    caught = False
    while done < units:
        name = names[int(random.integers(len(names)))]
        unit = next((each for each in open_units if _may(each, name)), None)
        second = unit is not None
        if unit is None:
            if again:
                number = again.pop()
            elif following < units:
                number, following = following, following + 1
            else:
                number = -1
            if number < 0:
                if any(each.wanted.trusted for each in open_units):
                    name = TRUSTED
                    unit = next(each for each in open_units if each.wanted.trusted)
                else:
                    continue
            else:
                # A unit that is done again is another one, to the draw as well.
                unit = Unit(number, trust.wanted(number + units * computed, name))
                open_units.append(unit)
        computed += 1
        lying = name == LIAR and not (role_known and second) and bool(random.random() < LYING)
        told += lying
        unit.results.append(Result(name, "", LIE if lying else TRUTH))
        if len(unit.results) < unit.wanted.results and unit.wanted.trusted:
            computed += 1
            unit.results.append(Result(TRUSTED, "", TRUTH))
        if len(unit.results) < unit.wanted.results:
            continue
        if unit.wanted.results == 1:
            believed, liars = 0, []
            trust.believed([name])
            if name == LIAR:
                alone.add(unit.number)
        else:
            verdict = trust.judged(BASE, unit.results)
            if verdict.believed is None:
                unit.wanted = verdict.wanted
                continue
            believed = verdict.believed
            liars = [unit.results[place].worker for place in verdict.lies]
            trust.believed([each.worker for each in unit.results if each.worker not in liars])
        open_units.remove(unit)
        done += 1
        if unit.results[believed].arrays is LIE:
            lies.add(unit.number)
        for liar in liars:
            trust.caught(liar)
            caught = True
            if retracts:
                names.remove(liar)
                again += sorted(alone)
                done -= len(alone)
                lies -= alone
                alone.clear()
                for each in open_units:
                    if any(result.worker == liar for result in each.results):
                        each.results = [result for result in each.results if result.worker != liar]
                        each.wanted = replace(each.wanted, results=max(2, each.wanted.results - 1))
    return Tally(told, len(lies), computed, units, caught)


def _may(unit: Unit, name: str) -> bool:
    return not unit.wanted.trusted and all(result.worker != name for result in unit.results)


def main() -> None:
    """Prints a table, then the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--leases", type=int, default=3000, help="that each worker would take")
    parser.add_argument("--quick", action="store_true", help="a few seeds and workers only")
    given = parser.parse_args()
    seeds, workers, leases = given.seeds, given.workers, given.leases
    if given.quick:
        seeds, workers = 6, 4
    share = 1 / workers
    allowed = 0.10 + 0.25 * share
    p = Audits().share
    policies = {
        "muster": (lambda seed: Replication(secret=_key(seed)), False, True),
        "muster, the liar knows which leases check others": (
            lambda seed: Replication(secret=_key(seed)),
            True,
            True,
        ),
        "muster, checks on a trusted machine": (
            lambda seed: Replication(secret=_key(seed), trusted=[TRUSTED], audit=True),
            False,
            True,
        ),
        "boinc's adaptive replication": (Boinc, False, False),
    }
    print(
        f"{workers} workers of {leases} leases each; one, with {share:.1%} of the leases, lies in {LYING:.0%} of its own; "
        f"{seeds} seeds"
    )
    print(f"to be reached: at most 15 % of the lies survive, at extra work of at most {allowed:.2%}")
    rows = []
    for name, (make, role_known, retracts) in policies.items():
        runs = [
            run(
                make(seed),
                workers=workers,
                leases=leases,
                seed=seed,
                role_known=role_known,
                retracts=retracts,
            )
            for seed in range(seeds)
        ]
        told, survived = sum(each.told for each in runs), sum(each.survived for each in runs)
        row = {
            "policy": name,
            "told": told,
            "survived": survived,
            "survival": survived / told,
            "standard_error": _error(runs),
            "extra": float(np.mean([each.extra for each in runs])),
            "caught": sum(each.caught for each in runs) / seeds,
        }
        rows.append(row)
        print(
            f"{name:50s} {row['survival']:7.2%} +- {row['standard_error']:.2%} of {told} lies survive, "
            f"extra {row['extra']:.2%}, caught in {row['caught']:.0%} of the runs"
        )
    for name, seen in (("each other", survival.seen_by_peers(p)), ("a trusted machine", p)):
        print(
            f"closed form, share {p}, checked by {name}: {survival.survival(leases, LYING, seen):.2%} survive, "
            f"extra {p + share * survival.leases_redone(leases, LYING, seen) / leases:.2%}"
        )
    print(
        json.dumps({"workers": workers, "leases": leases, "seeds": seeds, "allowed": allowed, "rows": rows})
    )


def _key(seed: int) -> bytes:
    return seed.to_bytes(8, "big") * 2


def _error(runs: list[Tally]) -> float:
    """Of the ratio of sums, over seeds (delta method)."""
    told = np.array([each.told for each in runs], dtype=float)
    survived = np.array([each.survived for each in runs], dtype=float)
    if len(runs) < 2:
        return math.nan
    rest = survived - survived.sum() / told.sum() * told
    return float(np.std(rest, ddof=1) / math.sqrt(len(runs)) / told.mean())


if __name__ == "__main__":
    main()
