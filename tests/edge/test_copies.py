"""Copies in the background: which waits for which."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.overwrite import CopySpeed
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.copies import Copies
from ml_dashd.flow.recover import recover
from ml_dashd.flow.sources import kept_if_journaled
from ml_dashd.ports import Handed, Superseded
from tests.edge.journal_rig import opened
from tests.edge.pin_rig import SIZE, Spool, content, path, spool

__all__ = ["path", "spool"]

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


def copies_of(files: Files, disk: Pool, **others: Any) -> Copies:
    ports: dict[str, Any] = dict.fromkeys(("journal", "pins", "settle"), cast("Any", files))
    usual: dict[str, Any] = {"below_bytes": BELOW, "faults": NoFaults()}
    return Copies(
        **(ports | usual | others),
        disk=disk,
        bell=Bell(),
        clock=SystemClock(),
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


class StoppedAt(NoFaults):
    """The daemon is stopped at a point of a copy's way: its task is cancelled."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.copying: asyncio.Task[None] | None = None

    def at(self, point: str) -> None:
        if point == self.point and self.copying is not None:
            self.copying.cancel()


@pytest.mark.parametrize("point", ["copies.copied", "copies.before_repin", "copies.after_repin"])
async def test_a_file_whose_copy_is_journaled_while_the_daemon_is_stopped_has_its_source(
    tmp_path: Path, spool: Spool, path: Path, point: str
) -> None:
    """The journal does what it was asked for: what it names by then is there at the next start, and nothing else."""
    job, disk, faults = spool.take(path), Pool(2, "disk"), StoppedAt(point)
    async with opened(tmp_path / "journal.sqlite") as journal:
        await journal.accept_all([Handed(job, bytes(16))])
        copies = copies_of(Files([]), disk, journal=journal, pins=spool.pins, faults=faults, below_bytes=SIZE)
        copies.add(job)
        faults.copying = asyncio.create_task(copies.run())
        async with asyncio.timeout(30):
            await asyncio.gather(faults.copying, return_exceptions=True)
        (now,) = await journal.get([job.id])
        assert (now.pin.kind, spool.files()) == (PinKind.COPY, [now.pin.name])
        assert spool.read(now) == content()
        assert [each.pin for each in (await recover(journal, spool.pins, disk)).jobs] == [now.pin]
    disk.close()


class Refusing(Files):
    """Notes what is released. `unsure`: the journal may have what it was asked for all the same."""

    def __init__(self, *, unsure: bool) -> None:
        super().__init__([])
        self._unsure = unsure
        self.released: list[Pin] = []

    def unsure(self) -> bool:
        return self._unsure

    def release(self, pin: Pin, file_id: int) -> None:
        self.released.append(pin)


@pytest.mark.parametrize(
    ("failure", "unsure", "goes"),
    [(Superseded("stored"), False, True), (OSError(5, "sync"), True, False), (asyncio.CancelledError(), False, False)],
)
async def test_a_new_pin_goes_where_the_journal_refused_it_and_stays_where_it_may_have_it(
    failure: BaseException, unsure: bool, goes: bool
) -> None:
    """Whoever is cancelled does not know; nor does anybody after a sync that the disk refused."""
    disk, new, files = Pool(1, "disk"), Pin(PinKind.COPY, "1.copy"), Refusing(unsure=unsure)
    ports: dict[str, Any] = dict.fromkeys(("journal", "pins"), cast("Any", files))
    with pytest.raises(type(failure)):
        async with kept_if_journaled(new, 1, **ports, disk=disk):
            raise failure
    assert files.released == [new] * goes
    disk.close()
