"""A file that is deleted in the moment in which it is listed: other nodes hear of it, at last with the next commits.

On real SQLite; the catalog may go away with its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dash.errors import TABLE, Code
from ml_dashd.core.model import EVERYBODY, FileRecord, Job, Pin, PinKind, Trouble
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.outbox import Outbox
from ml_dashd.ports import Handed, JournalError, Store
from tests.edge.journal_rig import opened

AWAY = Trouble(Code.CATALOG_UNREACHABLE, "away", TABLE[Code.CATALOG_UNREACHABLE].hint)
DELETED, OTHER = 7, 8


class Meter:
    """Nobody looks."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None


class Objects:
    """What the store has, and whether the fleet still listed an object when it was removed."""

    def __init__(self, catalog: FleetCatalog) -> None:
        self.keys = {f"files/{number}" for number in (DELETED, OTHER)}
        self._catalog = catalog

    async def delete(self, key: str) -> None:
        assert f"files/{DELETED}" == key
        assert await self._catalog.listed() == [OTHER], "what is listed has its object"
        self.keys.discard(key)


class FleetCatalog(SqliteCatalog):
    """The user deletes a file while the catalog answers, and it may be away from then on."""

    journal: SqliteJournal
    goes_away = False
    away = False

    async def commit(self, records: Sequence[FileRecord]) -> list[int]:
        self._ask()
        gone = await super().commit(records)
        await self.journal.cancel([DELETED])
        self.away, self.goes_away = self.goes_away, False
        return gone

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        self._ask()
        return await super().get(ids)

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        self._ask()
        return await super().delete(ids, at_ms)

    async def listed(self) -> list[int]:
        """As another node sees it, to which it is not away."""
        return [record.id for record in await self.newer(0, EVERYBODY, 9)]

    def trouble(self) -> Trouble | None:
        return AWAY if self.away else None

    def _ask(self) -> None:
        if self.away:
            raise JournalError("away", Code.CATALOG_UNREACHABLE)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with opened(tmp_path / "journal.sqlite") as made:
        yield made


@pytest.fixture
async def catalog(tmp_path: Path, journal: SqliteJournal) -> AsyncIterator[FleetCatalog]:
    made = FleetCatalog(tmp_path / "catalog.sqlite", NoFaults())
    made.journal = journal
    yield made
    await made.close()


async def verified(journal: SqliteJournal) -> list[Job]:
    files = [
        FileRecord(number, 0, "a", "b", "c", "", f"{number}.txt", 1, "text/plain", 1, 1, sha256="ab" * 32)
        for number in (DELETED, OTHER)
    ]
    taken = [Handed(Job(one, Pin(PinKind.INLINE), on_disk=True), one.id.to_bytes(16, "big"), b"x") for one in files]
    jobs = [job for job, _ in await journal.accept_all(taken)]
    jobs = await journal.advance_all(jobs, State.SENDING, [{"key": f"files/{job.id}"} for job in jobs])
    return await journal.advance_all(jobs, State.VERIFIED)


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
async def test_a_deletion_in_the_moment_of_a_commit_reaches_the_fleet(
    journal: SqliteJournal, catalog: FleetCatalog, away: bool
) -> None:
    objects, unused, clock = Objects(catalog), cast("Any", None), SystemClock()
    outbox, bell = Outbox(journal, catalog, clock), Bell()
    finish = Finish(
        journal=journal, store=cast("Store", objects), catalog=catalog, pins=unused, threads=unused, bell=bell,
        clock=clock, faults=NoFaults(), meter=cast("Any", Meter()), outbox=outbox,
    )  # fmt: skip
    jobs = await verified(journal)
    catalog.goes_away = away
    await finish.commit(jobs)
    if away:
        assert await catalog.listed() == [DELETED, OTHER], "the others can't be told"
        assert [job.id for job in await journal.deferred(0, 9)] == [DELETED], "it waits as any commit does"
        assert objects.keys == {"files/7", "files/8"}
        catalog.away, rung = False, bell.listen()
        running = asyncio.create_task(outbox.run(finish.list_all))
        await bell.wait(rung, 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await catalog.listed() == [OTHER]
    assert [job.state for job in await journal.get([DELETED, OTHER])] == [State.CANCELLED, State.DONE]
    assert objects.keys == {"files/8"}
