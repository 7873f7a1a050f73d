"""``muster ls``: the runs in a folder."""

from __future__ import annotations

from typing import Any, Final

from muster.cli.options import DEFAULT_RUNS, AsJson, RunsFolder, print_json

EXAMPLES = "Example: muster ls --json"

STATUS_COLOURS: Final = {"done": "green", "running": "cyan", "failed": "red", "crashed": "red"}


def command(runs: RunsFolder = DEFAULT_RUNS, json: AsJson = False) -> None:
    """List the runs, oldest first."""
    from muster.engine.run_folder import RunFolder

    rows = [_row(run) for run in RunFolder.list(runs)]
    if json:
        print_json(rows)
        return
    if not rows:
        print(f"no run in {runs}/; start one with `muster run JOB`")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    table.add_column("run", no_wrap=True)  # to be copied
    for title in ("application", "status"):
        table.add_column(title, overflow="fold")
    for title in ("steps", "size", "restarts"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            Text(row["id"]),
            Text(row["app"]),
            Text(row["status"], style=STATUS_COLOURS.get(row["status"], "yellow")),
            f"{row['step']}/{row['steps']}",
            str(row["world_size"]),
            str(row["restarts"]),
        )
    Console(highlight=False).print(table)


def _row(run: Any) -> dict[str, Any]:
    from muster.cli.run_summary import step_reached

    state = run.state()
    keys = ("id", "name", "app", "created_utc", "restarts", "world_size", "steps")
    return {
        **{key: state[key] for key in keys},
        "status": run.status(),
        "step": step_reached(run),
        "path": str(run.path),
    }
