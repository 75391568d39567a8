"""Rows of the journal that wait for the catalog: verified files, in a lane that no worker asks for."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ml_dashd.core.model import Trouble
from ml_dashd.edge.rows import marks

OUTBOX = "outbox"
"""In the column `lane`, beside those of core/schedule.py."""
WAITS = f"lane = '{OUTBOX}' AND state = 'VERIFIED'"
"""Spelled out, because a partial index serves only a WHERE that implies its own."""
_PUT_OFF = "blocked = 1, not_before_ms = ?, error_code = ?, error_message = ?, error_hint = ?"


def defer(connection: sqlite3.Connection, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
    """Takes files out of the lanes."""
    connection.execute(
        f"UPDATE files SET lane = '{OUTBOX}', {_PUT_OFF} WHERE id IN ({marks(ids)}) AND state = 'VERIFIED'",
        (until_ms, trouble.code, trouble.message, trouble.hint, *ids),
    )


def hold_deferred(connection: sqlite3.Connection, until_ms: int, trouble: Trouble) -> None:
    """Blocks what waits and was let go: by a drain, or by a start."""
    connection.execute(
        f"UPDATE files SET {_PUT_OFF} WHERE {WAITS} AND not_before_ms = 0",
        (until_ms, trouble.code, trouble.message, trouble.hint),
    )
