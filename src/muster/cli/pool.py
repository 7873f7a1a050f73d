"""``muster pool``: who works on a pool, and what its ledger proves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from muster.cli.options import AsJson, print_json

group = typer.Typer(help="Look at a pool: who works on it, and what its ledger proves.", no_args_is_help=True)

PoolFolder = Annotated[Path, typer.Argument(help="The folder of the pool.", metavar="FOLDER")]


@group.command(epilog="Example: muster pool status parties/ --watch")
def status(
    folder: PoolFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    json: AsJson = False,
) -> None:
    """Show a pool: units, workers, leases under way, refusals."""
    from muster.engine.pool.status import pool_status

    if json:
        print_json(pool_status(folder))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not watch:
        console.print(_page(pool_status(folder)))
        return
    try:
        with Live(_page(pool_status(folder)), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(1.0)
                live.update(_page(pool_status(folder)), refresh=True)
    except KeyboardInterrupt:
        pass


@group.command(epilog="Example: muster pool replay parties/")
def replay(folder: PoolFolder, json: AsJson = False) -> None:
    """Compute the model again from the first one and every accepted update; says whether it is the one on record."""
    from muster.engine.pool.blobs import digest
    from muster.engine.pool.course import replayed, saved_version
    from muster.engine.pool.ledger import Ledger
    from muster.errors import DataError
    from muster.training.merge.registry import from_description

    if not (folder / "ledger.sqlite").is_file():
        raise DataError(f"{folder} is not the folder of a pool: it has no ledger.sqlite")
    with Ledger(folder / "ledger.sqlite") as ledger:
        about, accepted = ledger.noted("about", {}), len(ledger.accepted())
    if "rule" not in about:
        raise DataError(f"{folder} does not say under which merge rule its updates were merged")
    again = replayed(folder, from_description(about))
    saved = saved_version(folder)
    name = digest(again.packed())
    known = saved is not None and saved.number == again.number
    same = known and saved is not None and digest(saved.packed()) == name
    found = {
        "folder": str(folder),
        "rule": about["rule"],
        "accepted": accepted,
        "version": again.number,
        "digest": name,
        "matches_record": same if known else None,
    }
    if json:
        print_json(found)
    else:
        print(f"{accepted} accepted updates, merged by {about['rule']}: version {again.number}, {name}")
        print(
            "the model on record is the same, bit for bit"
            if same
            else "the model on record is ANOTHER"
            if known
            else "no model of this version is on record: the pool was ended before it could write one"
        )
    if known and not same:
        raise typer.Exit(1)


def _page(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    units = found["units"]
    total = sum(units.values())
    facts = Table.grid(padding=(0, 2))
    facts.add_row("pool", Text(found["folder"], style="bold", overflow="fold"))
    if "rule" in found["about"]:
        facts.add_row("rule", Text(found["about"]["rule"]))
    facts.add_row(
        "units", f"{units['done']} of {total} done, {units['leased']} leased, {units['waiting']} waiting"
    )
    if found["aside"]:
        names = ", ".join(map(str, found["aside"]))
        facts.add_row("set aside", Text(f"{units['aside']}: {names}", style="red"))
    counts = found["evidence"]["counts"]
    if counts:
        facts.add_row("evidence", ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    parts: list[Any] = [facts]
    if found["workers"]:
        parts += [Text(), _workers(found["workers"])]
    if found["leases"]:
        parts += [Text(), _leases(found["leases"])]
    if found["evidence"]["last"]:
        parts.append(Text())
        for entry in found["evidence"]["last"][-5:]:
            parts.append(
                Text.assemble((f"{entry['kind']} ", "yellow"), f"{entry['worker']}: {entry['detail']}")
            )
    return Group(*parts)


def _workers(workers: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("worker", no_wrap=True)
    for title in ("pid", "active", "done", "samples", "s/lease", "stale", "refused", "lost"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in workers:
        table.add_row(
            Text(one["worker"]),
            str(one.get("pid", "")),
            str(one["active"]),
            str(one["accepted"]),
            f"{one['samples']:,}",
            "" if one["seconds"] is None else f"{one['seconds']:.3g}",
            "" if one["staleness"] is None else f"{one['staleness']:.2g}",
            str(one["refused"]),
            str(one["expired"] + one["failed"]),
        )
    return table


def _leases(leases: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("unit", justify="right")
    table.add_column("worker")
    for title in ("attempt", "model", "age s", "left s"):
        table.add_column(title, justify="right")
    for one in leases[:20]:
        table.add_row(
            str(one["unit"]),
            Text(one["worker"]),
            str(one["attempt"]),
            str(one["base_version"]),
            f"{one['age_s']:.1f}",
            f"{one['left_s']:.1f}",
        )
    return table
