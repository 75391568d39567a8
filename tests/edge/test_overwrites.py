"""A writer who waits for a copy is never kept longer than he may be, whatever becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Protection
from ml_dashd.core.overwrite import CopySpeed
from ml_dashd.core.states import State
from ml_dashd.edge import cloning
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.overwrites import Overwrites
from ml_dashd.ports import Superseded

MIB = 1 << 20


class Files:
    """Journal and spool in one: copies are made once the gate is open, and repinned once the journal is."""

    def __init__(self, *, copies: bool = True, journal: bool = True) -> None:
        self.job = Job(FileRecord(1, 0, "a", "b", "c", "", "d", MIB, "text/plain", 0, 0), Pin(PinKind.LINK, "1"))
        self.copying, self.gate = threading.Event(), threading.Event()
        self.journal_open = asyncio.Event()
        self.unleased = asyncio.Event()
        self.released: list[Pin] = []
        self.wants = [1]
        if copies:
            self.gate.set()
        if journal:
            self.journal_open.set()

    def wanted(self) -> list[int]:
        return self.wants

    def leased(self, file_id: int) -> bool:
        return file_id not in self.wants

    def unlease(self, file_id: int) -> None:
        self.wants = []
        self.unleased.set()

    def lease(self, job: Job) -> None:
        return

    async def get(self, ids: Sequence[int]) -> list[Job]:
        return [self.job]

    def copy(self, job: Job, in_time: Callable[[], bool]) -> Pin:
        self.copying.set()
        self.gate.wait(30)
        return Pin(PinKind.COPY, "1.lease")

    async def repin(self, job: Job, pin: Pin, *, on_disk: bool) -> None:
        await self.journal_open.wait()
        assert not on_disk
        if self.job.pin.kind is not job.pin.kind:
            raise Superseded
        self.job = replace(self.job, pin=pin)

    def unsure(self) -> bool:
        return False

    def release(self, pin: Pin, file_id: int) -> None:
        self.released.append(pin)


@pytest.fixture
def pool() -> Any:
    made = Pool(2, "lease")
    yield made
    made.close()


def overwrites(files: Files, pool: Pool, longest_wait_s: float, synced: list[Job] | None = None) -> Overwrites:
    ports: dict[str, Any] = dict.fromkeys(("journal", "pins"), cast("Any", files))
    return Overwrites(
        **ports,
        threads=pool,
        disk=pool,
        bell=Bell(),
        clock=SystemClock(),
        faults=NoFaults(),
        speed=CopySpeed(),
        longest_wait_s=longest_wait_s,
        sync=(synced if synced is not None else []).append,
    )


async def test_a_writer_goes_on_though_the_copy_is_not_whole(pool: Pool) -> None:
    files = Files(copies=False)
    flow = overwrites(files, pool, 0.01)
    flow.look()
    async with asyncio.timeout(30):
        await files.unleased.wait()
    assert files.copying.is_set()
    files.gate.set()
    await flow.close()


async def test_a_writer_goes_on_though_the_journal_says_nothing(pool: Pool) -> None:
    """The copy is whole: once the journal takes it, that is what is stored."""
    files, synced = Files(journal=False), list[Job]()
    flow = overwrites(files, pool, 0.05, synced)
    flow.look()
    async with asyncio.timeout(30):
        await files.unleased.wait()
    assert files.job.pin.kind is PinKind.LINK
    files.journal_open.set()
    await flow.close()
    assert files.job.pin.kind is PinKind.COPY
    assert [(job.pin.kind, job.on_disk) for job in synced] == [(PinKind.COPY, False)]
    assert files.released == [Pin(PinKind.LINK, "1")]


async def test_one_that_is_copied_in_the_background_meanwhile_keeps_that_copy(pool: Pool) -> None:
    files = Files(journal=False)
    flow = overwrites(files, pool, 30)
    flow.look()
    flow.look()  # the signal comes once a writer: one copy
    await asyncio.get_running_loop().run_in_executor(None, files.copying.wait)
    files.job = replace(files.job, pin=Pin(PinKind.COPY, "1.copy"))
    files.journal_open.set()
    await flow.close()
    assert files.job.pin.name == "1.copy"
    assert files.released == [Pin(PinKind.COPY, "1.lease")]
    assert files.unleased.is_set()


@pytest.mark.parametrize("state", [State.VERIFIED, State.DONE, State.FAILED, State.CANCELLED])
async def test_nobody_waits_for_what_needs_no_source(pool: Pool, state: State) -> None:
    files = Files()
    files.job = replace(files.job, state=state)
    flow = overwrites(files, pool, 30)
    flow.look()
    await flow.close()
    assert files.unleased.is_set()
    assert not files.copying.is_set()
    files.unleased.clear()
    files.wants = []
    await flow.protect(files.job)  # stored before the lease was there
    assert files.unleased.is_set()


@pytest.fixture
def leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pins, and a leased file."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the tests look for themselves
    slots = SlotFiles(tmp_path / "spool")
    pins = SpoolPins([tmp_path / "spool"], slots, NoFaults())
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(20 * MIB))
    descriptor = os.open(path, os.O_RDONLY)
    pin, _, size = pins.take(descriptor, 1, str(path), Protection.RESTART)
    os.close(descriptor)
    job = Job(FileRecord(1, 0, "a", "b", "c", "", "d", size, "", 0, 0), pin)
    if (refusal := pins.lease(job)) is not None:
        pytest.skip(refusal)
    yield pins, job, path
    pins.close()
    slots.close()
    signal.signal(signal.SIGIO, before)


def test_a_copy_that_takes_too_long_is_broken_off(leased: Any, tmp_path: Path) -> None:
    pins, job, _ = leased
    looks = iter([True, True, False])
    with pytest.raises(MLDashError) as late:
        pins.copy(job, lambda: next(looks))
    assert late.value.code is Code.RETRY_LATER
    assert "16777216 of 20971520" in str(late.value)
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["1", "slots"]


def test_a_copy_beyond_the_lease_is_none(leased: Any) -> None:
    """The kernel took it away meanwhile: nobody knows when the writer went on."""
    pins, job, path = leased
    writer = threading.Thread(target=lambda: path.open("ab").close())
    asked = threading.Event()

    def in_time() -> bool:
        if not asked.is_set():
            asked.set()
            pins.unlease(1)
            writer.start()
            writer.join()
        return True

    with pytest.raises(MLDashError) as refused:
        pins.copy(job, in_time)
    assert refused.value.code is Code.SOURCE_CHANGED


def test_a_lease_that_is_asked_for_stands_and_no_longer_holds(leased: Any) -> None:
    pins, job, path = leased
    assert pins.leased(1)
    assert pins.wanted() == []
    asked = threading.Event()
    writer = threading.Thread(target=lambda: path.open("ab").close() or asked.set())
    writer.start()
    while pins.wanted() != [1]:
        asked.wait(0.001)
    assert not pins.leased(1)
    assert not asked.is_set()
    assert pins.copy(job, lambda: True).kind is PinKind.COPY
    pins.unlease(1)
    assert asked.wait(30)
    writer.join()
    assert pins.wanted() == []
