"""``muster scale``: how a job scales over numbers of ranks, and what limits it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muster.cli.options import AsJson, JobPath, Quiet, Settings, print_json

if TYPE_CHECKING:
    from muster.tuning._scaling import ScalePoint, Scaling
    from muster.tuning.scale import Study

EXAMPLES = """\
Example: muster scale my.yaml --ranks 1,2,4 --both --repeats 7

A study that was interrupted goes on with the same command."""


def command(
    job: JobPath,
    ranks: Annotated[
        str,
        typer.Option("--ranks", metavar="N,N,...", help="The numbers of ranks to compare, such as 1,2,4."),
    ],
    weak: Annotated[bool, typer.Option("--weak", help="Keep the batch of each rank (the default).")] = False,
    strong: Annotated[bool, typer.Option("--strong", help="Keep the global batch.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Both of them.")] = False,
    steps: Annotated[int, typer.Option("--steps", help="Steps that count in each measurement.")] = 30,
    repeats: Annotated[int, typer.Option("--repeats", help="Measurements of each number of ranks.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The study's folder; by default one among the runs."
        ),
    ] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Measure a job at several numbers of ranks, in turn and repeatedly, and say what limits its scaling."""
    from muster.tuning import scale
    from muster.tuning._pages import write_scaling_page

    modes = tuple(
        mode for mode, wanted in (("weak", weak or not strong), ("strong", strong)) if wanted or both
    )
    study = scale.plan(
        job,
        settings or (),
        ranks=_numbers(ranks),
        modes=modes,
        steps=steps,
        repeats=repeats,
        folder=output,
    )
    _measure(study, quiet)
    found = scale.result(study)
    write_scaling_page(study, found)
    if json:
        print_json(scale.as_json(study, found))
    else:
        _print(study, found)


def _numbers(text: str) -> list[int]:
    from muster.errors import RefusedInput

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RefusedInput(
            f"--ranks: found {text!r}; expected different whole numbers from 1, such as 1,2,4"
        ) from None


def _measure(study: Study, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from muster.tuning import scale

    console = Console(stderr=True)
    total, done = len(study.order()), len(scale.finished(study))
    for note in study.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if done:
        console.print(
            f"{done} of {total} measurements are on record in {study.folder}; remove it to measure anew",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=total)

        def show(point: tuple[int, int], repeat: int) -> None:
            words = (
                f"{point[0]} rank{'s' * (point[0] > 1)}, batch {point[1]}, repeat {repeat} of {study.repeats}"
            )
            progress.update(task, completed=len(scale.finished(study)), description=words)

        scale.measure(study, show)
        progress.update(task, completed=total, description="measured")


def _print(study: Study, found: Sequence[Scaling]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for one in found:
        kept = "the batch of each rank" if one.mode == "weak" else "the global batch"
        console.print(f"[bold]{one.mode} scaling[/]: {kept} is kept; {study.steps} steps × {study.repeats}")
        console.print(
            _table(("ranks", "batch", "samples/s", "speed-up", "efficiency"), map(_figures, one.points))
        )
        shares = ("ranks", "ms/step", "io", "compute", "comm exposed", "idle", "comm hidden")
        console.print(_table(shares, map(_shares, one.points)))
        console.print(one.sentence, markup=False, soft_wrap=True)
        console.print()
    console.print(f"study: {study.folder}", markup=False, soft_wrap=True)
    console.print(f"page: {study.page}", markup=False, soft_wrap=True)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _figures(point: ScalePoint) -> list[str]:
    def between(value: Any, digits: int) -> str:
        return f"{value.median:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"

    speed = between(point.samples_per_s, 1)
    return [
        str(point.ranks),
        str(point.batch),
        speed,
        between(point.speed_up, 2),
        between(point.efficiency, 2),
    ]


def _shares(point: ScalePoint) -> list[str]:
    shares = [f"{100 * point.shares[name]:.1f} %" for name in ("io", "compute", "comm", "idle")]
    hidden = 100 * point.comm_hidden / point.step_s
    return [str(point.ranks), f"{1e3 * point.step_s:.1f}", *shares, f"{hidden:.1f} %"]
