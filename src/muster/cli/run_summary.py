"""What ``muster show`` says of a run, from its run folder alone; docs/cli.md documents the keys."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from muster.engine.records import surviving
from muster.engine.run_folder import RunFolder
from muster.pillars.compute.roofline_record import RooflineRecord

PILLARS: Final = ("io", "compute", "comm", "idle", "wall")


def summarize(run: RunFolder) -> dict[str, Any]:
    """The keys of ``muster show --json``.

    Arguments:
        run: a run in any status.
    """
    state = run.state()
    wanted = ["attempt", "rank", "step", "world_size", "samples", "flops", *PILLARS]
    steps = run.table("steps").select(wanted).to_pylist()
    survived = surviving(steps)
    metrics = [row for row in run.table("metrics").to_pylist() if not row["item"]]
    return {
        "id": run.id,
        "name": state["name"],
        "app": state["app"],
        "status": run.status(),
        "message": state["message"],
        "created_utc": state["created_utc"],
        "steps": state["steps"],
        "step": max((row["step"] for row in steps), default=state["step"]),
        "restarts": state["restarts"],
        "attempt": state["attempt"],
        "world_size": state["world_size"],
        "metrics": _latest(metrics),
        "initial_metrics": _latest(row for row in metrics if row["step"] == 0),
        "pillars": _pillars(survived),
        "roofline": _roofline(run, survived),
        "pool": _pool(run),
        "checkpoints": _checkpoints(run.checkpoints),
        "paths": {
            "run": str(run.path),
            "job": _existing(run.path / "job.yaml"),
            "report": _existing(run.report_path),
            "model": _existing(run.model_path),
            "trace": _existing(run.path / "trace.json"),
            "logs": _existing(run.path / "logs"),
        },
    }


def step_reached(run: RunFolder) -> int:
    """The last step of a run; of one that has not closed, from the records that its ranks have written so
    far."""
    if run.state()["status"] != "running":
        return run.state()["step"]
    return max(run.table("steps").column("step").to_pylist(), default=run.state()["step"])


def _latest(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The last mean over the items of each metric; a step measured again counts as the last attempt measured
    it."""
    ordered = sorted(rows, key=lambda row: (row["step"], row["attempt"]))
    return {row["name"]: row["value"] for row in ordered}


def _pillars(steps: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    sums: dict[int, dict[str, float]] = defaultdict(lambda: dict.fromkeys(PILLARS, 0.0))
    for row in steps:
        for pillar in PILLARS:
            sums[row["rank"]][pillar] += row[pillar] or 0.0
    return {str(rank): sums[rank] for rank in sorted(sums)}


def _roofline(run: RunFolder, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the median step stands; None where the run has not recorded it."""
    record = RooflineRecord.read(run.path)
    placement = record.placement(steps) if record is not None else None
    if record is None or placement is None:
        return None
    peaks = record.mean_peaks
    return placement.as_dict() | {
        "precision": peaks.precision,
        "peak_flops_per_s": peaks.flops_per_s,
        "peak_bytes_per_s": peaks.bytes_per_s,
        "operator_s": peaks.operator_s,
        "peaks_measured_utc": peaks.measured_utc,
    }


def _pool(run: RunFolder) -> dict[str, Any] | None:
    """What a pool has come to; None for a gang."""
    from muster.training.pool.account import account, is_pool

    return account(run) if is_pool(run) else None


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """The committed checkpoints, oldest first; one without a readable manifest is not committed."""
    found = []
    for manifest in sorted(folder.glob("step-*/manifest.json")):
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            found.append(
                {
                    "step": content["step"],
                    "world_size": content["world_size"],
                    "quality": content["quality"],
                    "path": str(manifest.parent),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None
