"""Which files are under way in a drain: the worker on a real journal, with an uploader that does as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, SentPart
from ml_dashd.core.schedule import DRAIN_WIDTH, WIDTH, Lane, lane
from ml_dashd.core.states import State
from ml_dashd.edge.faults import NoFaults, NoMeter
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.batch import Batch
from ml_dashd.flow.circuit import Breaker
from ml_dashd.flow.outbox import Outbox
from ml_dashd.flow.worker import Worker
from ml_dashd.ports import Handed

MIB = 1 << 20
SMALL, LARGE = 5 * MIB, 100 * MIB
"""Smaller ones go many together (flow/batch.py)."""


class Uploads:
    """Stands for the uploader: a file is under way until the test lets it end, or the worker breaks it off."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal
        self._changed = asyncio.Condition()
        self._ends: dict[int, asyncio.Event] = {}
        self.begun: list[int] = []

    async def run(self, job: Job) -> None:
        self.begun.append(job.id)
        self._ends[job.id] = asyncio.Event()
        await self._tell()
        try:
            await self._ends[job.id].wait()
            await self._journal.advance(job, State.CANCELLED)
        finally:
            del self._ends[job.id]
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def end(self, file_id: int) -> None:
        self._ends[file_id].set()

    async def until(self, *under_way: int) -> None:
        """Returns once exactly these are under way."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: sorted(self._ends) == sorted(under_way))


class Nowhere:
    """Stands for the catalog, and for the end of files: none of these comes so far."""

    async def get(self, ids: list[int]) -> list[FileRecord]:
        return []

    async def list_all(self, jobs: list[Job]) -> None:
        raise AssertionError(jobs)


class Queue:
    """A worker, its journal and what it uploads. Files are named by their ids."""

    def __init__(self, journal: SqliteJournal, finish: Any = None) -> None:
        self.journal = journal
        self.uploads = Uploads(journal)
        self.worker = Worker(  # type: ignore[arg-type]
            journal, self.uploads, Batch, finish or Nowhere(), SystemClock(), NoMeter(),
            breaker=Breaker(journal, SystemClock()), outbox=Outbox(journal, Nowhere(), SystemClock()), large=1,
        )  # fmt: skip

    async def take(self, number: int, size: int, priority: int = 0, experiment: str = "c") -> Job:
        record = FileRecord(number, 0, "a", "b", experiment, "", "d", size, "text/plain", 1, 1)
        handed = Handed(Job(record, Pin(PinKind.LINK), priority=priority), number.to_bytes(16, "big"))
        ((job, _),) = await self.journal.accept_all([handed])
        self.worker.wake()
        return job

    async def note_sent(self, job: Job, parts: int) -> None:
        job = await self.journal.note(job, upload_id="u")
        for number in range(1, parts + 1):
            await self.journal.add_part(job, SentPart(number, 16 * MIB, "e"))


@asynccontextmanager
async def queue_at(path: Path, finish: Any = None) -> AsyncIterator[Queue]:
    journal = SqliteJournal(path, SystemClock(), NoFaults(), lambda kind, size: lane(kind, size, 16 * MIB))
    await journal.open()
    queue = Queue(journal, finish)
    try:
        yield queue
    finally:
        await queue.worker.stop()
        journal.close()


async def test_of_large_files_the_foremost_are_sent_and_others_step_back(tmp_path: Path) -> None:
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        jobs = [await queue.take(number, LARGE) for number in range(1, 7)]
        queue.worker.start()
        await queue.uploads.until(1, 2, 3, 4)
        await queue.note_sent(jobs[1], 5)  # 20 MiB are left of it
        await queue.worker.hasten()
        await queue.uploads.until(2, 6)  # what is nearly done, and the newest
        await queue.take(7, 30 * MIB)
        await queue.uploads.until(2, 7)
        await queue.take(8, LARGE, priority=1)
        await queue.uploads.until(2, 8)
        queue.uploads.end(8)
        await queue.uploads.until(2, 7)
        assert queue.uploads.begun.count(2) == 1, "it was broken off for nothing"
        await queue.worker.relax()
        await queue.uploads.until(2, 7, 1, 3)  # and the usual order again


async def test_of_small_files_the_smallest_go_first_and_none_is_broken_off(tmp_path: Path) -> None:
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        width = DRAIN_WIDTH[Lane.SMALL]
        for number in range(1, 3 * width + 1):
            await queue.take(number, SMALL - number % 7)
        await queue.worker.hasten()
        queue.worker.start()
        order = sorted(range(1, 3 * width + 1), key=lambda number: (SMALL - number % 7, -number))
        await queue.uploads.until(*order[:width])
        await queue.take(999, SMALL - 99)
        queue.uploads.end(order[3])
        await queue.uploads.until(999, *(number for number in order[:width] if number != order[3]))
        assert queue.uploads.begun == [*order[:width], 999]


async def test_in_the_usual_order_a_priority_decides_and_then_the_hand_off(tmp_path: Path) -> None:
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        for number in range(1, 9):
            await queue.take(number, LARGE, priority=1 if number > 6 else 0)
        queue.worker.start()
        await queue.uploads.until(7, 8, 1, 2)
        assert len(queue.uploads.begun) == WIDTH[Lane.LARGE]


async def test_a_full_lane_has_room_for_what_is_more_urgent_and_for_another_experiment(tmp_path: Path) -> None:
    """Large files hold their places for long; what is queued behind them by the same experiment waits."""
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        for number in range(1, 7):
            await queue.take(number, LARGE)
        queue.worker.start()
        await queue.uploads.until(1, 2, 3, 4)
        await queue.take(7, LARGE, experiment="d")
        await queue.take(8, LARGE, experiment="d")
        await queue.uploads.until(1, 2, 3, 4, 7)
        await queue.take(9, LARGE, priority=2)
        await queue.take(10, LARGE, priority=2)
        await queue.uploads.until(1, 2, 3, 4, 7, 9)
        queue.uploads.end(1)
        await queue.uploads.until(2, 3, 4, 7, 9)
        for done in (2, 3, 4):  # the places beyond the width are given back first
            queue.uploads.end(done)
        await queue.uploads.until(7, 9, 10, 8)


async def test_what_waits_for_its_next_try_is_tried_when_a_drain_begins(tmp_path: Path) -> None:
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        job = await queue.take(1, SMALL)
        await queue.journal.note(replace(job), not_before_ms=SystemClock().now_ms() + 3_600_000, blocked=True)
        queue.worker.start()
        await queue.take(2, SMALL)
        await queue.uploads.until(2)
        await queue.worker.hasten()
        await queue.uploads.until(1, 2)
