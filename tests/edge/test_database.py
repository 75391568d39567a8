"""One thread, one connection: calls share commits and fail alone, and nothing that was answered is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.edge.database import MAX_BATCH, Database
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.opening import WAL_PAGES
from ml_dashd.ports import Faults, JournalError
from tests.doubles.disks import fill, tmpfs
from tests.harness import eventually

SCHEMA = ["CREATE TABLE t (n INTEGER PRIMARY KEY) STRICT;"]


class Points:
    """Fault points: counts the commits of what was written, and fails one of them."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.commits = 0

    def at(self, point: str) -> None:
        if point == "test.before_commit":
            self.commits += 1
            if self.commits == self.failing:
                raise OSError(5, f"fault point {point}")


@contextmanager
def database(path: Path, faults: Faults | None = None, schema: list[str] = SCHEMA) -> Iterator[Database]:
    opened = Database(path, schema, faults or NoFaults(), "test")
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.sqlite"


def put(number: int) -> Callable[[sqlite3.Connection], int]:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    return work


def numbers(path: Path) -> list[int]:
    """What another program finds."""
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT n FROM t ORDER BY n")]


@asynccontextmanager
async def held(opened: Database) -> AsyncIterator[None]:
    """Keeps its thread busy in a transaction of its own, so that the calls made meanwhile are the next ones' batch."""
    busy, gate = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        busy.set()
        gate.wait(10)

    first = asyncio.create_task(opened.call(work))
    await asyncio.to_thread(busy.wait, 10)
    try:
        yield
        await asyncio.sleep(0)  # the tasks made meanwhile put their calls in the queue
    finally:
        gate.set()
        await asyncio.gather(first, return_exceptions=True)


async def test_calls_that_wait_share_one_commit(path: Path) -> None:
    points = Points()
    with database(path, points) as opened:
        async with held(opened):
            calls = [asyncio.create_task(opened.call(put(number))) for number in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))
        assert points.commits == 1
    assert numbers(path) == list(range(100))


async def test_commits_of_changes_are_timed_and_no_reads(path: Path) -> None:
    inside = 0

    @contextmanager
    def committing() -> Iterator[None]:
        nonlocal inside
        yield
        assert numbers(path), "it was not on disk when its time was over"
        inside += 1

    opened = Database(path, SCHEMA, NoFaults(), "test", committing)
    await opened.call(put(1))
    await opened.call(lambda connection: connection.execute("SELECT n FROM t").fetchall())
    await opened.call(put(2))
    opened.close()
    assert inside == 2


async def test_a_batch_has_a_bound(path: Path) -> None:
    points = Points()
    with database(path, points) as opened:
        async with held(opened):
            calls = [asyncio.create_task(opened.call(put(number))) for number in range(2 * MAX_BATCH + 1)]
        await asyncio.gather(*calls)
        assert points.commits == 3


async def test_calls_run_in_the_order_in_which_they_were_made(path: Path) -> None:
    order: list[int] = []
    with database(path) as opened:
        await asyncio.gather(*(opened.call(lambda _, number=number: order.append(number)) for number in range(300)))
    assert order == list(range(300))


async def test_one_that_fails_in_a_batch_fails_alone(path: Path) -> None:
    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (50)")
        raise KeyError("halfway")

    points = Points()
    with database(path, points) as opened:
        async with held(opened):
            works = [put(1), half_done, put(2), put(1), put(3)]
            calls = [asyncio.create_task(opened.call(work)) for work in works]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert points.commits == 1
    assert outcomes[0::2] == [1, 2, 3]
    assert isinstance(outcomes[1], KeyError)
    assert isinstance(outcomes[3], sqlite3.IntegrityError)
    assert numbers(path) == [1, 2, 3]


async def test_a_commit_that_fails_fails_its_calls_and_no_later_one(path: Path) -> None:
    with database(path, Points(failing=1)) as opened:
        async with held(opened):
            calls = [asyncio.create_task(opened.call(put(number))) for number in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError] * 3
        assert await opened.call(put(7)) == 7
    assert numbers(path) == [7]


async def test_a_transaction_that_sqlite_gave_up_fails_its_calls_and_no_later_one(path: Path) -> None:
    """As a full disk does: SQLite rolls everything back by itself, the savepoints too."""
    with database(path) as opened:
        async with held(opened):
            works: list[Callable[[sqlite3.Connection], object]] = [
                put(1),
                lambda connection: connection.execute("ROLLBACK"),
                put(2),
            ]
            calls = [asyncio.create_task(opened.call(work)) for work in works]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, sqlite3.Error) for outcome in outcomes)
        assert await opened.call(put(3)) == 3
    assert numbers(path) == [3]


async def test_what_was_answered_is_on_disk_while_the_database_is_still_open(path: Path) -> None:
    with database(path) as opened:
        await opened.call(put(1))
        assert numbers(path) == [1]


async def test_a_caller_that_leaves_does_not_undo_its_call(path: Path) -> None:
    with database(path) as opened:
        async with held(opened):
            call = asyncio.create_task(opened.call(put(1)))
            await asyncio.sleep(0)
            call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await opened.call(put(2)) == 2
    assert numbers(path) == [1, 2]


