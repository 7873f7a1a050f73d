"""``muster flow``: what the record of a flow says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muster.cli.options import AsJson, print_json

group = typer.Typer(help="Look at a flow: what ran, and why.", no_args_is_help=True)


@group.command(epilog="Example: muster flow why runs/ensemble 12")
def why(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that the flow was given (run=...).")],
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="A task's number, its label or its function's full name.")
    ],
    json: AsJson = False,
) -> None:
    """Say why a task ran, or why it did not have to."""
    from muster.engine.flow.journal import Journal
    from muster.errors import RefusedInput

    if not (run / "journal.sqlite").is_file():
        raise RefusedInput(f"{run} is no folder of a flow: it has no journal.sqlite; give the one of run=...")
    with Journal(run, read_only=True) as journal:
        reason = journal.why(task)
    if json:
        print_json({"task": task, "why": reason})
    else:
        typer.echo(reason)
