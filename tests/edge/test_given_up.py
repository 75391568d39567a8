"""A file whose source the disk could not keep: it is ended, and not begun again meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ml_dash.errors import Code, error
from ml_dashd.core.model import Job, Trouble
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
