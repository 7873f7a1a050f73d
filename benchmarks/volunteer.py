"""Volunteer training where workers vanish: what it learns, what is lost, how fast it goes, what it costs.

    python benchmarks/volunteer.py [--parts alpha chaos coordinator money] [--data DIR] [--seeds 5] [--quick]

`DIR` holds `cifar10/` and `spot/`; without it all trains on the digits that scikit-learn carries, and `money` is left out.

alpha        VC-ASGD (W <- alpha W + (1 - alpha) W_c, one worker's W_c at a time) with several alphas and other rules of
             arrivals, at equal samples: 200 arrivals from 8 workers. The workers share one process and take turns in a seeded
             order (`volunteer_turns.py`), with real leases and the staleness that follows from them, so that the figures do
             not depend on the machine.
             Expected: of what a lease trains, alpha lets 1 - alpha in, so that at equal samples a large alpha has learned
             less: 0.7 above 0.95 above 0.999. A rule that takes more of each update in is better still, up to where
             stale updates disturb it; at twice the learning rate that limit is near, which the second table shows.
chaos        `muster run` with 8 workers, each killed (SIGKILL) every 30 s on average, two more joining later, one 5 x
             slower, beside the same job undisturbed. Workers are paced to a fixed rate, since they share the cores: the
             ideal time is that in which the workers that were alive and ready would have done all samples at that rate.
             Start-up is left out of it and printed. Lost and doubled samples are counted from the ledger: accepted
             stretches of samples must cover all passes exactly. Then one worker is 100 x slower.
coordinator  SIGKILL of the coordinator at random moments, merging every arrival and merging rounds: the model must be what
             `muster pool replay` computes from the ledger, and in rounds that of a run that nothing disturbed. Then
             workers are killed for good: how soon the next merge comes, and what pace is left.
money        a run under each spot trace, time compressed: what its machines cost, beside machines on demand for as long as
             the accepted work takes undisturbed ones. Workers are there when instances are; the highest numbers go first.
             Compressed are the comings and goings, not a worker's start, which therefore wastes more than in reality.

`--quick` is a smoke run whose figures mean nothing. At full length, on two quiet cores, the parts should take about 40
min (most of it CIFAR-10), 60 min (half of it CIFAR-10), 20 min and 40 min.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from printed_results import Verdicts, print_heading

PARTS = ("alpha", "chaos", "coordinator", "money")


def main() -> int:
    """Runs the parts, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/ and spot/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cifar-seeds", type=int, default=2, help="of alpha on CIFAR-10, which takes long")
    parser.add_argument("--kills", type=int, default=50, help="of the coordinator, in each way of merging")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of those kills")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    asked = parser.parse_args()
    print_heading("Volunteer training", parts=" ".join(asked.parts), seeds=asked.seeds, quick=asked.quick)
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(prefix="muster-volunteer-") as name:
        for part in asked.parts:
            print(f"\n## {part}", flush=True)
            if part == "alpha":
                from volunteer_rules import rules

                rules(asked, verdicts)
            elif part == "money":
                from volunteer_money import money

                money(asked, verdicts, Path(name) / part)
            else:
                from volunteer_disturbed import PARTS as disturbed

                disturbed[part](asked, verdicts, Path(name) / part)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