async def test_close_finishes_what_was_asked_for(path: Path) -> None:
    opened = Database(path, SCHEMA, NoFaults(), "test")
    calls = [asyncio.create_task(opened.call(put(number))) for number in range(MAX_BATCH + 100)]
    await asyncio.sleep(0)
    opened.close()
    assert numbers(path) == list(range(MAX_BATCH + 100))
    assert await asyncio.gather(*calls) == list(range(MAX_BATCH + 100))


async def test_close_folds_the_log_back(path: Path) -> None:
    with database(path) as opened:
        await opened.call(put(1))
        assert path.with_name("test.sqlite-wal").stat().st_size > 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["test.reserve", "test.sqlite"]


async def test_after_close_a_call_is_refused_and_a_close_does_nothing(path: Path) -> None:
    opened = Database(path, SCHEMA, NoFaults(), "test")
    opened.close()
    opened.close()
    with pytest.raises(MLDashError) as raised:
        await asyncio.wait_for(opened.call(put(1)), 5)
    assert raised.value.code is Code.SHUTTING_DOWN


async def test_a_loop_that_has_ended_takes_no_answer_and_harms_none(path: Path) -> None:
    """The thread outlives a caller's loop, and goes on for the next."""
    opened = Database(path, SCHEMA, NoFaults(), "test")
    gate = threading.Event()

    async def ask_and_leave() -> None:
        asyncio.create_task(opened.call(lambda _: gate.wait(10)))  # noqa: RUF006 it is left on purpose
        asyncio.create_task(opened.call(put(1)))  # noqa: RUF006
        await asyncio.sleep(0)

    await asyncio.to_thread(lambda: asyncio.run(ask_and_leave()))
    gate.set()
    assert await opened.call(put(2)) == 2
    opened.close()
    assert numbers(path) == [1, 2]


async def test_migrations_run_once_and_in_order(path: Path) -> None:
    second = "INSERT INTO t VALUES (1); CREATE TABLE u (n INTEGER) STRICT;"
    third = "INSERT INTO t SELECT max(n) + 1 FROM t;"
    for schema in (SCHEMA, [*SCHEMA, second, third], [*SCHEMA, second, third]):
        with database(path, schema=schema) as opened:
            (version,) = await opened.call(lambda connection: connection.execute("PRAGMA user_version").fetchone())
            assert version == len(schema)
    assert numbers(path) == [1, 2]


async def test_a_migration_that_fails_leaves_the_version_before(path: Path) -> None:
    with database(path) as opened:
        await opened.call(put(1))
    with pytest.raises(MLDashError) as raised:
        Database(path, [*SCHEMA, "INSERT INTO t VALUES (2); INSERT INTO t VALUES (1)"], NoFaults(), "test")
    assert str(path) in raised.value.message
    assert numbers(path) == [1]
    with database(path) as opened:
        (version,) = await opened.call(lambda connection: connection.execute("PRAGMA user_version").fetchone())
        assert version == 1


