"""The figures of a run, from its folder alone: what `muster report` and `muster show` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from muster.engine.run_folder import RunFolder
from muster.pillars.compute.roofline import Placement
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.report._collectives import BucketCost, bucket_costs
from muster.report._columns import Columns, columns, rows_where, survives
from muster.report._metrics import Metric, metrics
from muster.report._pillars import (
    RankTime,
    compute_only_bound,
    gain_bounds,
    limit_sentence,
    shares,
    step_seconds,
    time_per_rank,
)
from muster.report._restarts import AttemptCost, Elapsed, attempt_costs, elapsed


@dataclass(frozen=True)
class Summary:
    """What a run did, times in seconds; steps done again count in ``attempts`` and ``elapsed`` only.

    Arguments:
        id: the run folder's name.
        name: the job's name.
        app: the application.
        status: as `muster.engine.run_folder.RunFolder.status`.
        message: what the run said last, such as why it failed.
        created_utc: when it was made.
        world_size: ranks, now or last.
        steps_wanted: what the job asks for.
        step: the last step of the surviving lineage, 0 before the first.
        restarts: how often it was started again.
        seed: of the job, None where the job names none.
        loss: of the last step; None before the first.
        samples: processed in the steps that survive, by all ranks.
        step_seconds: duration of those steps.
        samples_per_s: ``samples`` / ``step_seconds``; None before the first step.
        median_step_s: median duration of a step; None before the first.
        ranks: seconds per rank and pillar.
        shares: each pillar's share of rank time, 0 to 1; empty before the first step.
        gain_bounds: by what factor the run would be faster at most without that pillar; see `gain_bounds`.
        limit_sentence: what limits the run and what removing it would gain at most.
        metrics: means over the items, each with its baselines.
        item_metrics: the same of each item.
        buckets: what each bucket's collective cost.
        attempts: what each attempt did and what of it was lost.
        elapsed: where the run's own duration went.
        roofline: where its median step stands under the machine's roofline; None where that was not recorded.
        step_reached: as the run says itself; of a pool, which has no steps, the merges.
    """

    id: str
    name: str
    app: str
    status: str
    message: str
    created_utc: str
    world_size: int
    steps_wanted: int
    step: int
    restarts: int
    seed: int | None
    loss: float | None
    samples: int
    step_seconds: float
    samples_per_s: float | None
    median_step_s: float | None
    ranks: tuple[RankTime, ...]
    shares: dict[str, float]
    gain_bounds: dict[str, float]
    limit_sentence: str
    metrics: tuple[Metric, ...]
    item_metrics: tuple[Metric, ...]
    buckets: tuple[BucketCost, ...]
    attempts: tuple[AttemptCost, ...]
    elapsed: Elapsed
    roofline: Placement | None = None
    step_reached: int = 0


def surviving_columns(run: RunFolder, table: str) -> Columns:
    """The columns of `steps`, `collectives` or `spans`, of the surviving lineage only."""
    data = columns(run.table(table))
    return rows_where(data, survives(data["step"], data["attempt"]))


def summary(run: RunFolder) -> Summary:
    """Computes the figures of a run, in whatever state it is; tables may be empty.

    Arguments:
        run: its folder.
    """
    state = run.state()
    events: Sequence[dict[str, Any]] = run.events()
    every = columns(run.table("steps"))
    steps = rows_where(every, survives(every["step"], every["attempt"]))
    ranks = time_per_rank(steps)
    share = shares(ranks)
    gains = gain_bounds(steps["attempt"], steps["rank"], steps)
    compute_only = compute_only_bound(steps["attempt"], steps["rank"], steps["wall"], steps["compute"])
    seconds = step_seconds(steps["attempt"], steps["rank"], steps["wall"])
    samples = sum(rank.samples for rank in ranks)
    costs = attempt_costs(every, events)
    measured = metrics(columns(run.table("metrics")))
    last_event = max((row["time"] or 0.0 for row in events), default=0.0)
    recorded = steps["step"].size > 0
    return Summary(
        id=run.id,
        name=str(state.get("name", run.id)),
        app=str(state.get("app", "")),
        status=run.status(),
        message=str(state.get("message", "")),
        created_utc=str(state.get("created_utc", "")),
        world_size=int(state.get("world_size") or (costs[-1].world_size if costs else 0)),
        steps_wanted=int(state.get("steps", 0)),
        step=int(steps["step"].max()) if recorded else 0,
        restarts=int(state.get("restarts", 0)),
        seed=_seed(run),
        loss=_last_loss(steps),
        samples=samples,
        step_seconds=seconds,
        samples_per_s=samples / seconds if seconds > 0 else None,
        median_step_s=float(np.nanmedian(steps["wall"])) if recorded else None,
        ranks=ranks,
        shares=share,
        gain_bounds=gains,
        limit_sentence=limit_sentence(share, gains, compute_only),
        metrics=tuple(metric for metric in measured if not metric.item),
        item_metrics=tuple(metric for metric in measured if metric.item),
        buckets=bucket_costs(surviving_columns(run, "collectives")),
        attempts=costs,
        elapsed=elapsed(costs, last_event),
        roofline=_roofline(run, steps),
        step_reached=int(state.get("step", 0)),
    )


def _roofline(run: RunFolder, steps: Columns) -> Placement | None:
    record = RooflineRecord.read(run.path)
    if record is None:
        return None
    names = ("world_size", "step", "samples", "flops", "compute")
    rows = zip(*(steps[name].tolist() for name in names), strict=True)
    return record.placement([dict(zip(names, row, strict=True)) for row in rows])


def _last_loss(steps: Columns) -> float | None:
    known = np.isfinite(steps["loss"])
    if not known.any():
        return None
    return float(steps["loss"][known][np.argmax(steps["step"][known])])


def _seed(run: RunFolder) -> int | None:
    """`what.seed` of the resolved job; the report must not need the job to be valid still."""
    try:
        job: Any = YAML(typ="safe").load((run.path / "job.yaml").read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError):
        return None
    what = job.get("what") if isinstance(job, dict) else None
    seed = what.get("seed") if isinstance(what, dict) else None
    return seed if isinstance(seed, int) else None
