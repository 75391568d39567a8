"""The durable queue in SQLite: schema.sql is its shape; a state change is a compare-and-set with an event beside it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from ml_dashd.core.circuit import Extent
from ml_dashd.core.model import (
    Amendment,
    Fingerprint,
    Job,
    Pin,
    PinKind,
    SentPart,
    Trouble,
)
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import Delivery
from ml_dashd.core.states import TRANSITIONS, State
from ml_dashd.edge import numbering
from ml_dashd.edge.amending import amend
from ml_dashd.edge.database import Database
from ml_dashd.edge.deferred import defer, hold_deferred
from ml_dashd.edge.due import DUE, LISTED, OPEN, RUN_NOW, hold, release
from ml_dashd.edge.figures import FINISHED, FOREMOST
from ml_dashd.edge.job_rows import changed_columns, job_values, pin_columns, read_job
from ml_dashd.edge.journal_questions import HIGH_WATER, JournalQuestions
from ml_dashd.edge.moves import insert_all, move, move_all
from ml_dashd.edge.rows import (
    crc_blob,
    marks,
)
from ml_dashd.edge.share_rows import end_share
from ml_dashd.edge.superseding import supersede
from ml_dashd.edge.threads import unhurried
from ml_dashd.ports import Clock, Faults, Handed, Ready, Superseded

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


class _After:
    """What is to happen once files are taken in."""

    def __init__(self, ready: Ready | None) -> None:
        self._ready = ready
        self._then: Callable[[], None] | None = None

    def prepared(self, kept: list[tuple[Job, bool]]) -> list[tuple[Job, bool]]:
        if self._ready is not None:
            self._then = self._ready([job for job, _ in kept])
        return kept

    def __call__(self) -> None:
        if self._then is not None:
            self._then()


class SqliteJournal(JournalQuestions):
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
        super().__init__(Database(path, MIGRATIONS, faults, "journal", committing))

    async def open(self) -> None:
        """Fills the table of moves that the trigger reads, and takes away what a drain that was killed has left."""

        def work(connection: sqlite3.Connection) -> None:
            _fill_transitions(connection)
            connection.execute(_RELAX)

        await self._database.call(work)

    def close(self) -> None:
        self._database.close()

    # ---- hand-off

    async def accept_all(self, files: Sequence[Handed], ready: Ready | None = None) -> list[tuple[Job, bool]]:
        rows, after = [self._row(one) for one in files], _After(ready)

        def work(connection: sqlite3.Connection) -> list[tuple[Job, bool]]:
            return after.prepared(insert_all(connection, files, rows))

        return await self._database.call(work, spare=True, after=after)

    async def accept_made(self, make: Callable[[], Handed], ready: Ready | None = None) -> tuple[Job, bool]:
        after = _After(ready)

        def work(connection: sqlite3.Connection) -> tuple[Job, bool]:
            one = make()
            return after.prepared(insert_all(connection, [one], [self._row(one)]))[0]

        return await unhurried(self._database.submit(work, spare=True, after=after))

    def _row(self, one: Handed) -> dict[str, Any]:
        lane = self._lane_of(one.job.pin.kind, one.job.record.size_bytes)
        return job_values(one.job) | {"request_key": one.key, "lane": lane}

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

    async def supersede(self, jobs: Sequence[Job], by: int) -> list[Job]:
        return await self._database.call(lambda connection: supersede(connection, jobs, by), spare=True)

    async def end_share(self, delivery: Delivery) -> None:
        await self._database.call(lambda connection: end_share(connection, delivery), spare=True)

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

    async def add_part(self, job: Job, part: SentPart) -> None:
        values = (
            job.id, job.upload_id, part.number, part.size_bytes, part.etag, part.checksum, crc_blob(part.crc64nvme),
        )  # fmt: skip
        await self._database.call(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", values
            ).close()
        )

    async def number(self, ids: Mapping[numbering.Key, int]) -> None:
        now = self._clock.now_ms()
        await self._database.call(lambda connection: numbering.write(connection, ids, now), spare=True)

    async def forget_numbers(self, before_ms: int) -> None:
        await self._database.call(lambda connection: numbering.forget(connection, before_ms))

    # ---- the queue

    async def hasten(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(f"UPDATE files SET not_before_ms = 0 WHERE {DUE} AND not_before_ms > 0")
            connection.execute(_INDEX_OF_DRAIN)

        await self._database.call(work)

    async def relax(self) -> None:
        await self._database.call(lambda connection: connection.execute(_RELAX).close())

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

    async def defer(self, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
        await self._database.call(lambda connection: defer(connection, ids, until_ms, trouble))

    async def hold_deferred(self, until_ms: int, trouble: Trouble) -> None:
        await self._database.call(lambda connection: hold_deferred(connection, until_ms, trouble))

    async def forget(self, ids: Sequence[int]) -> None:
        statement = f"DELETE FROM files WHERE id IN ({marks(ids)}) AND {FINISHED}"

        def work(connection: sqlite3.Connection) -> None:
            (highest,) = connection.execute(HIGH_WATER).fetchone()  # it may be among those that go
            connection.execute(_SET, ("high_water", str(highest)))
            connection.execute(statement, ids)

        await self._database.call(work)

    def trouble(self) -> Trouble | None:
        return self._database.trouble()

    def unsure(self) -> bool:
        return self._database.unsure()

    async def probe(self) -> None:
        await self._database.call(
            lambda connection: connection.execute(_SET, ("probed_ms", str(self._clock.now_ms()))).close(), spare=True
        )

    async def set_setting(self, name: str, value: str) -> None:
        await self._database.call(lambda connection: connection.execute(_SET, (name, value)).close())


def _fill_transitions(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM transitions")
    moves = [(old, new, OPEN[new]) for old, row in TRANSITIONS.items() for new in row]
    connection.executemany("INSERT INTO transitions VALUES (?, ?, ?)", moves)
