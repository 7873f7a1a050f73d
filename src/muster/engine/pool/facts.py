"""Facts of a ledger: JSON values by name, read and written within a transaction of it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any


def note(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Puts a fact on record, in place of an earlier one of that name."""
    connection.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, json.dumps(value)),
    )


def noted_below(connection: sqlite3.Connection, prefix: str) -> dict[str, Any]:
    """Facts whose names begin so."""
    rows = connection.execute(
        "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
    ).fetchall()
    return {name: json.loads(value) for name, value in rows}


def noted(connection: sqlite3.Connection, name: str, default: Any = None) -> Any:
    """A fact."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return default if row is None else json.loads(row[0])
