"""``muster doctor``: whether this machine can run Muster well, and what to mend."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from muster.cli.options import DEFAULT_RUNS, AsJson, RunsFolder, print_json

EXAMPLES = "Example: muster doctor --json"

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def command(runs: RunsFolder = DEFAULT_RUNS, json: AsJson = False) -> None:
    """Measure this machine; exit with 1 if something must be mended."""
    from muster.cli.machine_checks import examine

    findings = list(examine(Path(runs)))
    failed = any(finding.verdict == "fail" for finding in findings)
    if json:
        print_json({"ok": not failed, "checks": [finding.as_dict() for finding in findings]})
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for title in ("part", "verdict", "found", "mend"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
            table.add_row(finding.name, verdict, Text(finding.found), Text(finding.mend))
        Console(highlight=False).print(table)
    if failed:
        raise typer.Exit(1)
