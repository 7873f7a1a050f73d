"""``muster pool``: who works on a pool, and what its ledger proves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muster.cli.options import DEFAULT_RUNS, AsJson, RunsFolder, find_run, print_json

if TYPE_CHECKING:
    from muster.engine.run_folder import RunFolder

_GONE_SHOWN = 8  # of the workers that are no more, the last ones

group = typer.Typer(help="Look at a pool: who works on it, and what its ledger proves.", no_args_is_help=True)

PoolName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run folder's path, a run's name, or 'last'; or the folder of a pool without a run.",
    ),
]


@group.command(epilog="Example: muster pool status last --watch")
def status(
    run: PoolName,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    runs: RunsFolder = DEFAULT_RUNS,
    json: AsJson = False,
) -> None:
    """Show a pool: units, workers, leases under way, refusals, cost so far."""
    folder, found = _found(run, runs)

    def look() -> dict[str, Any]:
        if found is None:
            from muster.engine.pool.status import pool_status

            return pool_status(folder)
        from muster.training.pool.account import run_status

        return run_status(found)

    if json:
        print_json(look())
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not watch:
        console.print(_page(look()))
        return
    try:
        with Live(_page(look()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(1.0)
                live.update(_page(look()), refresh=True)
                if found is not None and found.status() != "running":
                    return
    except KeyboardInterrupt:
        pass


def _found(name: str, runs: Path) -> tuple[Path, RunFolder | None]:
    """The folder of a pool, and its run if it has one.

    Raises:
        RunNotFound: there is neither.
        DataError: the run is no pool's.
    """
    from muster.errors import DataError
    from muster.training.pool.account import pool_folder

    if Path(name).is_dir() and not (Path(name) / "run.json").is_file():
        return Path(name), None
    run = find_run(name, runs)
    if not (pool_folder(run) / "ledger.sqlite").is_file():
        raise DataError(f"{run.id} has no pool: it is a run of another shape, or has not come so far")
    return pool_folder(run), run


@group.command(epilog="Example: muster pool replay last")
def replay(run: PoolName, runs: RunsFolder = DEFAULT_RUNS, json: AsJson = False) -> None:
    """Compute the model again from the first one and every accepted update; says whether it is the one on record."""
    from muster.engine.pool.blobs import digest
    from muster.engine.pool.course import replayed, saved_version
    from muster.engine.pool.ledger import Ledger
    from muster.errors import DataError
    from muster.training.merge.compressed_updates import compression_of, fold_of
    from muster.training.merge.registry import from_description

    folder, _ = _found(run, runs)
    if not (folder / "ledger.sqlite").is_file():
        raise DataError(f"{folder} is not the folder of a pool: it has no ledger.sqlite")
    with Ledger(folder / "ledger.sqlite") as ledger:
        about, accepted = ledger.noted("about", {}), len(ledger.accepted())
    if "rule" not in about:
        raise DataError(f"{folder} does not say under which merge rule its updates were merged")
    again = replayed(folder, fold_of(from_description(about), compression_of(about)))
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
    if "run" in found:
        facts.add_row("run", Text(found["run"], style="bold", overflow="fold"))
        facts.add_row("status", found["status"])
    else:
        facts.add_row("pool", Text(found["folder"], style="bold", overflow="fold"))
    if "rule" in found["about"]:
        facts.add_row("rule", Text(found["about"]["rule"]))
    facts.add_row(
        "units", f"{units['done']} of {total} done, {units['leased']} leased, {units['waiting']} waiting"
    )
    if found["aside"]:
        names = ", ".join(map(str, found["aside"]))
        facts.add_row("set aside", Text(f"{units['aside']}: {names}", style="red"))
    if "run" in found:
        facts.add_row(
            "workers",
            f"{_alive(found)} alive, {found['lost']} lost, of these {found['killed']} killed by chaos",
        )
        if found["staleness"] is not None:
            facts.add_row("staleness", f"{found['staleness']:.2g} merges on average")
        if found["cost"] is not None:
            facts.add_row("cost so far", Text(_cost(found["cost"])))
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


def _alive(found: dict[str, Any]) -> int:
    return sum(each["state"] in ("working", "waiting") for each in found["workers"])


def _cost(cost: dict[str, Any]) -> str:
    from muster.cli.money import sentence

    return sentence(cost)


def _workers(workers: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("worker", no_wrap=True)
    with_state = any("state" in one for one in workers)
    if with_state:
        table.add_column("state", no_wrap=True)
        gone = [one for one in workers if one["state"] not in ("working", "waiting")]
        workers = [one for one in workers if one not in gone] + gone[-_GONE_SHOWN:]
    for title in ("pid", "active", "done", "samples", "s/lease", "stale", "refused", "lost"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in workers:
        table.add_row(
            Text(one["worker"]),
            *([_state(one["state"])] if with_state else []),
            str(one.get("pid") or ""),
            str(one["active"]),
            str(one["accepted"]),
            f"{one['samples']:,}",
            "" if one["seconds"] is None else f"{one['seconds']:.3g}",
            "" if one["staleness"] is None else f"{one['staleness']:.2g}",
            str(one["refused"]),
            str(one["expired"] + one["failed"]),
        )
    return table


def _state(state: str) -> Any:
    from rich.text import Text

    return Text(state, style={"working": "green", "killed": "red", "lost": "red"}.get(state, ""))


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
