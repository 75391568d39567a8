"""Files that were stored elsewhere before, and keep their ids: what is here already is never replaced."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from weakref import WeakValueDictionary

from ml_dash.errors import Code, error
from ml_dash.messages import Origin
from ml_dashd.core.ids import time_of
from ml_dashd.core.model import FileRecord, Job
from ml_dashd.ports import Catalog, Clock, Ids, Journal, JournalError

AHEAD_MS = 3_600_000
"""How far an id, or a time, may be in the future: clocks differ, and ids that are given out here come after it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Arrivals:
    """Decides whether a file may come with the id that it had elsewhere."""

    def __init__(self, journal: Journal, catalog: Catalog, ids: Ids, clock: Clock) -> None:
        self._journal = journal
        self._catalog = catalog
        self._ids = ids
        self._clock = clock
        self._coming: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """One hand an id: of two that bring it at the same moment, the second finds the first one's file."""

    def name(self, record: FileRecord, origin: Origin) -> FileRecord:
        """The record with what it keeps. Raises INVALID_ARGUMENT for what can't be true."""
        latest = self._clock.now_ms() + AHEAD_MS
        if not origin.id or max(time_of(origin.id), origin.created_ms, origin.updated_ms) > latest:
            what = f"the id {origin.id} of {record.path}, or its time, is of the future, or none"
            raise error(Code.INVALID_ARGUMENT, what, "set the clock of both machines")
        if _SHA256.fullmatch(origin.sha256) is None:
            raise error(Code.INVALID_ARGUMENT, f"the SHA-256 of {record.path} is not 64 hexadecimal digits")
        return replace(
            record,
            id=origin.id,
            created_ms=origin.created_ms,
            updated_ms=origin.updated_ms,
            sha256=origin.sha256,
        )

    @asynccontextmanager
    async def claim(self, record: FileRecord) -> AsyncIterator[Job | None]:
        """Holds the id while its file is taken in; gives the file that is here already, if it is the same.

        The same is who hands it over, where it belongs, and its SHA-256: then it is answered as it is here, deleted or
        not. Raises ID_TAKEN for any other, of which nothing is told.
        """
        async with self._coming.setdefault(record.id, asyncio.Lock()):
            self._ids.pass_over(record.id)
            yield await self._known(record)

    async def _known(self, record: FileRecord) -> Job | None:
        jobs = await self._journal.get([record.id])
        try:
            stored = await self._catalog.get([record.id])
        except JournalError:  # another file of that id is then found when this one is listed (flow/finish.py)
            stored = []
        if not jobs and not stored:
            return None
        known = Job.stored(stored[0]) if stored else jobs[0]
        if _identity(known.record) != _identity(record):
            what = f"{record.path}: another file has the id {record.id} here"
            raise error(Code.ID_TAKEN, what)
        return known


def _identity(record: FileRecord) -> tuple[object, ...]:
    return record.owner_uid, record.group, record.prefix, record.filename, record.sha256
