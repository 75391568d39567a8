"""Files that wait for the catalog: who asks it meanwhile, in which order they are listed, and what keeps none back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from ml_dash.errors import TABLE, Code
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Trouble
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow import outbox as under_test
from ml_dashd.flow.outbox import Outbox
from ml_dashd.ports import Catalog, Handed, JournalError

AWAY = Trouble(Code.CATALOG_UNREACHABLE, "away", TABLE[Code.CATALOG_UNREACHABLE].hint)
FILES = range(1, 23)


class Listing:
    """Stands for the catalog, and for the end of files."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self.away = True
        self.poisoned: set[int] = set()
        self.asked = 0
        self.batches: list[list[int]] = []
        self.late: Callable[[], Awaitable[None]] | None = None
        """What happens while the first files are listed."""
        self.all_of_them = asyncio.Event()
        self.refused = asyncio.Event()

    def trouble(self) -> Trouble | None:
        return AWAY if self.away else None

    async def get(self, _: Sequence[int]) -> list[FileRecord]:
        return []

    async def end(self, outbox: Outbox, jobs: Sequence[Job]) -> None:
        self.asked += 1
        await outbox.ask(self._take(jobs))

    async def _take(self, jobs: Sequence[Job]) -> None:
        if self.away:
            self.refused.set()
            raise JournalError("away", Code.CATALOG_UNREACHABLE)
        if self.poisoned & {job.id for job in jobs}:
            raise ValueError("a defect")
        self.batches.append([job.id for job in jobs])
        if self.late is not None:
            late, self.late = self.late, None
            await late()
        await self._journal.advance_all(jobs, State.DONE)
        if sum(map(len, self.batches)) == len(FILES) - len(self.poisoned):
            self.all_of_them.set()


@asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[tuple[SqliteJournal, Listing, Outbox]]:
    """Verified files, which came to the outbox one by one and in no order."""
    clock = SystemClock()
    journal = SqliteJournal(folder / "journal.sqlite", clock, NoFaults(), lambda _, __: Lane.SMALL)
    await journal.open()
    listing = Listing(journal)
    outbox = Outbox(journal, cast("Catalog", listing), clock)
    for number in random.Random(7).sample(FILES, len(FILES)):
        record = FileRecord(number, 0, "a", "b", "c", "", f"{number}.txt", 1, "text/plain", 1, 1, sha256="ab" * 32)
        ((job, _),) = await journal.accept_all([Handed(Job(record, Pin(PinKind.COPY)), number.to_bytes(16, "big"))])
        job = await journal.advance(job, State.SENDING, key=f"files/{number}")
        await outbox.put([await journal.advance(job, State.VERIFIED)], AWAY)
    running = asyncio.create_task(outbox.run(lambda jobs: listing.end(outbox, jobs)))
    try:
        yield journal, listing, outbox
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        journal.close()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "BATCH", 5)


async def test_what_waits_is_listed_in_batches_in_the_order_of_ids(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (journal, listing, outbox), asyncio.timeout(30):
        await listing.refused.wait()
        for lane in Lane:
            assert await journal.due(lane, SystemClock().now_ms(), [], 100) == [], "no worker has them"
        assert (await journal.left(SystemClock().now_ms())).held == len(FILES)
        assert {each.trouble.code for each in (await journal.backlog()).blocked} == {Code.CATALOG_UNREACHABLE}
        listing.away = False
        outbox.hasten()
        await listing.all_of_them.wait()
        assert [one for batch in listing.batches for one in batch] == list(FILES)
        assert [len(batch) for batch in listing.batches] == [5, 5, 5, 5, 2]
        assert outbox.trouble is None


async def test_one_probe_asks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "pause_s", lambda *_: 60.0)
    async with waiting(tmp_path) as (journal, listing, outbox), asyncio.timeout(30):
        await listing.refused.wait()
        assert outbox.trouble == AWAY
        for file_id in FILES:
            await outbox.put(await journal.get([file_id]), AWAY)
        assert listing.asked == 1, "one batch, once, until the next probe is due"
        outbox.hasten()
        listing.refused.clear()
        await listing.refused.wait()
        assert listing.asked == 2


async def test_what_comes_while_the_rest_is_listed_does_not_wait_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is lower: the round that goes on is past it."""
    monkeypatch.setattr(under_test, "IDLE_S", 3600.0)
    async with waiting(tmp_path) as (journal, listing, outbox), asyncio.timeout(30):
        await listing.refused.wait()
        (first,) = await journal.get([1])
        await journal.note(first, lane="small")  # it is not in the outbox yet
        listing.late = lambda: outbox.put([first], AWAY)
        listing.away = False
        outbox.hasten()
        await listing.all_of_them.wait()
        assert [one for batch in listing.batches for one in batch] == [*FILES[1:], 1]


async def test_a_file_that_can_not_be_listed_keeps_no_other_back(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (journal, listing, outbox), asyncio.timeout(30):
        listing.poisoned = {3, 11}
        listing.away = False
        outbox.hasten()
        await listing.all_of_them.wait()
        left = await journal.deferred(0, 100)
        assert [job.id for job in left] == [3, 11]
        listing.poisoned = set()
        listing.all_of_them.clear()
        outbox.hasten()
        await listing.all_of_them.wait()
        assert await journal.deferred(0, 100) == []


async def test_one_that_is_tried_again_is_back_in_its_lane(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (journal, listing, _), asyncio.timeout(30):
        await listing.refused.wait()
        (job,) = await journal.get([4])
        failed = await journal.advance(job, State.FAILED, trouble=AWAY, blocked=False)
        again = await journal.advance(failed, State.QUEUED, not_before_ms=0, trouble=None)
        assert [each.id for each in await journal.due(Lane.SMALL, 2**60, [], 100)] == [again.id]
