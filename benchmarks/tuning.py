"""Whether `muster tune` finds what is wrong with jobs that were spoiled on purpose, and mends it.

Each case is a job that is set well and one key of it that is set badly. Tuning is given the spoiled job alone. Bars:

- the pillar that limits the spoiled job is the one that was spoiled, in every case;
- the tuned job runs at 80 % or more of the speed that the job had before it was spoiled (median of pairs in turn).

Physics expects:

- tiny buckets: a network of 80 small layers exchanges each of 164 tensors by itself, a round trip each, instead of a few
  buckets of 1 and 25 MiB;
- one loader worker delivers one sample per latency of its store where four deliver four (the samples of `tests.network`
  sleep in the loader, as a read from a distant store does);
- threads beyond the cores contend for them;
- a processor that multiplies bf16 in hardware is slower in fp32, if its library uses it: where it does not, the good job
  is as good as the spoiled one, and the bar holds by itself;
- a slow store (`slow_store.py`, a process with a token bucket) delivers a third of what the model uses, so DataLoader
  holds training to a third; who looks ahead reads each photograph once, and after the first epoch never waits. Trials of
  it count from the second epoch on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APPLICATIONS = Path(__file__).resolve().parents[1] / "tests" / "applications"
sys.path.insert(0, str(APPLICATIONS))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(APPLICATIONS), os.environ.get("PYTHONPATH", "")])
)

import slow_store  # noqa: E402
from printed_results import Verdicts, print_heading, print_table  # noqa: E402
from statistics_of_pairs import alternating_orders, median_interval  # noqa: E402
from streaming_data import Photographs, write_photographs  # noqa: E402

from muster import run  # noqa: E402
from muster.apps.vision.samples import sample_paths  # noqa: E402
from muster.spec import Job, load_job  # noqa: E402
from muster.spec.machine import cores  # noqa: E402
from muster.spec.writing import flow  # noqa: E402
from muster.tuning._measured import counted, step_times  # noqa: E402
from muster.tuning._trial import trial_job, warm_up_steps, with_changes  # noqa: E402
from muster.tuning._verdict import has_fast_bf16  # noqa: E402
from muster.tuning.tune import tune  # noqa: E402

REACHED = 0.80
SUPERRES = (
    "app: vision.superres, model: {arch: edsr-small, scale: 2}, data: sample-photos, patch: 64, seed: 7"
)
NETWORK = "app: tests.network, width: 256, delay_ms: 5"
LAYERS = "app: tests.network, width: 64, depth: 80"
BATCH = 16
PHOTOGRAPHS, SIDE = 320, 192
STORE_SHARE = 1 / 3


@dataclass(frozen=True)
class Case:
    """A job and what is wrong with it.

    Arguments:
        name: of the case.
        what: the job's application.
        good: values of keys that are right.
        spoiled: values that are wrong.
        pillar: which they spoil.
        epoch: samples that a trial of a good job goes through before it counts.
    """

    name: str
    what: str
    good: Mapping[str, Any]
    spoiled: Mapping[str, Any]
    pillar: str
    epoch: int = 0


@contextmanager
def slow_photographs(folder: Path) -> Iterator[tuple[str, Photographs, slow_store.Started]]:
    """The ``what`` of a job whose photographs lie in a store of their own, which is not slow yet."""
    photographs = write_photographs(
        folder / "photographs", list(sample_paths().values()), PHOTOGRAPHS, SIDE, shards=1
    )
    with slow_store.started(photographs.root / "jpeg") as store:
        yield f"app: tests.pictures, url: '{store.url}', features: 64", photographs, store


def slowed(
    photographs: Photographs, store: slow_store.Started, folder: Path, case: Case, steps: int
) -> float:
    """Makes the store deliver `STORE_SHARE` of what the good job uses; returns that rate in bytes per second."""
    good = load_job(written(folder, case, case.good))
    rate = STORE_SHARE * speed(good, steps, case.epoch) * photographs.bytes / photographs.samples
    store.change(rate=rate)
    return rate


def cases(photographs: str) -> list[Case]:
    """What is spoiled.

    Arguments:
        photographs: the ``what`` of the last case.
    """
    fitting = max(1, cores() // 2)
    precision = "bf16" if has_fast_bf16() else "fp32"
    threads = "where.threads_per_rank"
    buckets = "how.communication"
    return [
        Case("tiny buckets", LAYERS, {buckets: {}}, {buckets: {"buckets": 0.0001}}, "comm"),
        Case("one loader worker", NETWORK, {"how.loader_workers": 4}, {"how.loader_workers": 1}, "io"),
        Case("oversubscribed threads", SUPERRES, {threads: fitting}, {threads: 8 * cores()}, "compute"),
        Case(
            "fp32 on a bf16 machine",
            SUPERRES,
            {"how.precision": precision},
            {"how.precision": "fp32"},
            "compute",
        ),
        Case(
            "a slow store",
            photographs,
            {"how.input": {"loader": "auto"}, "how.loader_workers": 1},
            {"how.input": {"loader": "plain"}},
            "io",
            epoch=PHOTOGRAPHS,
        ),
    ]


def written(folder: Path, case: Case, values: Mapping[str, Any]) -> Path:
    """The job file of a case."""
    parts: dict[str, dict[str, Any]] = {"how": {}, "where": {}}
    for key, value in values.items():
        part, name = key.split(".")
        parts[part][name] = value
    how = {"shape": "gang", "ranks": 2, "steps": 100_000, "batch": BATCH} | parts["how"]
    where = {"runs": str(folder / "runs")} | parts["where"]
    path = folder / "job.yaml"
    path.write_text(
        f"name: tuned\nwhat: {{{case.what}}}\nhow: {flow(how)}\nwhere: {flow(where)}\n", encoding="utf-8"
    )
    return path


def speed(job: Job, steps: int, epoch: int) -> float:
    """Samples per second of one trial, after so many samples."""
    warm_up = max(warm_up_steps(job.how.loader_workers), -(-epoch // BATCH) + 1 if epoch else 0)
    trial = trial_job(job, name="compare", steps=steps, warm_up=warm_up)
    return step_times(counted(run(trial, progress=False).folder, warm_up)[0]).samples_per_s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=900.0, help="seconds for each tuning")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", nargs="+", help="words of the names of those to run")
    parser.add_argument(
        "--engine", default="local", help="local forks the ranks; embedded has Ray started for every trial"
    )
    parser.add_argument("--quick", action="store_true", help="one case, few steps: figures mean nothing")
    arguments = parser.parse_args()
    budget, steps, pairs, engine = arguments.budget, arguments.steps, arguments.pairs, arguments.engine
    if arguments.quick:
        budget, steps, pairs, engine = 1.0, 3, 1, "local"
    print_heading("muster tune on spoiled jobs", budget_s=budget, steps=steps, pairs=pairs)
    verdicts, rows = Verdicts(), []
    with tempfile.TemporaryDirectory() as name, slow_photographs(Path(name)) as (what, photographs, store):
        chosen = cases(what)
        if arguments.cases:
            chosen = [case for case in chosen if any(word in case.name for word in arguments.cases)]
        if arguments.quick:
            by_name = {case.name: case for case in chosen}
            threads = by_name["oversubscribed threads"]
            chosen = [Case(threads.name, NETWORK, threads.good, threads.spoiled, "compute")]
        for number, case in enumerate(chosen):
            folder = Path(name) / str(number)
            folder.mkdir()
            settings = {"where.engine": engine} | case.good
            if case.what == what:
                rate = slowed(photographs, store, folder, case, steps)
                print(f"{case.name}: the store delivers {rate / 1e6:.3g} MB/s")
            spoiled = written(folder, case, settings | case.spoiled)
            found = tune(str(spoiled), budget_s=budget, steps=steps, pairs=max(pairs, 3), on_stage=print)
            tuned = load_job(found.tuned or spoiled)
            good = with_changes(load_job(spoiled).model_dump(mode="json"), case.good)
            ratios = []
            for tuned_first in alternating_orders(pairs, seed=1):
                first, second = (tuned, good) if tuned_first else (good, tuned)
                rates = [speed(job, steps, case.epoch) for job in (first, second)]
                ratios.append(rates[0] / rates[1] if tuned_first else rates[1] / rates[0])
            reached = median_interval(ratios)
            kept = ", ".join(f"{one.proposal.lever.key}: {flow(one.proposal.value)}" for one in found.kept)
            gain = (
                "–"
                if found.gain is None
                else f"{found.gain.median:.2f} [{found.gain.low:.2f}, {found.gain.high:.2f}]"
            )
            limit = found.limit_before.pillar
            rows.append([case.name, limit, kept or "nothing", gain, reached.text(), f"{found.seconds:.0f}"])
            verdicts.judge(f"{case.name}: limited by {case.pillar}", limit == case.pillar, limit)
            bar = f"{case.name}: tuned ≥ {REACHED:.2f} × the job before it was spoiled"
            verdicts.judge(bar, reached.median >= REACHED, reached.text())
    columns = [
        "spoiled",
        "limited by",
        "kept",
        "tuned / spoiled",
        "tuned / before it was spoiled",
        "tuning, s",
    ]
    print_table("Tuning of spoiled jobs", columns, rows)
    return 0 if arguments.quick else verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
