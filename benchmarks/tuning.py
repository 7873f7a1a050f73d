"""Whether `muster tune` finds what is wrong with jobs that were spoiled on purpose, and mends it.

Each case is a job that is set well and one key of it that is set badly. Tuning is given the spoiled job alone. Bars:

- the pillar that limits the spoiled job is the one that was spoiled, in every case;
- the tuned job runs at 80 % or more of the speed that the job had before it was spoiled (median of pairs in turn).

Physics expects: threads beyond the cores contend for them; one loader worker delivers one sample per latency of its
store where four deliver four (the samples of `tests.network` sleep in the loader, as a read from a distant store does);
a processor that multiplies bf16 in hardware is slower in fp32, if its library uses it: where it does not, the good job is
as good as the spoiled one, and the bar holds by itself. Two more cases need keys that jobs do not have yet, a store
(`what`) and the size of buckets (`how`): they count as missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APPLICATIONS = Path(__file__).resolve().parents[1] / "tests" / "applications"
sys.path.insert(0, str(APPLICATIONS))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(APPLICATIONS), os.environ.get("PYTHONPATH", "")])
)

from printed_results import Verdicts, print_heading, print_table  # noqa: E402
from statistics_of_pairs import alternating_orders, median_interval  # noqa: E402

from muster import run  # noqa: E402
from muster.spec import Job, load_job  # noqa: E402
from muster.spec.machine import cores  # noqa: E402
from muster.spec.writing import flow  # noqa: E402
from muster.tuning._measured import counted, step_times  # noqa: E402
from muster.tuning._trial import trial_job, with_changes  # noqa: E402
from muster.tuning._verdict import has_fast_bf16  # noqa: E402
from muster.tuning.tune import tune  # noqa: E402

REACHED = 0.80
SUPERRES = (
    "app: vision.superres, model: {arch: edsr-small, scale: 2}, data: sample-photos, patch: 64, seed: 7"
)
NETWORK = "app: tests.network, width: 256, delay_ms: 5"


@dataclass(frozen=True)
class Case:
    """A job and what is wrong with it.

    Arguments:
        name: of the case.
        what: the job's application.
        good: values of keys that are right.
        spoiled: values that are wrong.
        pillar: which they spoil.
    """

    name: str
    what: str
    good: Mapping[str, Any]
    spoiled: Mapping[str, Any]
    pillar: str


def cases() -> list[Case]:
    """What can be spoiled with the keys that jobs have."""
    fitting = max(1, cores() // 2)
    precision = "bf16" if has_fast_bf16() else "fp32"
    threads = "where.threads_per_rank"
    return [
        Case("oversubscribed threads", SUPERRES, {threads: fitting}, {threads: 8 * cores()}, "compute"),
        Case(
            "fp32 on a bf16 machine",
            SUPERRES,
            {"how.precision": precision},
            {"how.precision": "fp32"},
            "compute",
        ),
        Case("one loader worker", NETWORK, {"how.loader_workers": 4}, {"how.loader_workers": 1}, "io"),
    ]


def written(folder: Path, case: Case, values: Mapping[str, Any]) -> Path:
    """The job file of a case."""
    parts: dict[str, dict[str, Any]] = {"how": {}, "where": {}}
    for key, value in values.items():
        part, name = key.split(".")
        parts[part][name] = value
    how = {"shape": "gang", "ranks": 2, "steps": 100_000, "batch": 16} | parts["how"]
    where = {"runs": str(folder / "runs")} | parts["where"]
    path = folder / "job.yaml"
    path.write_text(
        f"name: tuned\nwhat: {{{case.what}}}\nhow: {flow(how)}\nwhere: {flow(where)}\n", encoding="utf-8"
    )
    return path


def speed(job: Job, steps: int) -> float:
    """Samples per second of one trial."""
    return step_times(
        counted(run(trial_job(job, name="compare", steps=steps), progress=False).folder)[0]
    ).samples_per_s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=900.0, help="seconds for each tuning")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one case, few steps: figures mean nothing")
    arguments = parser.parse_args()
    budget, steps, pairs, chosen = arguments.budget, arguments.steps, arguments.pairs, cases()
    engine = "embedded"
    if arguments.quick:
        case = Case("oversubscribed threads", NETWORK, chosen[0].good, chosen[0].spoiled, "compute")
        budget, steps, pairs, chosen, engine = 1.0, 3, 1, [case], "local"
    print_heading("muster tune on spoiled jobs", budget_s=budget, steps=steps, pairs=pairs)
    verdicts, rows = Verdicts(), []
    for case in chosen:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            spoiled = written(folder, case, {"where.engine": engine} | case.good | case.spoiled)
            found = tune(str(spoiled), budget_s=budget, steps=steps, pairs=max(pairs, 3), on_stage=print)
            tuned = load_job(found.tuned or spoiled)
            good = with_changes(load_job(spoiled).model_dump(mode="json"), case.good)
            ratios = []
            for tuned_first in alternating_orders(pairs, seed=1):
                first, second = (tuned, good) if tuned_first else (good, tuned)
                rates = speed(first, steps), speed(second, steps)
                ratios.append(rates[0] / rates[1] if tuned_first else rates[1] / rates[0])
            reached = median_interval(ratios)
            kept = ", ".join(f"{one.proposal.lever.key}: {flow(one.proposal.value)}" for one in found.kept)
            gain = (
                "–"
                if found.gain is None
                else f"{found.gain.median:.2f} [{found.gain.low:.2f}, {found.gain.high:.2f}]"
            )
            rows.append([case.name, found.limit_before.pillar, kept or "nothing", gain, reached.text()])
            limit = found.limit_before.pillar
            verdicts.judge(f"{case.name}: limited by {case.pillar}", limit == case.pillar, limit)
            bar = f"{case.name}: tuned ≥ {REACHED:.2f} × the job before it was spoiled"
            verdicts.judge(bar, reached.median >= REACHED, reached.text())
    columns = ["spoiled", "limited by", "kept", "tuned / spoiled", "tuned / before it was spoiled"]
    print_table("Tuning of spoiled jobs", columns, rows)
    if not arguments.quick:
        for missing, key in (("tiny buckets", "how"), ("a slow store", "what")):
            verdicts.judge(f"{missing}: found and mended", False, f"no key under `{key}` says it yet")
        return verdicts.exit_code()
    return 0


if __name__ == "__main__":
    sys.exit(main())
