"""What is said of a file, changed after its hand-off: the same statement for the journal and the catalog."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from ml_dashd.core.model import Amendment

SAID = ("description", "tags", "bindrs", "metadata", "updated_ms", "revision")
"""The columns that an amendment changes."""


def amend(connection: sqlite3.Connection, file_id: int, words: Amendment, at_ms: int, where: str) -> sqlite3.Row | None:
    """The file's row as it is now; None where it is not there under that condition."""
    values = _given(words) | {"updated_ms": at_ms}
    assignments = ", ".join(f"{name} = ?" for name in values)
    statement = f"UPDATE files SET {assignments}, revision = revision + 1 WHERE id = ? AND {where} RETURNING *"
    row: sqlite3.Row | None = connection.execute(statement, [*values.values(), file_id]).fetchone()
    return row


def later_word() -> str:
    """What an upsert does to a row that is there: of what is said of a file, the higher revision stays."""
    taken = ", ".join(f"{name} = iif(excluded.revision > files.revision, excluded.{name}, {name})" for name in SAID)
    return f"ON CONFLICT (id) DO UPDATE SET {taken}"


def _given(words: Amendment) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if words.description is not None:
        given["description"] = words.description
    if words.tags is not None:
        given["tags"] = json.dumps(words.tags)
    if words.bindrs is not None:
        given["bindrs"] = json.dumps(words.bindrs)
    if words.metadata is not None:
        given["metadata"] = words.metadata
    return given
