"""How a benchmark prints: a heading that says where and when, tables, and a verdict for each bar."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

from muster.engine import hardware


def print_heading(title: str, **settings: object) -> None:
    """What is measured, on which machine, when, with which versions and settings."""
    environment = hardware.environment(__file__)
    versions = {name: environment["versions"][name] for name in ("muster", "torch", "ray", "numpy")}
    print(f"# {title}")
    print(f"machine:  {environment['cpu']}, {environment['cores']} cores, {environment['platform']}")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"date:     {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC}, load average {load}")
    print(
        f"versions: Python {environment['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", git {environment['git'] or 'unknown'}"
    )
    print("settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in plain text: the first column to the left, the others to the right."""
    widths = [
        max(len(column), *(len(row[index]) for row in rows)) if rows else len(column)
        for index, column in enumerate(columns)
    ]
    print(f"\n{title}")
    for line in (columns, *rows):
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells))
    print(flush=True)


class Verdicts:
    """The bars of a benchmark, and whether each was reached."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def judge(self, bar: str, reached: bool, found: str) -> None:
        """Prints one line for a bar."""
        print(f"{'reached' if reached else 'MISSED '}  {bar}: {found}", flush=True)
        if not reached:
            self.missed.append(bar)

    def exit_code(self) -> int:
        """0 when every bar was reached, else 1."""
        return 1 if self.missed else 0
