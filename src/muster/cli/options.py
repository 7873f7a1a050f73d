"""Arguments and options that several verbs have, and how a run is found by the name a person gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from muster.engine.run_folder import RunFolder

JobPath = Annotated[str, typer.Argument(metavar="JOB", help="The job file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder's path, a run's name, or 'last'.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the job, such as how.ranks=4; may be repeated. "
        "MUSTER_SET_HOW__RANKS=4 in the environment does the same.",
    ),
]
RunsFolder = Annotated[
    Path,
    typer.Option(
        "--runs",
        metavar="FOLDER",
        envvar="MUSTER_SET_WHERE__RUNS",
        help="The folder that holds the run folders.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with the keys of docs/cli.md.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

DEFAULT_RUNS = Path("runs")


def find_run(name: str, runs: Path) -> RunFolder:
    """The run of that path or name, or the newest one for ``last``.

    Raises:
        RunNotFound: there is none.
    """
    from muster.engine.run_folder import RunFolder

    return RunFolder.find(name, runs)


def print_json(content: object) -> None:
    """Prints JSON for a program to read; numbers that JSON cannot hold become null."""
    import json

    print(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(content: object) -> object:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not abs(content) < float("inf"):
        return None
    return content
