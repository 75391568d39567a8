"""A file whose source the disk could not keep: it is ended, and not begun again meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ml_dash.errors import Code, error
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.states import State
from tests.edge.test_drain_order import LARGE, Nowhere, queue_at


class Ending(Nowhere):
    """Stands for the end of files: one that fails does so once the test lets it."""

    def __init__(self) -> None:
        self.asked, self.gate = asyncio.Event(), asyncio.Event()
        self.failed: list[tuple[int, Code]] = []

    async def fail(self, job: Job, trouble: Trouble) -> None:
        self.asked.set()
        await self.gate.wait()
        self.failed.append((job.id, trouble.code))

    async def postpone(self, job: Job, trouble: Trouble, delay_ms: int, *, blocked: bool) -> None:
        self.failed.append((job.id, trouble.code))


async def test_a_file_that_is_given_up_is_not_begun_again_meanwhile(tmp_path: Path) -> None:
    """What it stored then would be nobody's: what the store has of a failed file is removed once."""
    ending = Ending()
    async with queue_at(tmp_path / "journal.sqlite", ending) as queue, asyncio.timeout(30):
        job = await queue.take(1, LARGE)
        queue.worker.start()
        await queue.uploads.until(1)
        giving_up = asyncio.create_task(queue.worker.give_up(job, error(Code.DISK_FAILED, "the disk")))
        await ending.asked.wait()
        await queue.take(2, LARGE)
        await queue.uploads.until(2)
        ending.gate.set()
        await giving_up
        assert (queue.uploads.begun[:2], ending.failed) == ([1, 2], [(1, Code.DISK_FAILED)])


async def test_a_file_that_the_store_has_whole_is_not_given_up(tmp_path: Path) -> None:
    """It waits for the catalog alone: its source, which the disk could not keep, is needed no more."""
    ending = Ending()
    async with queue_at(tmp_path / "journal.sqlite", ending) as queue, asyncio.timeout(30):
        job = await queue.take(1, LARGE)
        for state in (State.SENDING, State.COMPLETING, State.VERIFIED):
            job = await queue.journal.advance(job, state)
        await queue.worker.give_up(job, error(Code.DISK_FAILED, "the disk"))
        assert [(each.state, each.trouble) for each in await queue.journal.get([1])] == [(State.VERIFIED, None)]
        assert ending.failed == []


async def test_two_who_delete_a_failed_file_in_one_moment_are_both_served(tmp_path: Path) -> None:
    async with queue_at(tmp_path / "journal.sqlite") as queue:
        job = await queue.take(1, LARGE)
        await queue.journal.advance(job, State.FAILED, trouble=Trouble(Code.SOURCE_LOST, "it is gone", ""))
        seen = [await queue.journal.cancel([1]) for _ in range(2)]
        for jobs in seen:
            await queue.worker.cancel(jobs)
        assert [each.state for each in await queue.journal.get([1])] == [State.QUEUED]
