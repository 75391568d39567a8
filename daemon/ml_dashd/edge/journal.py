"""The durable queue in SQLite: schema.sql is its shape; a state change is a compare-and-set with an event beside it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from ml_dash.errors import Code, error
from ml_dashd.core.circuit import Extent
from ml_dashd.core.figures import Backlog, Left, Summary, Unsent
from ml_dashd.core.model import (
    EVERYBODY,
    Amendment,
    Experiment,
    Fingerprint,
    Job,
    Pin,
    PinKind,
    Scope,
    Selection,
    SentPart,
    Trouble,
)
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import Delivery
from ml_dashd.core.states import TRANSITIONS, State
from ml_dashd.edge import figures, numbering
from ml_dashd.edge.amending import amend
from ml_dashd.edge.database import Database
from ml_dashd.edge.deferred import WAITS, defer, hold_deferred
from ml_dashd.edge.due import DUE, LISTED, LOWEST, OPEN, RUN_NOW, Turns, Wanted, held, hold, release
from ml_dashd.edge.figures import FINISHED, FOREMOST, LEFT
from ml_dashd.edge.job_rows import READ_COLUMNS, changed_columns, job_values, pin_columns, read_job
from ml_dashd.edge.listing import read_selection
from ml_dashd.edge.moves import insert_all, move, move_all
from ml_dashd.edge.rows import (
    KEY_OF_SHARE,
    crc_blob,
    marks,
    read_crc,
    scope_where,
)
from ml_dashd.edge.share_rows import end_share, read_shares
from ml_dashd.edge.superseding import older_versions, supersede
from ml_dashd.edge.system import unhurried
from ml_dashd.ports import Clock, Faults, Handed, Superseded

MIGRATIONS = re.split(
    r"^-- ---- step \d+:.*$", resources.files(__package__).joinpath("schema.sql").read_text(), flags=re.MULTILINE
)
"""The steps of schema.sql, the first of which makes the tables. One that was released is never changed."""
# Only while a drain runs: a hand-off writes one page more with it.
_INDEX_OF_DRAIN = f"""
CREATE INDEX IF NOT EXISTS files_foremost ON files (lane, {FOREMOST.format(left="size_bytes")}) WHERE {DUE}
"""
_RELAX = "DROP INDEX IF EXISTS files_foremost"
_SET = "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
# The setting is written when rows go, so that a hand-off writes one page less.
_HIGH_WATER = """
SELECT max(
    coalesce((SELECT max(id) FROM files), 0),
    coalesce((SELECT max(id) FROM numbers), 0),
    coalesce((SELECT CAST(value AS INTEGER) FROM settings WHERE name = 'high_water'), 0)
)
"""


class SqliteJournal:
    """The port `Journal`. `lane_of` sorts a file into a lane when it is accepted; `committing` times."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        faults: Faults,
        lane_of: Callable[[PinKind, int], Lane],
        committing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._lane_of = lane_of
        self._turns = Turns()
        self._database = Database(path, MIGRATIONS, faults, "journal", committing)

    async def open(self) -> None:
        """Fills the table of moves that the trigger reads, and takes away what a drain that was killed has left."""

        def work(connection: sqlite3.Connection) -> None:
            _fill_transitions(connection)
            connection.execute(_RELAX)

        await self._database.call(work)

    def close(self) -> None:
        self._database.close()

    # ---- hand-off

    async def accept_all(self, files: Sequence[Handed]) -> list[tuple[Job, bool]]:
        rows = [self._row(one) for one in files]
        return await self._database.call(lambda connection: insert_all(connection, files, rows), spare=True)

    async def accept_made(self, make: Callable[[], Handed]) -> tuple[Job, bool]:
        def work(connection: sqlite3.Connection) -> tuple[Job, bool]:
            one = make()
            return insert_all(connection, [one], [self._row(one)])[0]

        return await unhurried(self._database.submit(work, spare=True))

    def _row(self, one: Handed) -> dict[str, Any]:
        lane = self._lane_of(one.job.pin.kind, one.job.record.size_bytes)
        return job_values(one.job) | {"request_key": one.key, "lane": lane}

    async def handed(self, owner_uid: int, key: bytes) -> Job | None:
        rows = await self._rows("SELECT * FROM files WHERE owner_uid = ? AND request_key = ?", (owner_uid, key))
        return read_job(rows[0]) if rows else None

    # ---- the way of a file

    async def advance(self, job: Job, to: State, **changes: Any) -> Job:
        return await self._change(job, changes, to)

    async def advance_all(self, jobs: Sequence[Job], to: State, changes: Sequence[Mapping[str, Any]] = ()) -> list[Job]:
        now, each = self._clock.now_ms(), changes or [{}] * len(jobs)
        return await self._database.call(lambda connection: move_all(connection, jobs, to, each, now)) if jobs else []

    async def note(self, job: Job, **changes: Any) -> Job:
        return await self._change(job, changes, None)

    async def _change(self, job: Job, changes: dict[str, Any], to: State | None) -> Job:
        values = changed_columns(changes) | {"updated_ms": self._clock.now_ms()}
        if to is State.QUEUED:  # it may have waited for the catalog
            values["lane"] = self._lane_of(job.pin.kind, job.record.size_bytes)
        return await self._database.call(lambda connection: move(connection, job, to, values))

    async def repin(self, job: Job, pin: Pin, *, on_disk: bool = True) -> None:
        values = pin_columns(pin) | {"on_disk": on_disk, "updated_ms": self._clock.now_ms()}
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        # One that was given up while it was copied needs no copy: it would lie in the spool for nothing.
        needing = f"{LISTED} AND state <> '{State.FAILED}' AND NOT cancel_requested"
        where = f"id = :_id AND pin_kind = :_kind AND {needing}"
        bound = values | {"_id": job.id, "_kind": job.pin.kind}

        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute(f"UPDATE files SET {assignments} WHERE {where}", bound).rowcount:
                raise Superseded(f"file {job.id} no longer needs its {job.pin.kind}")

        await self._database.call(work)

    async def retime(self, job: Job, mark: Fingerprint) -> None:
        statement = (
            "UPDATE files SET mtime_ns = ?, ctime_ns = ? WHERE id = ? AND pin_kind = ? AND device = ? AND inode = ?"
        )
        bound = (mark.mtime_ns, mark.ctime_ns, job.id, job.pin.kind, mark.device, mark.inode)
        await self._database.call(lambda connection: connection.execute(statement, bound).close())

    async def mark_on_disk(self, job: Job) -> None:
        await self._database.call(
            lambda connection: connection.execute(
                "UPDATE files SET on_disk = 1 WHERE id = ? AND pin_kind = ?", (job.id, job.pin.kind)
            ).close()
        )

    async def set_sha256(self, file_id: int, sha256: str) -> None:
        await self._database.call(
            lambda connection: connection.execute(
                "UPDATE files SET sha256 = ? WHERE id = ? AND sha256 IS NULL", (sha256, file_id)
            ).close()
        )

    async def amend(self, file_id: int, words: Amendment) -> Job | None:
        where, now = f"{LISTED} AND NOT cancel_requested", self._clock.now_ms()
        row = await self._database.call(lambda connection: amend(connection, file_id, words, now, where), spare=True)
        return None if row is None else read_job(row)

    async def cancel(self, ids: Sequence[int]) -> list[Job]:
        statement = (
            f"UPDATE files SET cancel_requested = 1, not_before_ms = 0 "
            f"WHERE id IN ({marks(ids)}) AND state NOT IN ('DONE', 'CANCELLED') RETURNING *"
        )
        return await self._database.call(
            lambda connection: [read_job(row) for row in connection.execute(statement, ids).fetchall()]
        )

    async def older(self, job: Job) -> list[Job]:
        return await self._database.call(lambda connection: older_versions(connection, job))

    async def supersede(self, jobs: Sequence[Job], by: int) -> list[Job]:
        return await self._database.call(lambda connection: supersede(connection, jobs, by), spare=True)

    async def of_share(self, share_key: str) -> list[Job]:
        return await self._jobs(f"WHERE share IS NOT NULL AND {KEY_OF_SHARE} = ?", [share_key])

    async def end_share(self, delivery: Delivery) -> None:
        await self._database.call(lambda connection: end_share(connection, delivery), spare=True)

    async def shares(self) -> list[Delivery]:
        return await self._database.call(read_shares)

    async def note_stuck(self, share_key: str, *, stuck: bool) -> None:
        await self._database.call(
            lambda connection: connection.execute(
                "UPDATE shares SET stuck = ? WHERE key = ? AND stuck <> ?", (stuck, share_key, stuck)
            ).close()
        )

    async def forget_share(self, share_key: str) -> None:
        await self._database.call(
            lambda connection: connection.execute("DELETE FROM shares WHERE key = ?", (share_key,)).close()
        )

    async def withdrawn(self, ids: Sequence[int]) -> set[int]:
        rows = await self._rows(f"SELECT id FROM files WHERE id IN ({marks(ids)}) AND cancel_requested", ids)
        return {row["id"] for row in rows}

    async def add_part(self, job: Job, part: SentPart) -> None:
        values = (
            job.id, job.upload_id, part.number, part.size_bytes, part.etag, part.checksum, crc_blob(part.crc64nvme),
        )  # fmt: skip
        await self._database.call(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", values
            ).close()
        )

    async def parts(self, job: Job) -> list[SentPart]:
        rows = await self._rows(
            "SELECT * FROM parts WHERE file_id = ? AND upload_id = ? ORDER BY number", (job.id, job.upload_id)
        )
        return [
            SentPart(row["number"], row["size_bytes"], row["etag"], row["checksum"], read_crc(row["crc64nvme"]))
            for row in rows
        ]

    async def numbers(self, keys: Sequence[numbering.Key]) -> dict[numbering.Key, int]:
        return await self._database.call(lambda connection: numbering.read(connection, keys))

    async def number(self, ids: Mapping[numbering.Key, int]) -> None:
        now = self._clock.now_ms()
        await self._database.call(lambda connection: numbering.write(connection, ids, now), spare=True)

    async def forget_numbers(self, before_ms: int) -> None:
        await self._database.call(lambda connection: numbering.forget(connection, before_ms))

    async def content(self, job: Job) -> bytes:
        found = await self.contents([job.id])
        if job.id not in found:  # let go: the file has been stored since
            raise error(Code.SOURCE_LOST, f"the journal no longer has the content of {job.record.path} (file {job.id})")
        return found[job.id]

    async def contents(self, ids: Sequence[int]) -> dict[int, bytes]:
        rows = await self._rows(f"SELECT file_id, content FROM contents WHERE file_id IN ({marks(ids)})", ids)
        return {row["file_id"]: bytes(row["content"]) for row in rows}

    # ---- questions

    async def get(self, ids: Sequence[int]) -> list[Job]:
        return await self._jobs(f"WHERE id IN ({marks(ids)})", ids)

    async def holdup(self, ids: Sequence[int]) -> Job | None:
        found = await self._jobs(
            "WHERE id IN (SELECT value FROM json_each(?)) AND (state <> 'DONE' OR cancel_requested) "
            "ORDER BY cancel_requested OR state = 'CANCELLED' DESC, state = 'FAILED' DESC, id LIMIT 1",
            (json.dumps(list(ids)),),
        )
        return found[0] if found else None

    async def select(self, selection: Selection) -> list[Job]:
        listed = f"{LISTED} AND NOT cancel_requested{'' if selection.pending else ' AND NOT pending'}"
        return await self._database.call(
            lambda connection: [
                read_job(row) for row in read_selection(connection, selection, READ_COLUMNS, listed, narrows=False)
            ]
        )

    async def unfinished(self, selection: Selection) -> tuple[int, list[Job]]:
        return await self._database.call(lambda connection: figures.unfinished(connection, selection))

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

    async def hasten(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(f"UPDATE files SET not_before_ms = 0 WHERE {DUE} AND not_before_ms > 0")
            connection.execute(_INDEX_OF_DRAIN)

        await self._database.call(work)

    async def relax(self) -> None:
        await self._database.call(lambda connection: connection.execute(_RELAX).close())

    async def left(self, now_ms: int) -> Left:
        return await self._database.call(lambda connection: figures.left(connection, now_ms))

    async def unsent(self, failed_since_ms: int, limit: int) -> list[Unsent]:
        return await self._database.call(lambda connection: figures.unsent(connection, failed_since_ms, limit))

    async def failed_count(self, since_ms: int) -> int:
        return await self._database.call(lambda connection: figures.failed_count(connection, since_ms))

    async def is_done_with(self, last: int) -> bool:
        return not await self._rows(f"SELECT 1 FROM files WHERE {DUE} AND +id <= ? LIMIT 1", (last,))

    async def stuck(self, scope: Scope, after: int, limit: int) -> list[Job]:
        mine, values = scope_where(scope)
        where = f"WHERE {LISTED} AND (state = 'FAILED' OR blocked) AND NOT cancel_requested AND id > ? AND {mine}"
        return await self._jobs(f"{where} ORDER BY id LIMIT ?", [after, *values, limit])

    async def retry_blocked(self) -> None:
        await self._database.call(
            lambda connection: connection.execute(
                f"UPDATE files SET {RUN_NOW} WHERE {DUE} AND not_before_ms > 0 AND blocked"
            ).close()
        )

    async def hold(self, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
        await self._database.call(lambda connection: hold(connection, ids, until_ms, trouble))

    async def release(self, extent: Extent, most: int) -> int:
        return await self._database.call(lambda connection: release(connection, extent, most))

    async def held(self, extent: Extent, skip: Collection[int]) -> Job | None:
        where, values = held(extent, skip)
        jobs = await self._jobs(f"WHERE {where}", values)
        return jobs[0] if jobs else None

    async def defer(self, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
        await self._database.call(lambda connection: defer(connection, ids, until_ms, trouble))

    async def deferred(self, after: int, limit: int) -> list[Job]:
        return await self._jobs(f"WHERE {WAITS} AND id > ? ORDER BY id LIMIT ?", (after, limit))

    async def hold_deferred(self, until_ms: int, trouble: Trouble) -> None:
        await self._database.call(lambda connection: hold_deferred(connection, until_ms, trouble))

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

    async def forget(self, ids: Sequence[int]) -> None:
        statement = f"DELETE FROM files WHERE id IN ({marks(ids)}) AND {FINISHED}"

        def work(connection: sqlite3.Connection) -> None:
            (highest,) = connection.execute(_HIGH_WATER).fetchone()  # it may be among those that go
            connection.execute(_SET, ("high_water", str(highest)))
            connection.execute(statement, ids)

        await self._database.call(work)

    async def summary(self, scope: Scope = EVERYBODY) -> Summary:
        return await self._database.call(lambda connection: figures.summary(connection, scope))

    async def backlog(self) -> Backlog:
        return await self._database.call(figures.backlog)

    def trouble(self) -> Trouble | None:
        return self._database.trouble()

    def unsure(self) -> bool:
        return self._database.unsure()

    async def probe(self) -> None:
        await self._database.call(
            lambda connection: connection.execute(_SET, ("probed_ms", str(self._clock.now_ms()))).close(), spare=True
        )

    async def high_water(self) -> int:
        ((highest,),) = await self._rows(_HIGH_WATER)
        return int(highest)

    async def setting(self, name: str) -> str | None:
        rows = await self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        return rows[0]["value"] if rows else None

    async def set_setting(self, name: str, value: str) -> None:
        await self._database.call(lambda connection: connection.execute(_SET, (name, value)).close())

    async def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return await self._database.call(lambda connection: connection.execute(statement, values).fetchall())

    async def _jobs(self, rest: str, values: Sequence[Any]) -> list[Job]:
        columns = ", ".join(READ_COLUMNS)
        rows = await self._rows(f"SELECT {columns} FROM files {rest}", values)
        return [read_job(row) for row in rows]


def _fill_transitions(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM transitions")
    moves = [(old, new, OPEN[new]) for old, row in TRANSITIONS.items() for new in row]
    connection.executemany("INSERT INTO transitions VALUES (?, ?, ?)", moves)
