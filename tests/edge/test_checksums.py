"""What a store can do is found out once, kept over restarts, found out anew after a day, and leaves nothing there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.capabilities import RENEW_MS, Capabilities, Trial
from ml_dashd.core.checksum import digest
from ml_dashd.core.model import Algorithm, Target
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.checksums import LOOK_S, Checksums
from ml_dashd.flow.scratch import LATE_S, SOON_S, Scratch
from tests.edge.connection_rig import until
from tests.edge.journal_rig import SetClock, opened


class Folder(LocalStore):
    """A folder that takes what it is told to use, as S3 does, and may refuse to delete."""

    algorithm: Algorithm | None = None
    denies = False

    async def prepare(self, known: Algorithm | None = None) -> Algorithm:
        self.algorithm = known
        return known or Algorithm.CRC64NVME

    async def delete(self, key: str) -> None:
        if self.denies:
            raise StoreError(Fault.DENIED, f"delete {key}")
        await super().delete(key)


class Crash(BaseException):
    """The process ends."""


@dataclass
class Server:
    """The `Prober`: answers with the algorithm that it is set to, or fails. It makes an object and an upload."""

    store: Folder
    algorithm: Algorithm = Algorithm.MD5
    failure: BaseException | None = None
    place: str = "https://s3 bucket"
    keys: list[str] = field(default_factory=list)

    async def probe(self, key: str, now_ms: int) -> Capabilities:
        self.keys.append(key)
        target = Target(key, int(Path(key).parent.name), 1, "")
        await self.store.put(target, memoryview(b"x"), digest(memoryview(b"x"), Algorithm.CRC64NVME))
        await self.store.begin(target)
        if self.failure is not None:
            raise self.failure
        trial = Trial(self.algorithm, *[True] * 5)
        return Capabilities(now_ms, (trial,), True, True, None)


class Daemon:
    """One life of a daemon, as far as this goes."""

    def __init__(self, journal: SqliteJournal, store: Folder, server: Server | None, clock: SetClock) -> None:
        self.scratch = Scratch(journal, store, clock)
        self.checksums = Checksums(journal, store, self.scratch, clock, server)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def journal(tmp_path: Path, clock: SetClock) -> AsyncIterator[SqliteJournal]:
    async with opened(tmp_path / "journal.sqlite", clock) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "store" / ".ml-dash-tmp").mkdir(parents=True)
    threads = Pool(1, "work")
    yield Folder(tmp_path / "store", threads, NoFaults())
    threads.close()


@pytest.fixture
def server(store: Folder) -> Server:
    return Server(store)


def left(store: Folder) -> list[str]:
    """What lies in the store's folder."""
    return sorted(path.name for path in Path(store.url.removeprefix("file://")).rglob("*") if path.is_file())


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def emptied(scratch: Scratch, store: Folder) -> None:
    await until(lambda: not scratch._left.is_set())  # looked at meanwhile, a folder may go as it is entered
    assert left(store) == []


async def looked_after(journal: SqliteJournal, store: Folder, clock: SetClock) -> None:
    """Another life of a daemon has removed what was left."""
    scratch = Scratch(journal, store, clock)
    async with background(scratch.run()):
        await emptied(scratch, store)


