"""``muster show``: one run, its quality, and where its time went."""

from __future__ import annotations

from typing import Any, Final

from muster.cli.ls import STATUS_COLOURS
from muster.cli.options import DEFAULT_RUNS, AsJson, RunName, RunsFolder, find_run, print_json

EXAMPLES = "Example: muster show last --json"

_COLOURS: Final = {"io": "yellow", "compute": "green", "comm": "blue", "idle": "bright_black", "lost": "red"}
_SHADES: Final = {
    "io": "▒",
    "compute": "█",
    "comm": "▓",
    "idle": "░",
    "lost": "╳",
}  # told apart without colours too
_BAR_CELLS: Final = (10, 60)
_COLUMN_CELLS: Final = 54


def command(run: RunName, runs: RunsFolder = DEFAULT_RUNS, json: AsJson = False) -> None:
    """Show a run: status, quality, checkpoints, and where each rank's time went."""
    from muster.cli.run_summary import summarize

    summary = summarize(find_run(run, runs))
    if json:
        print_json(summary)
    else:
        _print(summary)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    colour = STATUS_COLOURS.get(summary["status"], "yellow")
    facts.add_row("run", Text(summary["id"], style="bold", overflow="fold"))
    facts.add_row("application", Text(summary["app"]))
    facts.add_row("status", Text(summary["status"], style=colour))
    if summary["message"]:
        facts.add_row("message", Text(summary["message"]))
    facts.add_row("merges" if summary["pool"] else "steps", f"{summary['step']} of {summary['steps']}")
    facts.add_row(
        "workers" if summary["pool"] else "ranks",
        f"{summary['world_size']}, {summary['restarts']} restart{'s' * (summary['restarts'] != 1)}",
    )
    if summary["pool"]:
        _add_pool(facts, summary["pool"])
    if summary["checkpoints"]:
        facts.add_row(
            "checkpoints", "at steps " + ", ".join(str(one["step"]) for one in summary["checkpoints"])
        )
    for name in ("model", "report"):
        if summary["paths"][name]:
            facts.add_row(name, Text(summary["paths"][name], overflow="fold"))
    console.print(facts)
    if summary["metrics"]:
        console.print(_metrics(summary))
    least, most = _BAR_CELLS
    if summary["pillars"]:
        cells = max(least, min(most, console.width - _COLUMN_CELLS))
        console.print(_pillars(summary["pillars"], cells))
    if summary["pool"] and summary["pool"]["pillars"]:
        cells = max(least, min(most, console.width - _COLUMN_CELLS - 20))
        console.print(_pillars(summary["pool"]["pillars"], cells, "worker"))
    if summary["roofline"]:
        console.print(Text(summary["roofline"]["sentence"]))


def _add_pool(facts: Any, pool: dict[str, Any]) -> None:
    from rich.text import Text

    from muster.cli.money import sentence

    leases = ", ".join(f"{count} {outcome}" for outcome, count in sorted(pool["leases"].items()))
    facts.add_row("leases", leases or "none has ended")
    facts.add_row("samples", f"{pool['samples']:,} in accepted updates")
    facts.add_row(
        "workers gone",
        f"{pool['lost']} lost, of these {pool['killed']} killed by chaos; {pool['noticed']} were told to go",
    )
    if pool["staleness"] is not None:
        facts.add_row("staleness", f"{pool['staleness']:.3g} merges on average")
    if pool["cost"] is not None:
        facts.add_row("cost", Text(sentence(pool["cost"])))


def _metrics(summary: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), title_justify="left")
    for title in ("metric", "untrained", "last"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for name, value in summary["metrics"].items():
        first = summary["initial_metrics"].get(name)
        table.add_row(Text(name), "" if first is None else f"{first:.6g}", f"{value:.6g}")
    return table


def _pillars(pillars: dict[str, dict[str, float]], cells: int, who: str = "rank") -> Any:
    """A row per rank or worker: seconds in each pillar, and a bar of their shares."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(who, justify="right", no_wrap=True)
    columns = {name: colour for name, colour in _COLOURS.items() if name != "lost" or who == "worker"}
    for name, colour in columns.items():
        table.add_column(Text(f"{_SHADES[name]} {name} s", style=colour), justify="right")
    table.add_column("share of the time")
    for rank, seconds in pillars.items():
        table.add_row(rank, *(f"{seconds[name]:.2f}" for name in columns), _bar(seconds, cells))
    return table


def _bar(seconds: dict[str, float], cells: int) -> Any:
    """The four shares as so many cells; rounding the running sum keeps the length."""
    from rich.text import Text

    total = sum(seconds.get(name, 0.0) for name in _COLOURS) or 1.0
    bar, done, reached = Text(), 0.0, 0
    for name, colour in _COLOURS.items():
        done += seconds.get(name, 0.0)
        end = round(cells * done / total)
        bar.append(_SHADES[name] * (end - reached), style=colour)
        reached = end
    return bar
