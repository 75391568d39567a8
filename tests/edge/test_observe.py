"""Health, readiness and figures: each answer comes in time, whatever the disks do, and says what is the matter."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ml_dash.errors import Code
from ml_dashd import observe
from ml_dashd.core.figures import Disk, Sending
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Trouble
from ml_dashd.core.overview import Running
from ml_dashd.core.schedule import Lane
from ml_dashd.edge import disk
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.metrics import PrometheusMeter
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.observe import HOLD_S, Check, Observer, Shared, disks_of, journal_check, spool_check, store_check
from ml_dashd.ports import Handed

TROUBLE = Trouble(Code.STORE_DENIED, "put files/alice/secret-plan.pt: denied", "allow it")
SHOWN_S = 7.5


class SetClock(SystemClock):
    """Time as the test sets it; a sleep comes that late."""

    now_s = 1000.0
    late_s = 0.25

    def monotonic(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.late_s
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
async def journal(path: Path, clock: SetClock) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(path, clock, NoFaults(), lambda *_: Lane.SMALL)
    await made.open()
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(3, "watch")
    yield pool
    pool.close()


@pytest.fixture
def busy(path: Path, journal: SqliteJournal) -> Iterator[sqlite3.Connection]:
    """Another program that has the journal locked, as a backup does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "ANSWER_S", 0.5)  # what answers has the time to, beside other tests


def observer(
    journal: SqliteJournal,
    tmp_path: Path,
    threads: Pool,
    clock: SetClock,
    checks: dict[str, Check],
    disks: Callable[[], Awaitable[list[Disk]]] | None = None,
) -> Observer:
    spool = tmp_path / "spool"
    meter = PrometheusMeter("1")
    return Observer(
        journal=journal,
        backlog=Shared(journal.backlog, clock),
        pins=SpoolPins([spool], SlotFiles(spool), NoFaults()),
        threads=threads,
        disks=disks or disks_of([spool], disk.look, threads, clock).ask,
        connections=lambda: 3,
        sending=lambda: Sending({"small": 2, "large": 5}, 8, 2.5e8),
        circuits=lambda: {"store": 1, "experiment": 0},
        checks=checks,
        clock=clock,
        meter=meter,
        render=meter.render,
        counted=meter.counted,
        running=Running("1", 0, 0),
    )


def values(text: bytes) -> dict[str, float]:
    """Every series by its name and labels."""
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def taken(journal: SqliteJournal, number: int, created_ms: int, blocked: Trouble | None = None) -> None:
    record = FileRecord(number, 0, "alice", "cv", "x", "", f"{number}", 10, "text/plain", created_ms, created_ms)
    ((job, _),) = await journal.accept_all([Handed(Job(record, Pin(PinKind.INLINE)), bytes([number]), b"")])
    if blocked is not None:
        await journal.note(job, blocked=True, trouble=blocked)


def passes() -> Check:
    async def check() -> None:
        return None

    return check


# ---- shared answers


async def test_those_who_ask_at_once_share_one_call_and_its_answer_holds(clock: SetClock) -> None:
    calls = 0
    gate = asyncio.Event()

    async def work() -> int:
        nonlocal calls
        calls += 1
        await gate.wait()
        return calls

    shared = Shared(work, clock)
    asked = [asyncio.create_task(shared.ask()) for _ in range(10)]
    await asyncio.sleep(0)
    asked[0].cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*asked[1:]) == [1] * 9
    clock.now_s += HOLD_S * 0.9
    assert await shared.ask() == 1
    clock.now_s += HOLD_S * 0.1
    assert await shared.ask() == 2


async def test_a_failure_is_told_to_all_who_asked_and_not_for_ever(clock: SetClock) -> None:
    failing = True

    async def work() -> str:
        if failing:
            raise OSError("the disk")
        return "well"

    shared = Shared(work, clock)
    ended = await asyncio.gather(shared.ask(), shared.ask(), return_exceptions=True)
    assert [str(each) for each in ended] == ["the disk"] * 2
    failing = False
    clock.now_s += HOLD_S
    assert await shared.ask() == "well"


# ---- health and readiness


async def test_health_is_bad_only_while_the_journal_does_not_answer(
    journal, tmp_path, threads, clock, busy, impatient
) -> None:
    watched = observer(journal, tmp_path, threads, clock, {})
    assert (await watched.health())["journal"].code is Code.TIMEOUT
    busy.execute("ROLLBACK")
    while await watched.health():  # the call that was late is answered first
        clock.now_s += HOLD_S
    journal.close()
    clock.now_s += HOLD_S
    assert await watched.health() == {}, "a journal that says no has answered"


async def test_every_reason_has_its_check_and_one_that_hangs_or_fails_hides_no_other(
    journal, tmp_path, threads, clock, impatient, caplog
) -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    async def breaks() -> None:
        raise RuntimeError("a defect that quotes hunter2")

    async def says() -> Trouble:
        return TROUBLE

    checks = {"good": passes(), "hangs": hangs, "breaks": breaks, "says": says}
    watched = observer(journal, tmp_path, threads, clock, checks)
    found = await watched.ready()
    assert list(found) == ["hangs", "breaks", "says"]
    assert found["says"] is TROUBLE
    assert found["hangs"].code is Code.TIMEOUT
    assert "hangs" in found["hangs"].message
    assert found["breaks"].code is Code.INTERNAL
    assert "hunter2" not in found["breaks"].message
    assert caplog.messages == ["check_failed"]
    oks = {name: value for name, value in values(await watched.metrics()).items() if "check_ok" in name}
    assert oks == {
        "ml_dashd_check_ok[good]": 1, "ml_dashd_check_ok[hangs]": 0,
        "ml_dashd_check_ok[breaks]": 0, "ml_dashd_check_ok[says]": 0,
    }  # fmt: skip