async def test_a_database_of_a_newer_release_is_refused_and_left_alone(path: Path) -> None:
    with database(path, schema=[*SCHEMA, "INSERT INTO t VALUES (1)"]):
        pass
    before = path.read_bytes()
    with pytest.raises(MLDashError) as raised:
        Database(path, SCHEMA, NoFaults(), "test")
    assert raised.value.code is Code.CONFIG
    assert str(path) in raised.value.message
    assert "newer release" in raised.value.message
    assert path.read_bytes() == before
    assert numbers(path) == [1]


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("these are my notes, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(MLDashError) as raised:
        Database(path, SCHEMA, NoFaults(), "test")
    assert str(path) in raised.value.message
    assert "not a database" in raised.value.message
    assert path.read_bytes() == before


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises((MLDashError, OSError)) as raised:
        Database(tmp_path / "missing" / "test.sqlite", SCHEMA, NoFaults(), "test")
    assert str(tmp_path / "missing") in str(raised.value)


async def test_nobody_else_may_read_it_nor_its_log(path: Path) -> None:
    """The log holds what small files hold."""
    before = os.umask(0)
    try:
        with database(path) as opened:
            await opened.call(put(1))
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {f"test.{suffix}": 0o600 for suffix in ("sqlite", "sqlite-wal", "sqlite-shm", "reserve")}


async def test_the_log_is_made_large_once_and_then_overwritten(path: Path) -> None:
    """Growing it would make a commit wait for the trainer's freshly written data."""
    log = path.with_name("test.sqlite-wal")
    with database(path) as opened:
        size = log.stat().st_size
        for number in range(200):
            await opened.call(put(number))
        assert log.stat().st_size == size > 1 << 22


@pytest.mark.parametrize("calls", [1, 3], ids=["alone", "in a batch"])
async def test_an_error_that_is_pythons_own_ends_its_call_alone(path: Path, calls: int) -> None:
    """It has no code of SQLite's; the thread goes on, else every later call would wait for ever."""
    with database(path) as opened:
        async with held(opened):
            wrong = [
                asyncio.create_task(opened.call(lambda connection: connection.execute("SELECT ?", ())))
                for _ in range(calls)
            ]
        outcomes = await asyncio.gather(*wrong, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [sqlite3.ProgrammingError] * calls
        assert await opened.call(put(3)) == 3


def refused_write(number: int, times: int, *, undone: bool = False) -> Callable[[sqlite3.Connection], int]:
    """Like `put`, on a disk that has no room for so many tries: what SQLite says where a user's quota is reached.

    `undone`: in the middle of a large change, it ends the whole transaction, too.
    """
    left = [times]

    def work(connection: sqlite3.Connection) -> int:
        if left[0]:
            left[0] -= 1
            if undone:
                connection.execute("ROLLBACK")
            refusal = sqlite3.OperationalError("disk I/O error")
            refusal.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
            raise refusal
        return put(number)(connection)

    return work


def test_the_log_of_one_that_is_killed_again_and_again_keeps_its_size(path: Path, tmp_path: Path) -> None:
    """Each opens what the one before had on the disk in the middle of its life."""
    for number in range(3):
        left = tmp_path / str(number)
        left.mkdir()
        with database(path):
            for file in path.parent.glob("test.*"):
                shutil.copy(file, left)
        path = left / path.name
    assert WAL_PAGES * 4096 <= path.with_name("test.sqlite-wal").stat().st_size < 2 * WAL_PAGES * 4096


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "in a batch"])
@pytest.mark.parametrize("undone", [False, True])
async def test_what_lets_files_go_on_has_the_reserve(path: Path, others: int, undone: bool) -> None:
    with database(path) as opened:
        async with held(opened):
            calls = [asyncio.create_task(opened.call(put(number))) for number in range(others)]
            needed = asyncio.create_task(opened.call(refused_write(50, 2, undone=undone)))
            more = asyncio.create_task(opened.call(refused_write(60, 2), spare=True))
        outcomes = await asyncio.gather(needed, more, return_exceptions=True)
        assert await asyncio.gather(*calls) == list(range(others))
        assert outcomes[0] == 50
        assert isinstance(outcomes[1], JournalError)
        assert await opened.call(put(70), spare=True) == 70, "the disk has room again"
        assert opened.failure() is None
    assert numbers(path) == [*range(others), 50, 70]


class Refusing:
    """A disk that refuses every commit, whatever is given up for it, with this code of SQLite's."""

    def __init__(self, code: int) -> None:
        self._code = code

    def at(self, point: str) -> None:
        if point == "test.before_commit":
            refusal = sqlite3.OperationalError("refused")
            refusal.sqlite_errorcode = self._code
            raise refusal


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE], ids=["no space", "quota"])
async def test_a_full_disk_can_be_read(path: Path, code: int) -> None:
    """Who asks beside somebody whose change finds no room is answered; a quota is called what it is."""
    with database(path, Refusing(code)) as opened:
        async with held(opened):
            changes = [asyncio.create_task(opened.call(put(number))) for number in range(2)]
            asked = asyncio.create_task(opened.call(lambda connection: connection.execute("SELECT 5").fetchone()))
        refused = await asyncio.gather(*changes, return_exceptions=True)
        assert tuple(await asked) == (5,)
        for refusal in refused:
            assert isinstance(refusal, JournalError)
            assert refusal.code is Code.DISK_FULL
            assert str(path) in str(refusal)
    assert numbers(path) == []


async def test_a_disk_that_refused_a_sync_can_be_read(path: Path) -> None:
    """Who asks beside the change that was refused is answered, as is everybody after it."""
    with database(path, Refusing(sqlite3.SQLITE_IOERR_FSYNC)) as opened:
        async with held(opened):
            changed = asyncio.create_task(opened.call(put(1)))
            asked = asyncio.create_task(opened.call(lambda connection: connection.execute("SELECT 5").fetchone()))
        assert tuple(await asked) == (5,)
        for refused in (changed, opened.call(put(2))):
            with pytest.raises(JournalError) as refusal:
                await refused
            assert refusal.value.code is Code.DISK_FAILED
        assert opened.unsure()


async def test_room_that_was_made_is_noticed_though_nobody_calls(tmp_path: Path) -> None:
    """What is shown of a database, and asked before a hand-off, is not what it was when it was called last."""
    with tmpfs(tmp_path / "disk", 32 << 20) as disk, database(disk / "test.sqlite") as opened:
        await opened.call(lambda connection: connection.execute("CREATE TABLE b (content BLOB)").close())
        filler = fill(disk)
        for _ in range(4):  # the log is stretched: it takes more than that to need the reserve
            with suppress(JournalError):
                await opened.call(
                    lambda connection: connection.execute("INSERT INTO b VALUES (zeroblob(6 << 20))").close()
                )
        trouble = opened.trouble()
        assert trouble is not None
        assert trouble.code is Code.DISK_FULL
        filler.unlink()
        await asyncio.to_thread(eventually, lambda: opened.trouble() is None)
