"""``muster report``: writes a run's report anew."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from muster.cli.options import DEFAULT_RUNS, RunName, RunsFolder, find_run

EXAMPLES = "Example: muster report last --open"


def command(
    run: RunName,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Write a run's report, also of a run still going or crashed, and print its path."""
    from muster.report import write_report

    path = write_report(find_run(run, runs))
    print(path)
    if open_:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            print("no browser could be started here; open the file where there is one", file=sys.stderr)
            raise typer.Exit(1)
