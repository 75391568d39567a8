"""Many jobs of the journal at once: each question and each change is one statement.

sqlite3 gives the interpreter's lock away and takes it back for every row that it steps to, and beside a busy event
loop each time may take a while. So rows come as one JSON text, and go as one list of VALUES.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from ml_dashd.core.model import Job
from ml_dashd.core.states import State
from ml_dashd.edge.job_rows import changed_columns, changed_job, read_job
from ml_dashd.edge.rows import insert, marks, placeholders
from ml_dashd.ports import Handed

LET_GO = (State.DONE, State.CANCELLED)
"""The states in which nobody needs a file's bytes any more."""
AHEAD = (State.SENDING, State.COMPLETING, State.VERIFIED)
"""Where a file that gave way to a newer version does not get to: what is stored never gave way."""
_STILL_THERE = """
SELECT json_group_array(json_array(files.id, cancel_requested, pin_kind, revision, superseded_by))
FROM files JOIN (WITH old (id, state) AS (VALUES {rows}) SELECT * FROM old) AS old
    ON files.id = old.id AND files.state = old.state
"""
_EVENTS = """
INSERT INTO events
WITH old (id, state) AS (VALUES {rows})
SELECT id, coalesce((SELECT max(number) FROM events WHERE file_id = id), 0) + 1, ?, state, ?, NULL FROM old
"""


class _Now(NamedTuple):
    """What may have changed of a job that is still in its state."""

    cancelled: bool
    pin_kind: str
    revision: int
    superseded_by: int | None


def insert_all(
    connection: sqlite3.Connection, files: Sequence[Handed], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[Job, bool]]:
    """Inserts jobs whose key no earlier request had; returns the jobs that are there now, and whether each is new.

    `rows` are their columns.
    """
    statement = insert("files", rows[0], len(rows)) + " ON CONFLICT (owner_uid, request_key) DO NOTHING"
    count = connection.execute(statement, [value for row in rows for value in row.values()]).rowcount
    known = {} if count == len(files) else _known(connection, files)
    fresh = [one for one in files if one.job.id not in known]
    if fresh:
        events = [(one.job.id, 1, one.job.record.created_ms, None, one.job.state, one.job.pin.kind) for one in fresh]
        _insert(connection, "events", events)
    if contents := [(one.job.id, one.content) for one in fresh if one.content is not None]:
        _insert(connection, "contents", contents)
    return [(known.get(one.job.id, one.job), one.job.id not in known) for one in files]


def _known(connection: sqlite3.Connection, files: Sequence[Handed]) -> dict[int, Job]:
    """The jobs that came before with the keys of these, by the new one's id."""
    found = {}
    for one in files:
        key = (one.job.record.owner_uid, one.key)
        (row,) = connection.execute("SELECT * FROM files WHERE owner_uid = ? AND request_key = ?", key).fetchall()
        if row["id"] != one.job.id:
            found[one.job.id] = read_job(row)
    return found


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    statement = f"INSERT INTO {table} VALUES {placeholders(len(rows), len(rows[0]))}"
    connection.execute(statement, list(chain.from_iterable(rows)))


def move_all(
    connection: sqlite3.Connection,
    jobs: Sequence[Job],
    to: State,
    changes: Sequence[Mapping[str, Any]],
    now_ms: int,
) -> list[Job]:
    """Moves jobs that are still in their states, each with its own changes of the same columns; returns those.

    One whose source was copied since the caller saw it comes back with its copy: that is what is let go. One of which
    something else is said since comes back with that, and does not become DONE: the catalog has the old words. Nor does
    one that is deleted since: the catalog lists it.
    """
    (found,) = connection.execute(_STILL_THERE.format(rows=placeholders(len(jobs), 2)), _old(jobs)).fetchone()
    asked = {file_id: _Now(bool(cancelled), *others) for file_id, cancelled, *others in json.loads(found)}
    left = [
        (job, change)
        for job, change in zip(jobs, changes, strict=True)
        if job.id in asked
        and (to is not State.DONE or (asked[job.id].revision == job.record.revision and not asked[job.id].cancelled))
        and (to not in AHEAD or asked[job.id].superseded_by is None)
    ]
    if not left:
        return []
    jobs = [job for job, _ in left]
    _update(connection, left, to, now_ms)
    connection.execute(_EVENTS.format(rows=placeholders(len(jobs), 2)), [*_old(jobs), now_ms, to])
    if to in LET_GO:
        ids = [job.id for job in jobs]
        connection.execute(f"DELETE FROM contents WHERE file_id IN ({marks(ids)})", ids)
    return [
        changed_job(job, {**change, "state": to, "cancel_requested": asked[job.id].cancelled, "updated_ms": now_ms})
        if (asked[job.id].pin_kind, asked[job.id].revision) == (job.pin.kind, job.record.revision)
        else read_job(connection.execute("SELECT * FROM files WHERE id = ?", (job.id,)).fetchone())
        for job, change in left
    ]


def _update(
    connection: sqlite3.Connection, left: Sequence[tuple[Job, Mapping[str, Any]]], to: State, now_ms: int
) -> None:
    columns = [changed_columns(dict(change)) for _, change in left]
    names = list(columns[0])
    assignments = "".join(f", {name} = new.{name}" for name in names)
    values = [[job.id, *(row[name] for name in names)] for (job, _), row in zip(left, columns, strict=True)]
    connection.execute(
        f"WITH new ({', '.join(['id', *names])}) AS (VALUES {placeholders(len(left), len(names) + 1)}) "
        f"UPDATE files SET state = ?, updated_ms = ?{assignments} FROM new WHERE files.id = new.id",
        [*chain.from_iterable(values), to, now_ms],
    )


def _old(jobs: Sequence[Job]) -> list[Any]:
    return [value for job in jobs for value in (job.id, job.state)]
