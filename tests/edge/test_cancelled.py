"""Who is cancelled while something is opened for it leaves nothing open; turns, which who is cancelled gives up."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ml_dashd.core.checksum import Digest, digest
from ml_dashd.core.fair import Claim
from ml_dashd.core.model import Algorithm, FileRecord, Job, Pin, PinKind, SentPart
from ml_dashd.core.plan import MIB, Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge import inbox, local_store
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.inbox import InboxFolder
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.adopt import Adopting
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.inbox import Adoption
from ml_dashd.flow.pace import FairBuffers
from ml_dashd.flow.sources import open_source
from ml_dashd.flow.turns import Turns
from ml_dashd.flow.upload import Uploader
from ml_dashd.ports import Handed, Offer, Source
from tests.edge.journal_rig import opened
from tests.edge.test_inbox import leave


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Door:
    """Holds up a function in its thread until the test lets it go on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.reached.set()
        assert self.open.wait(20)
        return self.function(*arguments, **more)

    async def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancels the task while its function is under way, and lets that come to its end."""
        await asyncio.to_thread(self.reached.wait, 20)
        task.cancel()
        self.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_source_that_comes_too_late_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = SpoolPins([tmp_path / "spool"], SlotFiles(tmp_path / "spool"), NoFaults())
    (tmp_path / "spool" / "7").write_bytes(b"weights")
    job = Job(FileRecord(7, 0, "a", "b", "c", "", "best.pt", 7, "", 0, 0), Pin(PinKind.COPY, "7"))
    threads = Pool(1, "test")
    await threads.run(os.getpid)
    before = open_descriptors()
    door = Door(pins.open)
    monkeypatch.setattr(pins, "open", door)
    await door.cancel(asyncio.create_task(open_source(job, None, pins, threads)))  # type: ignore[arg-type]
    assert open_descriptors() == before
    source = await open_source(job, None, pins, threads)  # type: ignore[arg-type]
    assert open_descriptors() == before + 1
    source.close()
    threads.close()


async def test_a_stored_file_that_is_opened_too_late_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    threads = Pool(1, "test")
    store = LocalStore(tmp_path, threads, NoFaults())
    await threads.run(os.getpid)
    before = open_descriptors()
    door = Door(os.open)
    monkeypatch.setattr(local_store.os, "open", door)

    async def read() -> bytes:
        content = bytearray(7)
        await store.read("best.pt", 0, memoryview(content), lambda _: None)
        return bytes(content)

    await door.cancel(asyncio.create_task(read()))
    assert open_descriptors() == before
    assert await read() == b"weights"
    assert open_descriptors() == before
    threads.close()


async def test_who_is_cancelled_twice_still_waits_for_its_work(tmp_path: Path) -> None:
    """First because its file was given up, then because the daemon is stopped: a thread reads from what it has open."""
    threads = Pool(1, "test")
    door = Door(os.fstat)
    seen: list[object] = []

    async def read() -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            await threads.run(lambda: seen.append(door(descriptor)))
        finally:
            os.close(descriptor)

    task = asyncio.create_task(read())
    await asyncio.to_thread(door.reached.wait, 20)
    for _ in range(3):
        task.cancel()
        await turn_over()
    assert not task.done()
    door.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(seen) == 1
    threads.close()


class Work:
    """Tasks that keep their turn until the test ends them."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.working: list[int] = []
        self.end = asyncio.Event()

    def begin(self, uid: int) -> asyncio.Task[None]:
        async def work() -> None:
            async with self.turns.of(uid):
                self.working.append(uid)
                await self.end.wait()

        return asyncio.create_task(work())


async def turn_over() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_users_work_waits_for_its_own() -> None:
    work = Work(Turns(2, 4))
    tasks = [work.begin(uid) for uid in (1, 1, 1, 1, 2, 3, 3)]
    await turn_over()
    assert sorted(work.working) == [1, 1, 2, 3]
    for task in tasks[:2]:
        task.cancel()
    await turn_over()
    assert work.working.count(1) + work.working.count(3) >= 5
    work.end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(work.working) == [1, 1, 1, 1, 2, 3, 3]


async def test_who_gives_up_waiting_gives_up_its_turn() -> None:
    turns = Turns(1, 1)
    work = Work(turns)
    first, second, third = work.begin(1), work.begin(1), work.begin(2)
    await turn_over()
    second.cancel()
    work.end.set()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert work.working == [1, 2]
    assert (turns._of, turns._asking) == ({}, {})


async def test_an_offer_that_comes_too_late_is_closed(tmp_path: Path) -> None:
    """Its source may be a deleted file by then, whose room would be taken until the daemon ends."""
    threads = Pool(1, "test")
    await threads.run(os.getpid)
    before = open_descriptors()
    door = Door(lambda *_: Offer(os.open(tmp_path, os.O_RDONLY), itself=True))
    adopting = Adopting(Beside(), SimpleNamespace(offer=door), threads, None)  # type: ignore[arg-type]
    job = Job(FileRecord(7, 0, "a", "b", "c", "", "best.pt", 7, "", 0, 0), Pin(PinKind.COPY, "7"))
    adoption = await adopting.begin(job)
    await door.cancel(asyncio.create_task(adoption.attempt()))
    assert open_descriptors() == before
    threads.close()


