"""Ids of files that were left in the inbox, by who has left them and the keys of their hand-offs."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

Key = tuple[int, bytes]
"""A uid, and the key."""


def read(connection: sqlite3.Connection, keys: Sequence[Key]) -> dict[Key, int]:
    """The ids of those that have one."""
    found: dict[Key, int] = {}
    for key in keys:
        row = connection.execute("SELECT id FROM numbers WHERE owner_uid = ? AND request_key = ?", key).fetchone()
        if row is not None:
            found[key] = row["id"]
    return found


def write(connection: sqlite3.Connection, ids: Mapping[Key, int], at_ms: int) -> None:
    """Notes the ids of those that have none."""
    rows = [(*key, file_id, at_ms) for key, file_id in ids.items()]
    connection.executemany("INSERT OR IGNORE INTO numbers VALUES (?, ?, ?, ?)", rows)


def forget(connection: sqlite3.Connection, before_ms: int) -> None:
    """Drops those that were noted before then."""
    connection.execute("DELETE FROM numbers WHERE at_ms < ?", (before_ms,))