async def test_the_journal_is_ready_while_it_can_be_written(journal) -> None:
    check = journal_check(journal)
    assert await check() is None
    journal._database._connection.execute("PRAGMA query_only = ON")
    found = await check()
    assert found is not None
    assert (found.code, found.hint) == (Code.DISK_FAILED, "free space on the disk of daemon.state_dir, or mend it")
    assert "readonly" in found.message
    journal._database._connection.execute("PRAGMA query_only = OFF")
    assert await check() is None


async def test_the_store_is_ready_while_nothing_is_blocked_and_no_name_is_told(journal, clock) -> None:
    backlog = Shared(journal.backlog, clock)
    obstacle: Trouble | None = None
    check = store_check(backlog, lambda: obstacle)
    await taken(journal, 1, 1000)
    assert await check() is None
    for number in (2, 3):
        await taken(journal, number, 1000, TROUBLE)
    await taken(journal, 4, 1000, Trouble(Code.STORE_CORRUPTED, "damaged secret-plan.pt", "check the memory"))
    clock.now_s += HOLD_S
    found = await check()
    assert found == Trouble(Code.STORE_DENIED, "files are blocked: STORE_CORRUPTED 1, STORE_DENIED 2", "allow it")
    obstacle = Trouble(Code.STORE_NOT_MOUNTED, "no disk", "mount it")
    assert await check() == obstacle


async def test_the_spool_is_ready_while_its_disks_take_bytes(tmp_path: Path, threads: Pool, clock: SetClock) -> None:
    failed: Trouble | None = None
    disks = [Disk("/a", 10, read_only=False), Disk("/b", 10, read_only=True)]
    gone: OSError | None = None

    async def look() -> list[Disk]:
        if gone is not None:
            raise gone
        return disks

    check = spool_check(lambda: failed, look)
    found = await check()
    assert found is not None
    assert (found.code, found.message) == (Code.DISK_FAILED, "/b is read-only")
    disks.pop()
    assert await check() is None
    gone = OSError(5, "Input/output error", "/a")
    found = await check()
    assert found is not None
    assert "'/a'" in found.message
    failed = Trouble(Code.DISK_FAILED, "the spool's disk failed: EIO", "restart it")
    assert await check() is failed
    (real,) = await disks_of([tmp_path], disk.look, threads, clock).ask()
    assert real.free_bytes > 0
    assert not real.read_only


# ---- figures


async def test_figures_are_those_of_the_journal(journal, tmp_path, threads, clock) -> None:
    clock.now_s = 100.0
    await taken(journal, 1, int((100 - SHOWN_S) * 1000))
    await taken(journal, 2, 99_000, TROUBLE)
    watched = observer(journal, tmp_path, threads, clock, {})
    (tmp_path / "spool" / "7").write_bytes(b"x" * 8192)
    seen = values(await watched.metrics())
    assert seen["ml_dashd_files[QUEUED]"] == 2
    assert seen["ml_dashd_bytes[QUEUED]"] == 20
    assert seen["ml_dashd_files[FAILED]"] == 0
    assert seen["ml_dashd_blocked_files[STORE_DENIED]"] == 1
    assert seen["ml_dashd_queue_age_seconds"] == SHOWN_S
    assert seen["ml_dashd_spool_bytes"] == 8192
    assert seen["ml_dashd_connections"] == 3
    assert (seen["ml_dashd_requests[small]"], seen["ml_dashd_requests[large]"]) == (2, 5)
    assert (seen["ml_dashd_requests_limit"], seen["ml_dashd_send_bytes_per_second"]) == (8, 2.5e8)
    assert (seen["ml_dashd_circuits_open[store]"], seen["ml_dashd_circuits_open[experiment]"]) == (1, 0)
    assert seen[f"ml_dashd_spool_free_bytes[{tmp_path / 'spool'}]"] > 0
    for job in await journal.get([1, 2]):
        await journal.note(job, blocked=False, trouble=None)
    clock.now_s = 50.0  # the clock was put back
    seen = values(await observer(journal, tmp_path, threads, clock, {}).metrics())
    assert "ml_dashd_blocked_files[STORE_DENIED]" not in seen
    assert seen["ml_dashd_queue_age_seconds"] == 0


async def test_what_can_not_be_measured_is_not_taken_for_zero_and_hides_nothing_else(
    journal, tmp_path, threads, clock, busy, impatient
) -> None:
    async def gone() -> list[Disk]:
        raise OSError(5, "Input/output error")

    watched = observer(journal, tmp_path, threads, clock, {"good": passes()}, gone)
    seen = values(await watched.metrics())
    assert math.isnan(seen["ml_dashd_files[QUEUED]"])
    assert math.isnan(seen["ml_dashd_queue_age_seconds"])
    assert not any("spool_free" in name for name in seen)
    assert seen["ml_dashd_spool_bytes"] == 0
    assert seen["ml_dashd_accepted_files_total"] == 0
    assert seen["ml_dashd_check_ok[good]"] == 1
    busy.execute("ROLLBACK")


async def test_lag_is_what_the_loop_comes_late(journal, tmp_path, threads, clock) -> None:
    watched = observer(journal, tmp_path, threads, clock, {})
    watching = asyncio.create_task(watched.watch_lag())
    for _ in range(6):
        await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    seen = values(await watched.metrics())
    assert seen["ml_dashd_loop_lag_seconds_count"] >= 3
    assert seen["ml_dashd_loop_lag_seconds_bucket[0.1]"] == 0
    assert seen["ml_dashd_loop_lag_seconds_bucket[0.25]"] == seen["ml_dashd_loop_lag_seconds_count"]
