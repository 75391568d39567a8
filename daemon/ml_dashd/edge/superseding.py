"""Versions on their way that give way to a newer one, in the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ml_dashd.core.model import Job
from ml_dashd.core.supersede import DROPPED
from ml_dashd.edge.due import LISTED
from ml_dashd.edge.job_rows import READ_COLUMNS, read_job

_DROPPED = f"state IN ({', '.join(repr(str(state)) for state in DROPPED)}) AND NOT cancel_requested"
_OLDER = f"""
SELECT {", ".join(READ_COLUMNS)} FROM files
WHERE {LISTED} AND namespace = ? AND project = ? AND experiment = ? AND path = ? AND id < ?
    AND owner_uid = ? AND {_DROPPED}
ORDER BY id
"""
_SUPERSEDE = f"""
UPDATE files SET cancel_requested = 1, superseded_by = ?, not_before_ms = 0
WHERE id = ? AND revision = ? AND {_DROPPED} AND EXISTS (
    SELECT 1 FROM files WHERE id = ? AND state NOT IN ('FAILED', 'CANCELLED') AND NOT cancel_requested
) RETURNING *
"""


def older_versions(connection: sqlite3.Connection, job: Job) -> list[Job]:
    """Those of a job's path and owner that may give way to it, the oldest first."""
    record = job.record
    values = (*record.group, record.path, job.id, record.owner_uid)
    return [read_job(row) for row in connection.execute(_OLDER, values).fetchall()]


def supersede(connection: sqlite3.Connection, jobs: Sequence[Job], by: int) -> list[Job]:
    """Notes that these gave way, where they are as they were read and the newer one is there; returns those."""
    dropped = []
    for job in jobs:
        row = connection.execute(_SUPERSEDE, (by, job.id, job.record.revision, by)).fetchone()
        if row is not None:
            dropped.append(read_job(row))
    return dropped
