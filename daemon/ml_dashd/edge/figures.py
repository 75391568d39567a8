"""The journal's queue in figures: how much waits, of whom, how far it is, and why. Each is asked in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ml_dash.errors import Code
from ml_dashd.core.figures import Backlog, Blocked, Left, StateCount, Summary, Unsent
from ml_dashd.core.model import Job, Scope, Selection, Trouble
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.due import DUE, LISTED
from ml_dashd.edge.job_rows import READ_COLUMNS, read_job
from ml_dashd.edge.moves import LET_GO
from ml_dashd.edge.rows import experiment_where, scope_where

SAMPLE = 16
"""Files named in a summary."""
FINISHED = "state IN ('DONE', 'CANCELLED')"
# What is known to be sent of a file: parts of an upload that is gone count for nothing.
_SENT = "coalesce((SELECT sum(size_bytes) FROM parts WHERE file_id = files.id AND upload_id = files.upload_id), 0)"
FOREMOST = "(state IN ('QUEUED', 'SENDING')), priority DESC, {left}, id DESC"
"""The order of `foremost` in core/schedule.py, by what is LEFT. A small file has no parts: an index has its order."""
LEFT = {Lane.INLINE: "size_bytes", Lane.SMALL: "size_bytes", Lane.LARGE: f"size_bytes - {_SENT}"}


def unfinished(connection: sqlite3.Connection, selection: Selection) -> tuple[int, list[Job]]:
    """As the port Journal says."""
    these, values = experiment_where(selection)
    where = f"WHERE {LISTED} AND NOT cancel_requested AND {these}"
    (files,) = connection.execute(f"SELECT count(*) FROM files {where} AND state <> 'FAILED'", values).fetchone()
    failed = _jobs(connection, f"{where} AND state = 'FAILED' ORDER BY id DESC LIMIT {SAMPLE}", values)
    (ended,) = connection.execute(f"SELECT count(*) FROM shares WHERE NOT stuck AND {these}", values).fetchone()
    return files + ended, failed


def left(connection: sqlite3.Connection, now_ms: int) -> Left:
    """As the port Journal says."""
    files, left_bytes, held = connection.execute(
        f"SELECT count(*), coalesce(sum(size_bytes - {_SENT}), 0), coalesce(sum(blocked AND not_before_ms > ?), 0) "
        f"FROM files WHERE {DUE} AND NOT cancel_requested",
        (now_ms,),
    ).fetchone()
    return Left(files, left_bytes, held)


def unsent(connection: sqlite3.Connection, failed_since_ms: int, limit: int) -> list[Unsent]:
    """As the port Journal says."""
    order = FOREMOST.format(left=LEFT[Lane.LARGE])
    rows = connection.execute(
        f"SELECT {', '.join(READ_COLUMNS)}, {_SENT} AS sent_bytes FROM files WHERE {LISTED} AND NOT cancel_requested "
        f"AND (state <> 'FAILED' OR updated_ms >= ?) ORDER BY state = 'FAILED', {order} LIMIT ?",
        (failed_since_ms, limit),
    )
    return [Unsent(read_job(row), row["sent_bytes"]) for row in rows.fetchall()]


def failed_count(connection: sqlite3.Connection, since_ms: int) -> int:
    """As the port Journal says."""
    where = f"{LISTED} AND NOT cancel_requested AND state = 'FAILED' AND updated_ms >= ?"
    (files,) = connection.execute(f"SELECT count(*) FROM files WHERE {where}", (since_ms,)).fetchone()
    return int(files)


def summary(connection: sqlite3.Connection, scope: Scope) -> Summary:
    """As the port Journal says."""
    mine, values = scope_where(scope)
    newest = f"AND {mine} ORDER BY id DESC LIMIT {SAMPLE}"
    counts = connection.execute(
        "SELECT state, count(*) AS files, sum(size_bytes) AS size_bytes"
        f" FROM files INDEXED BY files_listed WHERE {LISTED} GROUP BY state"
    ).fetchall()
    for state in LET_GO:  # a day of stored files: neither their rows are read nor are they sorted
        counts += connection.execute(
            "SELECT ? AS state, count(*) AS files, sum(size_bytes) AS size_bytes"
            f" FROM files INDEXED BY files_finished WHERE {FINISHED} AND state = ? HAVING count(*) > 0",
            (state, state),
        ).fetchall()
    (oldest_ms,) = connection.execute(f"SELECT min(created_ms) FROM files WHERE {DUE}").fetchone()
    (superseded,) = connection.execute("SELECT count(*) FROM files WHERE superseded_by IS NOT NULL").fetchone()
    failed = f"INDEXED BY files_listed WHERE {LISTED} AND state = 'FAILED' {newest}"
    return Summary(
        counts=_counts(counts),
        oldest_ms=oldest_ms,
        blocked=tuple(_jobs(connection, f"INDEXED BY files_due WHERE {DUE} AND blocked {newest}", values)),
        failed=tuple(_jobs(connection, failed, values)),
        superseded=superseded,
    )


def backlog(connection: sqlite3.Connection) -> Backlog:
    """As the port Journal says."""
    # Never without this index: it leaves out what is finished, which is most.
    states = connection.execute(
        "SELECT state, count(*) AS files, sum(size_bytes) AS size_bytes, min(created_ms) AS oldest_ms,"
        f" sum(blocked) AS blocked FROM files INDEXED BY files_listed WHERE {LISTED} GROUP BY state"
    ).fetchall()
    blocked: list[sqlite3.Row] = []
    if any(row["blocked"] for row in states):
        blocked = connection.execute(
            "SELECT error_code, error_message, error_hint, count(*) AS files, max(id)"
            f" FROM files WHERE {DUE} AND blocked GROUP BY error_code ORDER BY error_code"
        ).fetchall()
    return Backlog(
        counts=_counts(states),
        oldest_ms=min((row["oldest_ms"] for row in states if row["state"] != State.FAILED), default=None),
        blocked=tuple(
            Blocked(Trouble(Code(row["error_code"]), row["error_message"], row["error_hint"]), row["files"])
            for row in blocked
        ),
    )


def _counts(rows: Sequence[sqlite3.Row]) -> tuple[StateCount, ...]:
    return tuple(StateCount(State(row["state"]), row["files"], row["size_bytes"]) for row in rows)


def _jobs(connection: sqlite3.Connection, rest: str, values: Sequence[Any]) -> list[Job]:
    columns = ", ".join(READ_COLUMNS)
    return [read_job(row) for row in connection.execute(f"SELECT {columns} FROM files {rest}", values).fetchall()]
