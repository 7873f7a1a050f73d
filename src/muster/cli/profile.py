"""``muster profile``: where the time of a job's steps goes, message by message, and what limits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from muster.cli.options import AsJson, JobPath, Quiet, Settings, print_json

if TYPE_CHECKING:
    from muster.tuning.profile import Profile

EXAMPLES = "Example: muster profile my.yaml --steps 100 --set how.ranks=2"


def command(
    job: JobPath,
    steps: Annotated[
        int, typer.Option("--steps", help="Steps that count; a few more are run to warm up.")
    ] = 50,
    settings: Settings = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Run a job for some steps in a run folder of its own, and say what each message costs and what limits it."""
    from rich.console import Console

    from muster.tuning._pages import write_profile_page
    from muster.tuning.profile import profile

    stages = Console(stderr=True, highlight=False, quiet=quiet)
    found = profile(job, settings or (), steps=steps, progress=not quiet, on_stage=stages.print)
    write_profile_page(found)
    if json:
        print_json(found.as_json())
    else:
        _print(found)


def _print(found: Profile) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    times = found.times
    console.print(
        f"{times.steps} steps of {1e3 * times.step_s:.4g} ms on {times.ranks} rank{'s' * (times.ranks > 1)}: "
        f"{times.samples_per_s:.4g} samples/s"
    )
    console.print()
    rows = [
        ("mean over ranks", times.pillars, times.shares),
        ("rank waited for", times.critical, times.critical_shares),
    ]
    names = ("io", "compute", "comm", "idle")
    console.print(
        _table(
            ("ms per step", "io", "compute", "comm exposed", "idle"),
            [
                (title, *(f"{1e3 * seconds[name]:.3g} ({100 * shares[name]:.1f} %)" for name in names))
                for title, seconds, shares in rows
            ],
        )
    )
    console.print()
    if found.classes:
        console.print(
            f"collectives by size, over the {times.steps} steps; ms per rank; MB/s achieved, of the link alone"
        )
        console.print(_collectives(found))
        console.print()
    console.print(
        f"input: {1e3 * times.pillars['io']:.3g} ms of waiting per step; the loader alone delivers "
        f"{found.probed.loader_samples_per_s:.4g} samples/s, training without waiting "
        f"would take {found.training_samples_per_s:.4g}",
        soft_wrap=True,
    )
    if found.link_bytes_per_s:
        console.print(
            f"link: {found.link_bytes_per_s / 1e6:.4g} MB/s for large all-reduces, alone", soft_wrap=True
        )
    if found.roofline is not None:
        console.print(f"roofline: {found.roofline.sentence}", markup=False, soft_wrap=True)
    console.print()
    console.print(found.verdict.sentence, style="bold", markup=False, soft_wrap=True)
    console.print(f"page: {found.page}", markup=False, soft_wrap=True)


def _collectives(found: Profile) -> Any:
    from muster.report.formatting import data_size

    titles = ("collective", "count", "bytes", "exposed", "waited", "hidden", "MB/s", "link", "share")
    rows = [
        (
            f"{each.kind} {each.label}",
            str(each.count),
            data_size(each.bytes),
            *(f"{1e3 * seconds:.3g}" for seconds in (each.exposed_s, each.waited_s, each.hidden_s)),
            *(
                "–" if rate is None else f"{rate / 1e6:.4g}"
                for rate in (each.bytes_per_s, each.link_bytes_per_s)
            ),
            "–" if each.achieved is None else f"{100 * each.achieved:.0f} %",
        )
        for each in found.classes
    ]
    return _table(titles, rows)


def _table(titles: Any, rows: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
