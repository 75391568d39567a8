"""Files behind a circuit, on a real journal: none is forgotten there, whatever comes at the same moment."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from ml_dash.errors import Code
from ml_dashd.core.checksum import Digest
from ml_dashd.core.circuit import HOLD_MS
from ml_dashd.core.model import Algorithm, Evidence, Job, Trouble
from ml_dashd.core.retry import Fault
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow import circuit
from ml_dashd.flow.circuit import Breaker
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Clock
from tests.edge.journal_rig import SetClock, accepted, clock, journal, path, rows

__all__ = ["clock", "journal", "path"]

AWAY = Trouble(Code.STORE_UNREACHABLE, "refused", "mend it")
WAITING = "SELECT count(*) FROM files WHERE not_before_ms > 0 AND blocked"


class Probes:
    """Stands for the worker: what is probed, and how it ends."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.end: Callable[[Job], None] = lambda _: None
        self._woken = asyncio.Event()

    def begin(self, job: Job) -> asyncio.Task[None]:
        async def probe() -> None:
            self.begun.append(job.id)
            self.end(job)

        return asyncio.create_task(probe())

    def wake(self) -> None:
        self._woken.set()

    async def started(self) -> None:
        """What an earlier daemon had put off goes on."""
        async with asyncio.timeout(20):
            await self._woken.wait()

    async def until(self, look: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not look():
                self._woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._woken.wait()


@asynccontextmanager
async def running(breaker: Breaker) -> AsyncIterator[Probes]:
    probes = Probes()
    task = asyncio.create_task(breaker.run(probes.begin, [], probes.wake))
    await probes.started()
    yield probes
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def breaker(journal: SqliteJournal) -> Breaker:
    return Breaker(journal, SystemClock())


def opened(breaker: Breaker, job: Job) -> None:
    for _ in range(3):
        breaker.failed(job, Fault.UNREACHABLE, AWAY)
    assert not breaker.allows(job)


async def test_all_that_wait_go_on_with_the_first_answer(journal, path, breaker) -> None:
    jobs = [await accepted(journal, number) for number in range(1, 600)]
    opened(breaker, jobs[0])
    async with running(breaker) as probes:
        await breaker.hold(jobs)
        assert rows(path, WAITING) == [(599,)]
        probes.end = breaker.answered
        await probes.until(lambda: rows(path, WAITING) == [(0,)])
        assert len(probes.begun) == 1
        assert breaker.count() == {"store": 0, "experiment": 0}


async def test_one_that_is_put_off_after_all_went_on_goes_on_too(journal, path, breaker) -> None:
    late = await accepted(journal, 1)
    opened(breaker, late)
    async with running(breaker) as probes:
        breaker.answered(late)
        await breaker.hold([late])  # the circuit has closed: it is not put off
        assert rows(path, WAITING) == [(0,)]
        await journal.note(late, blocked=True, not_before_ms=HOLD_MS, trouble=AWAY)
        breaker.check(late)
        await probes.until(lambda: rows(path, WAITING) == [(0,)])


async def test_one_that_is_taken_back_is_not_put_off(journal, path, breaker) -> None:
    job = await accepted(journal, 1)
    opened(breaker, job)
    (cancelled,) = await journal.cancel([job.id])
    await breaker.hold([job])
    assert rows(path, WAITING) == [(0,)]
    assert breaker.allows(cancelled)


async def test_a_circuit_without_anybody_behind_it_closes(journal, breaker) -> None:
    opened(breaker, await accepted(journal, 1))
    async with running(breaker) as probes:
        await probes.until(lambda: breaker.count()["store"] == 0)
        assert probes.begun == []


async def test_a_journal_that_stumbles_lets_go_later(journal, path, breaker, monkeypatch) -> None:
    monkeypatch.setattr(circuit, "STUMBLED_S", 0.05)
    job = await accepted(journal, 1)
    opened(breaker, job)
    await breaker.hold([job])
    release, asked = journal.release, 0

    async def stumbles(extent, most) -> int:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise sqlite3.OperationalError("locked")
        return await release(extent, most)

    monkeypatch.setattr(journal, "release", stumbles)
    breaker.answered(job)
    async with running(breaker) as probes:
        await journal.note(job, blocked=True, not_before_ms=HOLD_MS, trouble=AWAY)
        breaker.check(job)
        await probes.until(lambda: asked > 2 and rows(path, WAITING) == [(0,)])


async def test_one_that_meets_something_else_behind_a_circuit_goes_on_with_the_others(journal, path, breaker) -> None:
    """It is let go by the circuit's trouble, not by its own."""
    job = await accepted(journal, 1)
    refused, hung_up = (Trouble(code, "no", "mend it") for code in (Code.STORE_DENIED, Code.STORE_UNAVAILABLE))
    for _ in range(3):
        breaker.failed(job, Fault.DENIED, refused)
    async with running(breaker) as probes:
        held = breaker.failed(job, Fault.TRANSIENT, hung_up)
        await journal.note(job, blocked=True, not_before_ms=SystemClock().now_ms() + HOLD_MS, trouble=held)
        probes.end = breaker.answered
        await probes.until(lambda: rows(path, WAITING) == [(0,)])


async def test_a_probe_that_was_stored_is_due_though_its_daemon_ends_before_it_is_listed(
    journal: SqliteJournal, clock: SetClock
) -> None:
    """It was put off with all others, and went nevertheless: nothing lets it go, for it is blocked no more."""
    sent = Digest(5, 7, Algorithm.CRC64NVME, "AAAAAAAAAAc=")
    job = await journal.advance(await accepted(journal, 1), State.SENDING, key="files/1")
    await journal.hold([job.id], clock.now + HOLD_MS, AWAY)
    unused = cast("Any", None)
    proved = await Verify(unused, unused, unused, cast("Clock", clock)).changes(
        job, Evidence(5, "e", sent.proof, job.id), sent, "ab" * 32
    )
    await journal.advance(job, State.VERIFIED, **proved)
    await journal.retry_blocked()  # the start of the next one
    assert [each.id for each in await journal.due(Lane.SMALL, clock.now, [], 9)] == [job.id]
