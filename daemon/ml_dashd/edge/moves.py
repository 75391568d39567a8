"""What changes jobs of the journal. Of many at once each question and each change is one statement.

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
from ml_dashd.edge.due import OPEN
from ml_dashd.edge.job_rows import changed_columns, changed_job, read_job
from ml_dashd.edge.rows import insert, marks, placeholders
from ml_dashd.ports import Handed, Superseded

LET_GO = (State.DONE, State.CANCELLED)
"""The states in which nobody needs a file's bytes any more."""
AHEAD = (State.SENDING, State.COMPLETING, State.VERIFIED)
"""Where a file that gave way to a newer version does not get to: what is stored never gave way."""
_STILL_THERE = """
SELECT json_group_array(json_array(files.id, cancel_requested, pin_kind, revision, superseded_by))
FROM files JOIN (WITH old (id, state) AS (VALUES {rows}) SELECT * FROM old) AS old
    ON files.id = old.id AND files.state = old.state
"""
_AS_SEEN = """
SELECT count(*) FROM files WHERE id IN ({ids}) AND state = ? AND pin_kind = ? AND revision = ? AND not_before_ms = ?
    AND NOT cancel_requested AND superseded_by IS NULL
"""
_EVENTS = """
INSERT INTO events
WITH new (id, state) AS (VALUES {rows})
SELECT id, coalesce((SELECT max(number) FROM events WHERE file_id = id), 0) + 1, ?, state, ?, ? FROM new
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


def move(connection: sqlite3.Connection, job: Job, to: State | None, values: dict[str, Any]) -> Job:
    """Changes these columns of a job that is still in its state, and its state, unless that is None.

    Raises Superseded where the job is not as it should be.
    """
    state = {} if to is None else _state(to, [job])
    assignments = ", ".join(f"{name} = :{name}" for name in [*values, *state])
    # A checksum that somebody was told is never replaced by another.
    same = " AND (sha256 IS NULL OR sha256 = :sha256)" if values.get("sha256") else ""
    # A file is not given up for a source that a copy has replaced.
    kept = " AND pin_kind = :_kind" if to is State.FAILED else ""
    ahead = " AND superseded_by IS NULL" if to in AHEAD else ""
    row = connection.execute(
        f"UPDATE files SET {assignments} WHERE id = :_id AND state = :_old{same}{kept}{ahead} RETURNING *",
        values | state | {"_id": job.id, "_old": job.state, "_kind": job.pin.kind},
    ).fetchone()
    if row is None:
        raise Superseded(f"file {job.id} is no longer {job.state}")
    if to is not None:
        _end_move(connection, [job], to, values["updated_ms"], values.get("error_message"))
    return read_job(row)


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
    rows = [changed_columns(dict(change)) for change in changes]
    if _are_as_seen(connection, jobs):
        for row in rows:
            if row.get("not_before_ms") == jobs[0].not_before_ms:  # it is there, and an index is over it
                del row["not_before_ms"]
        _write(connection, jobs, to, rows, now_ms)
        known = {"state": to, "cancel_requested": False, "updated_ms": now_ms}
        return [changed_job(job, {**change, **known}) for job, change in zip(jobs, changes, strict=True)]
    (found,) = connection.execute(_STILL_THERE.format(rows=placeholders(len(jobs), 2)), _old(jobs)).fetchone()
    asked = {file_id: _Now(bool(cancelled), *others) for file_id, cancelled, *others in json.loads(found)}
    left = [
        (job, change, row)
        for job, change, row in zip(jobs, changes, rows, strict=True)
        if job.id in asked
        and (to is not State.DONE or (asked[job.id].revision == job.record.revision and not asked[job.id].cancelled))
        and (to not in AHEAD or asked[job.id].superseded_by is None)
    ]
    if not left:
        return []
    _write(connection, [job for job, _, _ in left], to, [row for _, _, row in left], now_ms)
    return [
        changed_job(job, {**change, "state": to, "cancel_requested": asked[job.id].cancelled, "updated_ms": now_ms})
        if (asked[job.id].pin_kind, asked[job.id].revision) == (job.pin.kind, job.record.revision)
        else read_job(connection.execute("SELECT * FROM files WHERE id = ?", (job.id,)).fetchone())
        for job, change, _ in left
    ]


def _state(to: State, jobs: Sequence[Job]) -> dict[str, Any]:
    """The columns of a state. `open` is among them only where it is another than before."""
    same = all(OPEN[job.state] == OPEN[to] for job in jobs)
    return {"state": str(to)} if same else {"state": str(to), "open": OPEN[to]}


def _are_as_seen(connection: sqlite3.Connection, jobs: Sequence[Job]) -> bool:
    """Whether nobody has touched any of these since the caller saw it, which is so of most: one look tells it."""
    seen = {(str(job.state), str(job.pin.kind), job.record.revision, job.not_before_ms) for job in jobs}
    if len(seen) > 1:
        return False
    ids = [job.id for job in jobs]
    (count,) = connection.execute(_AS_SEEN.format(ids=marks(ids)), [*ids, *seen.pop()]).fetchone()
    return bool(count == len(jobs))


def _write(
    connection: sqlite3.Connection, jobs: Sequence[Job], to: State, rows: Sequence[dict[str, Any]], now_ms: int
) -> None:
    """Writes their changed columns, and what goes with a move."""
    alike = {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
    own = [name for name in rows[0] if name not in alike]
    values = [[job.id, *(row[name] for name in own)] for job, row in zip(jobs, rows, strict=True)]
    alike |= _state(to, jobs) | {"updated_ms": now_ms}
    assignments = [*(f"{name} = ?" for name in alike), *(f"{name} = new.{name}" for name in own)]
    connection.execute(
        f"WITH new ({', '.join(['id', *own])}) AS (VALUES {placeholders(len(jobs), len(own) + 1)}) "
        f"UPDATE files SET {', '.join(assignments)} FROM new WHERE files.id = new.id",
        [*chain.from_iterable(values), *alike.values()],
    )
    _end_move(connection, jobs, to, now_ms)


def _end_move(
    connection: sqlite3.Connection, jobs: Sequence[Job], to: State, now_ms: int, detail: str | None = None
) -> None:
    """An event of each; what nobody needs any more is let go of."""
    connection.execute(_EVENTS.format(rows=placeholders(len(jobs), 2)), [*_old(jobs), now_ms, str(to), detail])
    if to in LET_GO:
        ids = [job.id for job in jobs]
        connection.execute(f"DELETE FROM contents WHERE file_id IN ({marks(ids)})", ids)


def _old(jobs: Sequence[Job]) -> list[Any]:
    return [value for job in jobs for value in (job.id, str(job.state))]
