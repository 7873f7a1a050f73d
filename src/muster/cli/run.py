"""``muster run``: runs a job to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.cli.options import JobPath, Quiet, Settings

if TYPE_CHECKING:
    from muster._run import Run

EXAMPLES = "Example: muster run my.yaml --set how.ranks=4 --set how.steps=2000"


def command(job: JobPath, settings: Settings = None, quiet: Quiet = False) -> None:
    """Run a job to its end and write its report."""
    from muster._run import run

    print_outcome(run(job, settings or (), progress=not quiet))


def print_outcome(run: Run) -> None:
    """What a person wants to know of a run that is done; the last line is the report's path."""
    from rich.console import Console

    from muster.cli.money import sentence
    from muster.cli.run_summary import summarize

    summary = summarize(run.folder)
    console = Console(soft_wrap=True, highlight=False)
    unit = "merges" if summary["pool"] else "steps"
    console.print(
        f"[green]{summary['status']}[/]: {summary['id']}, {summary['step']} of {summary['steps']} {unit}"
    )
    if summary["pool"]:
        pool = summary["pool"]
        console.print(
            f"{pool['leases'].get('accepted', 0)} updates of {pool['samples']:,} samples accepted, "
            f"{pool['refused']} refused; {pool['lost']} workers lost, {pool['noticed']} told to go"
        )
        if pool["cost"] is not None:
            console.print(f"cost: {sentence(pool['cost'])}", markup=False)
    for name, value in summary["metrics"].items():
        first = summary["initial_metrics"].get(name)
        before = f" (untrained: {first:.6g})" if first is not None and first != value else ""
        console.print(f"{name}: {value:.6g}{before}")
    for title in ("model", "report"):
        if summary["paths"][title] is not None:
            console.print(f"{title}: {summary['paths'][title]}", markup=False)
