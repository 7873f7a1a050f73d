"""``muster tune``: measures a job, tries what would mend it, and writes the job that won."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muster.cli.options import AsJson, JobPath, Quiet, Settings, print_json

if TYPE_CHECKING:
    from muster.tuning.tune import Tuning

EXAMPLES = "Example: muster tune my.yaml --budget 15m && muster run my.tuned.yaml"


def command(
    job: JobPath,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="How long it may take, such as 90s or 10m.")
    ] = "10m",
    steps: Annotated[int, typer.Option("--steps", help="Steps that count in each trial.")] = 20,
    pairs: Annotated[
        int, typer.Option("--pairs", help="How often a proposal and the best job so far run in turn.")
    ] = 5,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The tuned job file; by default JOB.tuned.yaml."),
    ] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Find out what limits a job, try what would mend it, and write a job file with the changes that won."""
    from rich.console import Console

    from muster.tuning._pages import write_tuning_page
    from muster.tuning.tune import tune

    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, quiet=quiet)
    found = tune(
        job,
        settings or (),
        budget_s=_seconds(budget),
        steps=steps,
        pairs=pairs,
        output=output,
        on_stage=console.print,
    )
    write_tuning_page(found)
    if json:
        print_json(found.as_json())
    else:
        _print(found)


def _seconds(text: str) -> float:
    from muster.errors import RefusedInput
    from muster.spec import Duration

    try:
        return Duration.parse(text).seconds
    except ValueError as error:
        raise RefusedInput(f"--budget: found {text!r}; expected {error}") from None


def _print(found: Tuning) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from muster.tuning.tune import change, times

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("change", "outcome", "times as fast"):
        table.add_column(title)
    colours = {"kept": "green", "lost": "", "failed": "red", "not tried": "yellow"}
    for one in found.tried:
        table.add_row(
            Text(change(one)), Text(one.outcome, style=colours[one.outcome]), Text(times(one.ratio))
        )
    if found.tried:
        console.print(table)
        console.print()
    console.print(f"before: {found.limit_before.sentence}", markup=False, soft_wrap=True)
    if found.gain is None or found.tuned is None:
        console.print("no change is surely faster; nothing is written", style="bold")
    else:
        console.print(f"after: {found.limit_after.sentence}", markup=False, soft_wrap=True)
        console.print(
            f"{times(found.gain)} as fast: {found.before.samples_per_s:.4g} samples/s before, "
            f"{found.after.samples_per_s:.4g} after",
            style="bold", soft_wrap=True,
        )  # fmt: skip
        if any(one.proposal.lever.changes_results for one in found.kept):
            console.print(
                "a lower precision changes what is trained: compare the quality, too", style="yellow"
            )
        console.print(f"tuned job: {found.tuned}", markup=False, soft_wrap=True)
    console.print(f"page: {found.page}", markup=False, soft_wrap=True)
