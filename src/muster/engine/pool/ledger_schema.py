"""The tables of a ledger, and the format that a file says it has."""

from __future__ import annotations

import json
import sqlite3
from typing import Final

FORMAT: Final = 1

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (
    unit INTEGER PRIMARY KEY,
    work TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    active INTEGER NOT NULL DEFAULT 0,
    samples INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS units_by_state ON units (state, active, unit);
CREATE TABLE IF NOT EXISTS leases (
    token TEXT PRIMARY KEY,
    unit INTEGER NOT NULL REFERENCES units,
    worker TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    base_version INTEGER NOT NULL,
    model TEXT NOT NULL,
    granted REAL NOT NULL,
    deadline REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS active_leases ON leases (deadline) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS leases_by_unit ON leases (unit) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS accepted (
    number INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE REFERENCES leases,
    unit INTEGER NOT NULL UNIQUE REFERENCES units,
    worker TEXT NOT NULL,
    content TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    time REAL NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS evidence (
    number INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    worker TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS checks (
    unit INTEGER PRIMARY KEY REFERENCES units,
    wanted INTEGER NOT NULL,
    trusted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS claims (
    token TEXT PRIMARY KEY REFERENCES leases,
    unit INTEGER NOT NULL REFERENCES units,
    worker TEXT NOT NULL,
    content TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    time REAL NOT NULL,
    detail TEXT NOT NULL,
    verdict TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_by_unit ON claims (unit);
CREATE TABLE IF NOT EXISTS retracted (
    number INTEGER PRIMARY KEY REFERENCES accepted,
    after INTEGER NOT NULL,
    event INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS again (unit INTEGER PRIMARY KEY REFERENCES units, place INTEGER NOT NULL);
"""


def check_format(connection: sqlite3.Connection) -> int:
    """The format of a ledger; one that is new gets this version's."""
    connection.execute("INSERT OR IGNORE INTO facts VALUES ('format', ?)", (json.dumps(FORMAT),))
    return int(json.loads(connection.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()[0]))