class CancelledAt(NoFaults):
    """Cancels whoever comes to a point of its way."""

    def __init__(self, point: str) -> None:
        self.point = point

    def at(self, point: str) -> None:
        if point == self.point and (task := asyncio.current_task()) is not None:
            task.cancel()


async def test_a_deleted_file_that_steps_back_in_its_last_step_keeps_no_room(tmp_path: Path) -> None:
    """In a drain: it was among the foremost until the journal had it as cancelled. No later step would look for it."""
    threads, unused = Pool(1, "test"), cast("Any", None)
    pins = SpoolPins([tmp_path / "spool"], SlotFiles(tmp_path / "spool"), NoFaults())
    (tmp_path / "spool" / "7").write_bytes(b"weights")
    record = FileRecord(7, 0, "a", "b", "c", "", "best.pt", 7, "", 1, 1)
    async with opened(tmp_path / "journal.sqlite") as journal:
        await journal.accept_all([Handed(Job(record, Pin(PinKind.COPY, "7"), on_disk=True), bytes(16))])
        await journal.cancel([7])
        (job,) = await journal.get([7])
        finish = Finish(
            journal=journal, store=unused, catalog=unused, pins=pins, threads=threads, bell=Bell(),
            clock=SystemClock(), faults=CancelledAt("finish.before_cancelled"), meter=unused, outbox=unused,
        )  # fmt: skip
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(finish.discard(job))
        assert [each.state for each in await journal.get([7])] == [State.CANCELLED]
    assert not (tmp_path / "spool" / "7").exists()
    threads.close()


class Beside:
    """A store on the source's file system."""

    async def device(self) -> int:
        return 1


class Stumbling(Uploader):
    """Its first part fails just before its second is begun, whose task is cancelled before it has run at all."""

    def __init__(self, threads: Pool, buffers: FairBuffers) -> None:
        self._threads = threads
        self._buffers = buffers
        self._bell = Bell()
        self._adopting = SimpleNamespace(begin=self._nothing)  # type: ignore[assignment]
        self._fail = asyncio.Event()

    async def _nothing(self, _: Job) -> Any:
        async def attempt() -> bool:
            return False

        return SimpleNamespace(attempt=attempt)

    async def _read(self, job: Job, source: Source, part: Part, buffer: memoryview, earlier: SentPart | None) -> Digest:
        if part.number == 2:
            self._fail.set()
            await asyncio.sleep(0)  # the first has failed, and its group learns of it next
        return digest(buffer, Algorithm.NONE)

    async def _send_part(self, *_: Any) -> bool:
        await self._fail.wait()
        raise StoreError(Fault.REFUSED, "no")


async def test_a_part_that_is_cancelled_before_it_begins_gives_its_memory_back() -> None:
    threads = Pool(1, "test")
    buffers = FairBuffers(BufferPool(2 * MIB, MIB), 2 * MIB, MIB)
    record = FileRecord(7, 0, "a", "b", "c", "", "best.pt", 2 * MIB, "", 0, 0)
    job = Job(record, Pin(PinKind.COPY, "7"), part_size=MIB, upload_id="u")
    source: Any = SimpleNamespace(size_bytes=2 * MIB)
    with pytest.raises(StoreError, match="no"):
        await Stumbling(threads, buffers)._send_parts(job, source, fresh=True)
    async with asyncio.timeout(20):
        for _ in range(2):
            await buffers.take(MIB, Claim.of(Lane.LARGE, job))
    threads.close()


async def test_what_was_left_is_taken_in_though_who_asked_for_it_has_hung_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has been looked at by then, and nothing else may ever come to it."""
    threads, taken = Pool(1, "test"), list[str]()

    async def upload(_: object, message: Any, *__: object) -> Job:
        taken.append(message.file.to)
        return Job(FileRecord(7, 0, "a", "b", "c", "", message.file.to, 7, "", 0, 0), Pin(PinKind.INLINE))

    monkeypatch.setattr(inbox, "TICK_MS", -1)
    folder = InboxFolder(tmp_path / "inbox", 0o600, SystemClock())
    leave(tmp_path / "inbox", 1)
    door = Door(folder.look)
    monkeypatch.setattr(folder, "look", door)
    async with opened(tmp_path / "journal.sqlite") as journal, asyncio.timeout(30):
        adoption = Adoption(
            folder=folder, accept=cast("Any", SimpleNamespace(upload=upload)), journal=journal,
            catalog=cast("Any", None), ids=cast("Any", SimpleNamespace(next=lambda _: 7)),
            policy=cast("Any", SimpleNamespace(may_connect=lambda _: True)), threads=threads, clock=SystemClock(),
            faults=NoFaults(),
        )  # fmt: skip
        await door.cancel(asyncio.create_task(adoption.wait(os.getuid(), 20)))
        await adoption.look()
        await adoption.wait(os.getuid(), 20)
        assert taken == ["1.txt"]
        await adoption.close()
    folder.close()
    threads.close()
