"""What the journal is asked: nothing of it changes by that."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from ml_dash.errors import Code, error
from ml_dashd.core.circuit import Extent
from ml_dashd.core.figures import Backlog, Left, Summary, Unsent
from ml_dashd.core.model import EVERYBODY, Experiment, Job, Scope, Selection, SentPart
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import Delivery
from ml_dashd.edge import figures, numbering
from ml_dashd.edge.database import Database
from ml_dashd.edge.deferred import WAITS
from ml_dashd.edge.due import DUE, LISTED, LOWEST, Turns, Wanted, held
from ml_dashd.edge.figures import FINISHED, FOREMOST, LEFT
from ml_dashd.edge.job_rows import READ_COLUMNS, read_job
from ml_dashd.edge.listing import read_selection
from ml_dashd.edge.rows import KEY_OF_SHARE, marks, read_crc, scope_where
from ml_dashd.edge.share_rows import read_shares
from ml_dashd.edge.superseding import older_versions

# The setting is written when rows go, so that a hand-off writes one page less.
HIGH_WATER = """
SELECT max(
    coalesce((SELECT max(id) FROM files), 0),
    coalesce((SELECT max(id) FROM numbers), 0),
    coalesce((SELECT CAST(value AS INTEGER) FROM settings WHERE name = 'high_water'), 0)
)
"""


class JournalQuestions:
    """The part of the port `Journal` that only reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = Turns()

    async def handed(self, owner_uid: int, key: bytes) -> Job | None:
        rows = await self._rows("SELECT * FROM files WHERE owner_uid = ? AND request_key = ?", (owner_uid, key))
        return read_job(rows[0]) if rows else None

    async def get(self, ids: Sequence[int]) -> list[Job]:
        return await self._jobs(f"WHERE id IN ({marks(ids)})", ids)

    async def select(self, selection: Selection) -> list[Job]:
        listed = f"{LISTED} AND NOT cancel_requested{'' if selection.pending else ' AND NOT pending'}"
        return await self._database.call(
            lambda connection: [
                read_job(row) for row in read_selection(connection, selection, READ_COLUMNS, listed, narrows=False)
            ]
        )

    async def unfinished(self, selection: Selection) -> tuple[int, list[Job]]:
        return await self._database.call(lambda connection: figures.unfinished(connection, selection))

    async def holdup(self, ids: Sequence[int]) -> Job | None:
        found = await self._jobs(
            "WHERE id IN (SELECT value FROM json_each(?)) AND (state <> 'DONE' OR cancel_requested) "
            "ORDER BY cancel_requested OR state = 'CANCELLED' DESC, state = 'FAILED' DESC, id LIMIT 1",
            (json.dumps(list(ids)),),
        )
        return found[0] if found else None

    async def withdrawn(self, ids: Sequence[int]) -> set[int]:
        rows = await self._rows(f"SELECT id FROM files WHERE id IN ({marks(ids)}) AND cancel_requested", ids)
        return {row["id"] for row in rows}

    async def content(self, job: Job) -> bytes:
        found = await self.contents([job.id])
        if job.id not in found:  # let go: the file has been stored since
            raise error(Code.SOURCE_LOST, f"the journal no longer has the content of {job.record.path} (file {job.id})")
        return found[job.id]

    async def contents(self, ids: Sequence[int]) -> dict[int, bytes]:
        rows = await self._rows(f"SELECT file_id, content FROM contents WHERE file_id IN ({marks(ids)})", ids)
        return {row["file_id"]: bytes(row["content"]) for row in rows}

    async def parts(self, job: Job) -> list[SentPart]:
        rows = await self._rows(
            "SELECT * FROM parts WHERE file_id = ? AND upload_id = ? ORDER BY number", (job.id, job.upload_id)
        )
        return [
            SentPart(row["number"], row["size_bytes"], row["etag"], row["checksum"], read_crc(row["crc64nvme"]))
            for row in rows
        ]

    async def of_share(self, share_key: str) -> list[Job]:
        return await self._jobs(f"WHERE share IS NOT NULL AND {KEY_OF_SHARE} = ?", [share_key])

    async def older(self, job: Job) -> list[Job]:
        return await self._database.call(lambda connection: older_versions(connection, job))

    async def numbers(self, keys: Sequence[numbering.Key]) -> dict[numbering.Key, int]:
        return await self._database.call(lambda connection: numbering.read(connection, keys))

    async def shares(self) -> list[Delivery]:
        return await self._database.call(read_shares)

    async def due(
        self,
        lane: Lane,
        now_ms: int,
        skip: Collection[int],
        limit: int,
        *,
        without: Collection[Experiment] = (),
        above: int | None = None,
    ) -> list[Job]:
        wanted = Wanted(lane, tuple(skip), limit, frozenset(without), LOWEST if above is None else above)

        def work(connection: sqlite3.Connection) -> list[Job]:
            ids = self._turns.due(connection, now_ms, wanted)
            columns = ", ".join(READ_COLUMNS)
            rows = connection.execute(f"SELECT {columns} FROM files WHERE id IN ({marks(ids)})", ids)
            jobs = {job.id: job for job in map(read_job, rows)}
            return [jobs[file_id] for file_id in ids]

        return await self._database.call(work)

    async def foremost(self, lane: Lane, now_ms: int, limit: int) -> list[Job]:
        order = FOREMOST.format(left=LEFT[lane])
        return await self._jobs(
            f"WHERE {DUE} AND lane = ? AND not_before_ms <= ? ORDER BY {order} LIMIT ?", [lane, now_ms, limit]
        )

    async def next_due_ms(self, now_ms: int) -> int | None:
        (row,) = await self._rows(
            f"SELECT min(not_before_ms) AS at FROM files WHERE {DUE} AND not_before_ms > 0 AND not_before_ms > ?",
            (now_ms,),
        )
        at: int | None = row["at"]
        return at

    async def due_count(self) -> int:
        (row,) = await self._rows(f"SELECT count(*) AS files FROM files WHERE {DUE}")
        files: int = row["files"]
        return files

    async def is_done_with(self, last: int) -> bool:
        return not await self._rows(f"SELECT 1 FROM files WHERE {DUE} AND +id <= ? LIMIT 1", (last,))

    async def held(self, extent: Extent, skip: Collection[int]) -> Job | None:
        where, values = held(extent, skip)
        jobs = await self._jobs(f"WHERE {where}", values)
        return jobs[0] if jobs else None

    async def deferred(self, after: int, limit: int) -> list[Job]:
        return await self._jobs(f"WHERE {WAITS} AND id > ? ORDER BY id LIMIT ?", (after, limit))

    async def stuck(self, scope: Scope, after: int, limit: int) -> list[Job]:
        mine, values = scope_where(scope)
        where = f"WHERE {LISTED} AND (state = 'FAILED' OR blocked) AND NOT cancel_requested AND id > ? AND {mine}"
        return await self._jobs(f"{where} ORDER BY id LIMIT ?", [after, *values, limit])

    async def pinned(self) -> list[Job]:
        return await self._jobs(f"WHERE {LISTED}", ())

    async def referred(self) -> set[str]:
        rows = await self._rows(f"SELECT pin_source FROM files WHERE pin_kind = 'object' AND {LISTED}")
        return {row["pin_source"] for row in rows}

    async def finished(self, before_ms: int, limit: int) -> list[Job]:
        return await self._jobs(f"WHERE {FINISHED} AND updated_ms < ? ORDER BY updated_ms LIMIT ?", (before_ms, limit))

    async def unclean(self, limit: int) -> list[Job]:
        where = f"{LISTED} AND state = 'FAILED' AND key IS NOT NULL"
        return await self._jobs(f"INDEXED BY files_listed WHERE {where} ORDER BY id LIMIT ?", (limit,))

    async def left(self, now_ms: int) -> Left:
        return await self._database.call(lambda connection: figures.left(connection, now_ms))

    async def unsent(self, failed_since_ms: int, limit: int) -> list[Unsent]:
        return await self._database.call(lambda connection: figures.unsent(connection, failed_since_ms, limit))

    async def failed_count(self, since_ms: int) -> int:
        return await self._database.call(lambda connection: figures.failed_count(connection, since_ms))

    async def summary(self, scope: Scope = EVERYBODY) -> Summary:
        return await self._database.call(lambda connection: figures.summary(connection, scope))

    async def backlog(self) -> Backlog:
        return await self._database.call(figures.backlog)

    async def high_water(self) -> int:
        ((highest,),) = await self._rows(HIGH_WATER)
        return int(highest)

    async def setting(self, name: str) -> str | None:
        rows = await self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        return rows[0]["value"] if rows else None

    async def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return await self._database.call(lambda connection: connection.execute(statement, values).fetchall())

    async def _jobs(self, rest: str, values: Sequence[Any]) -> list[Job]:
        columns = ", ".join(READ_COLUMNS)
        rows = await self._rows(f"SELECT {columns} FROM files {rest}", values)
        return [read_job(row) for row in rows]
