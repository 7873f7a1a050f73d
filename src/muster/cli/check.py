"""``muster check``: validates a job without starting anything."""

from __future__ import annotations

import sys
from typing import Any

from muster.cli.options import AsJson, JobPath, Settings, print_json

EXAMPLES = "Example: muster check my.yaml --set where.device=cuda"


def command(job: JobPath, settings: Settings = None, json: AsJson = False) -> None:
    """Validate a job file, its data and this machine; start nothing."""
    from muster.errors import RefusedInput
    from muster.spec import load_job, located
    from muster.training.preflight import preflight

    try:
        checked = load_job(job, settings or ())
        with located(job, settings or ()):
            warnings = preflight(checked)
    except RefusedInput as error:
        if json:
            print_json(_refusal(error))
        raise
    if json:
        print_json({"ok": True, "warnings": warnings, "job": checked.model_dump(mode="json")})
        return
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"ok: {checked.name} ({checked.what.app}), {_extent(checked.how)}, engine {checked.where.engine}")


def _extent(how: Any) -> str:
    if how.shape == "gang":
        return f"{how.steps} steps on {_counted(how.ranks, 'rank')}"
    extent = _counted(how.epochs, "epoch") if how.epochs else _counted(how.rounds, "round")
    parties = f" of {_counted(how.parties.count, 'part', 'ies', 'y')}" if how.parties else ""
    return f"{extent}{parties} by {how.rule_name} on {_counted(how.workers, 'worker')}"


def _counted(number: int, noun: str, many: str = "s", one: str = "") -> str:
    return f"{number} {noun}{one if number == 1 else many}"


def _refusal(error: Exception) -> dict[str, Any]:
    detail = {name: getattr(error, name, None) for name in ("found", "mend", "key", "source", "line")}
    return {"ok": False, "error": {"kind": type(error).__name__, "message": str(error), **detail}}
