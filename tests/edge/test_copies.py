"""Copies in the background: which waits for which."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.overwrite import CopySpeed
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.copies import Copies

BELOW = 100


class Files:
    """Journal and spool in one: a large file is copied only once the gate is open."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.gate = threading.Event()
        self.copied: list[int] = []
        self.changed = asyncio.Event()

    async def get(self, ids: Sequence[int]) -> list[Job]:
        return [self.jobs[each] for each in ids]

    def copy(self, job: Job, in_time: Callable[[], bool] | None = None) -> Pin:
        if job.record.size_bytes > BELOW:
            self.gate.wait(30)
        return Pin(PinKind.COPY, f"{job.id}.copy")

    async def settle(self, pin: Pin, file_id: int) -> None:
        return

    async def repin(self, job: Job, pin: Pin, *, on_disk: bool = True) -> None:
        self.copied.append(job.id)
        self.jobs[job.id] = replace(job, pin=pin)
        self.changed.set()

    def release(self, pin: Pin, file_id: int) -> None:
        return


def job(number: int, size: int) -> Job:
    return Job(FileRecord(number, 0, "a", "b", "c", "", "d", size, "text/plain", 0, 0), Pin(PinKind.FD))


async def _kept(_: Any) -> None:
    """Nobody asked."""


def copies_of(files: Files, disk: Pool) -> Copies:
    ports: dict[str, Any] = dict.fromkeys(("journal", "pins", "settle"), cast("Any", files))
    return Copies(
        **ports,
        disk=disk,
        bell=Bell(),
        clock=SystemClock(),
        faults=NoFaults(),
        below_bytes=BELOW,
        after_s=0.0,
        sending=lambda _: False,
        kept=_kept,
        speed=CopySpeed(),
    )


def a_large_and_a_small_one() -> tuple[Files, asyncio.Task[None], Pool]:
    """Files 1 and 2, of which copies are being made, and the threads that make them."""
    files, disk = Files([job(1, BELOW + 1), job(2, BELOW)]), Pool(4, "disk")
    copies = copies_of(files, disk)
    for each in files.jobs.values():
        copies.add(each)
    return files, asyncio.create_task(copies.run()), disk


async def test_a_file_that_is_noted_twice_is_copied_once() -> None:
    """At a start it is found in the journal, and then its client asks again: the copy that there is stays."""
    files = Files([job(1, BELOW), job(2, BELOW)])
    disk = Pool(4, "disk")
    copies = copies_of(files, disk)
    for number in (1, 1, 2):
        copies.add(files.jobs[number])
    running = asyncio.create_task(copies.run())
    async with asyncio.timeout(30):
        while 2 not in files.copied:
            await files.changed.wait()
            files.changed.clear()
    assert files.copied == [1, 2]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    disk.close()


async def test_a_large_copy_holds_up_no_small_one() -> None:
    files, running, disk = a_large_and_a_small_one()
    async with asyncio.timeout(30):
        await files.changed.wait()
        assert files.copied == [2]
        files.changed.clear()
        files.gate.set()
        await files.changed.wait()
    assert files.copied == [2, 1]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    disk.close()


async def test_an_end_waits_for_the_copy_that_is_under_way() -> None:
    """Of both lanes: the one that has nothing to do ends first."""
    files, running, disk = a_large_and_a_small_one()
    async with asyncio.timeout(30):
        await files.changed.wait()
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=0.2)
    assert not ended, "the large one is being copied"
    files.gate.set()
    await asyncio.gather(running, return_exceptions=True)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    disk.close()