async def test_it_is_asked_once_whoever_asks(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    daemon = Daemon(journal, store, server, clock)
    answers = await asyncio.gather(*(daemon.checksums.algorithm() for _ in range(5)))
    assert set(answers) == {Algorithm.MD5}
    assert len(server.keys) == 1
    assert store.algorithm is Algorithm.MD5
    assert left(store) == []
    assert await Daemon(journal, store, server, clock).checksums.algorithm() is Algorithm.MD5
    assert len(server.keys) == 1, "the next start asked again"


async def test_another_bucket_or_endpoint_is_asked_anew(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    await Daemon(journal, store, server, clock).checksums.algorithm()
    other = Server(store, Algorithm.CRC32C, place="https://other bucket")
    assert await Daemon(journal, store, other, clock).checksums.algorithm() is Algorithm.CRC32C


async def test_a_failure_is_the_files_and_the_next_one_asks_again(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    daemon = Daemon(journal, store, server, clock)
    server.failure = StoreError(Fault.DENIED, "no")
    with pytest.raises(StoreError):
        await daemon.checksums.algorithm()
    assert left(store) == []
    server.failure = None
    assert await daemon.checksums.algorithm() is Algorithm.MD5


async def test_after_a_day_it_is_found_out_anew_and_a_failure_keeps_what_is_known(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    daemon = Daemon(journal, store, server, clock)
    await daemon.checksums.algorithm()
    server.algorithm = Algorithm.CRC64NVME
    await daemon.checksums.renew(server)
    assert await daemon.checksums.algorithm() is Algorithm.MD5, "it was asked before a day had passed"
    clock.now += RENEW_MS
    server.failure = StoreError(Fault.TRANSIENT, "away")
    with pytest.raises(StoreError):
        await daemon.checksums.renew(server)
    assert await daemon.checksums.algorithm() is Algorithm.MD5
    assert await Daemon(journal, store, server, clock).checksums.algorithm() is Algorithm.MD5
    server.failure = None
    await daemon.checksums.renew(server)
    assert await daemon.checksums.algorithm() is Algorithm.CRC64NVME
    assert store.algorithm is Algorithm.CRC64NVME


async def test_uploads_do_not_wait_while_it_is_found_out_anew(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    daemon = Daemon(journal, store, server, clock)
    await daemon.checksums.algorithm()
    clock.now += RENEW_MS
    begun, answer = asyncio.Event(), asyncio.Event()
    probe = server.probe

    async def slowly(key: str, now_ms: int) -> Capabilities:
        begun.set()
        await answer.wait()
        return await probe(key, now_ms)

    server.probe = slowly  # type: ignore[method-assign]
    renewing = asyncio.create_task(daemon.checksums.renew(server))
    await begun.wait()
    async with asyncio.timeout(30):
        assert await daemon.checksums.algorithm() is Algorithm.MD5
    answer.set()
    await renewing


async def test_it_looks_every_hour_and_outlives_every_failure(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += RENEW_MS
        server.failure = [None, StoreError(Fault.TRANSIENT, "away"), ValueError("a defect"), asyncio.CancelledError()][
            len(slept) - 1
        ]

    clock.sleep = sleep  # type: ignore[method-assign]
    daemon = Daemon(journal, store, server, clock)
    await daemon.checksums.algorithm()
    with caplog.at_level("INFO"), pytest.raises(asyncio.CancelledError):
        await daemon.checksums.run()
    assert slept == [LOOK_S] * 4
    assert [record.levelname for record in caplog.records if record.message == "capabilities_not_renewed"] == [
        "INFO",
        "ERROR",
    ]
    assert await daemon.checksums.algorithm() is Algorithm.MD5


async def test_without_a_server_nothing_is_found_out(journal: SqliteJournal, store: Folder, clock: SetClock) -> None:
    daemon = Daemon(journal, store, None, clock)
    assert await daemon.checksums.algorithm() is Algorithm.CRC64NVME
    await daemon.checksums.run()


async def test_what_a_crash_leaves_is_removed_by_the_next_life(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    """Whether or not it has anything to send; also what a crash leaves while it is found out anew."""
    server.failure = Crash()
    with pytest.raises(Crash):
        await Daemon(journal, store, server, clock).checksums.algorithm()
    assert len(left(store)) == 2, "the object and the upload"
    await looked_after(journal, store, clock)
    server.failure = None
    await Daemon(journal, store, server, clock).checksums.algorithm()
    clock.now += RENEW_MS
    server.failure = Crash()
    with pytest.raises(Crash):
        await Daemon(journal, store, server, clock).checksums.renew(server)
    assert len(left(store)) == 2
    await looked_after(journal, store, clock)


async def test_what_a_store_does_not_let_go_of_is_removed_once_it_does(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    """It is asked again and again, and less and less often; and again as often when something else is left."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        store.denies = len(slept) not in (10, 12)

    clock.sleep = sleep  # type: ignore[method-assign]
    store.denies = True
    daemon = Daemon(journal, store, server, clock)
    await daemon.checksums.algorithm()
    async with background(daemon.scratch.run()):
        await emptied(daemon.scratch, store)
        assert slept == [SOON_S * 2**number for number in range(8)] + [LATE_S] * 2
        store.denies = True
        clock.now += RENEW_MS
        await daemon.checksums.renew(server)
        await emptied(daemon.scratch, store)
    assert slept[10:] == [SOON_S, SOON_S * 2]


async def test_a_store_that_lets_nothing_be_deleted_keeps_one_key_and_no_more(
    journal: SqliteJournal, store: Folder, server: Server, clock: SetClock
) -> None:
    store.denies = True
    for _ in range(3):
        daemon = Daemon(journal, store, server, clock)
        assert await daemon.checksums.algorithm() is Algorithm.MD5
        clock.now += RENEW_MS
        await daemon.checksums.renew(server)
    assert len(set(server.keys)) == 1
    assert left(store) == ["probe"]
    store.denies = False
    await looked_after(journal, store, clock)
