"""Saves and pages do the same work however many files there are: counted in steps of SQLite's machine, not timed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Selection
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.database import Database
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.listing import FEW
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Handed

pytestmark = pytest.mark.slow

EXPERIMENT = ("alice", "cv", "resnet")
MANY = 4000
ROWS = 500


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[SqliteCatalog]:
    made = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    yield made
    await made.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path / "journal.sqlite", SystemClock(), NoFaults(), lambda _, __: Lane.INLINE)
    await made.open()
    yield made
    made.close()


def record(number: int, path: str) -> FileRecord:
    prefix, _, filename = path.rpartition("/")
    return FileRecord(
        number, 1000, *EXPERIMENT, prefix, filename, 5, "text/plain", 1, 1,
        sha256="ab" * 32, key=f"files/{number}", uploaded_ms=1,
    )  # fmt: skip


def handed(number: int, state: State = State.QUEUED) -> Handed:
    """One of many files of one experiment, in folders of a hundred."""
    made = Job(record(number, f"frames/{number // 100:03}/{number:05}.png"), Pin(PinKind.NONE), state, on_disk=True)
    return Handed(made, number.to_bytes(16, "big"))


async def steps(database: Database, ask: Callable[[], Awaitable[object]]) -> int:
    """How many instructions SQLite runs for a question or a change."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    await database.call(lambda connection: connection.set_progress_handler(step, 1))
    await ask()
    await database.call(lambda connection: connection.set_progress_handler(None, 1))
    return count


async def save(journal: SqliteJournal, number: int) -> None:
    """The way of a small file through the journal, the worker's questions included."""
    ((job, _),) = await journal.accept_all([handed(number)])
    assert [one.id for one in await journal.due(Lane.INLINE, 2**62, [], 9)] == [job.id]
    for state in (State.SENDING, State.VERIFIED, State.DONE):
        (job,) = await journal.advance_all([job], state)
    await journal.next_due_ms(1)
    await journal.due_count()
    await journal.backlog()
    await journal.unclean(9)
    await journal.finished(0, 9)
    await journal.unfinished(Selection(*EXPERIMENT))


async def test_a_save_beside_a_day_of_stored_files(journal: SqliteJournal) -> None:
    alone = await steps(journal._database, lambda: save(journal, 10**6))
    for start in range(0, MANY, ROWS):
        await journal.accept_all([handed(number, State.DONE) for number in range(start, start + ROWS)])
    assert await steps(journal._database, lambda: save(journal, 10**6 + 1)) < alone * 1.1


async def test_the_commit_of_a_file_beside_all_others(catalog: SqliteCatalog) -> None:
    def commit(number: int) -> Callable[[], Awaitable[None]]:
        return lambda: catalog.commit([record(number, "frames/a.png")])

    alone = await steps(catalog._database, commit(10**6))
    await fill(catalog)
    assert await steps(catalog._database, commit(10**6 + 1)) < alone * 1.1


async def fill(catalog: SqliteCatalog) -> None:
    for start in range(0, MANY, ROWS):
        await catalog.commit([handed(number).job.record for number in range(start, start + ROWS)])
    await catalog.commit([record(10**5 + number, f"configs/{number}.json") for number in range(20)])
    await catalog.commit([record(2 * 10**5 + number, "model.pt") for number in range(MANY)])


def page(catalog: SqliteCatalog, **asked: object) -> Callable[[], Awaitable[object]]:
    return lambda: catalog.select(Selection(*EXPERIMENT, **asked))  # type: ignore[arg-type]


async def test_a_page_takes_what_it_lists(catalog: SqliteCatalog) -> None:
    """The last as the first one, inside the versions of one path, too; and a list what it finds."""
    await fill(catalog)
    first = await steps(catalog._database, page(catalog, limit=20, cursor=("frames/000/00000.png", 0)))
    pages = [
        {"cursor": ("frames/039/03970.png", 3970)},
        {"cursor": ("model.pt", 2 * 10**5 + 25)},
        {"prefix": "frames/039", "cursor": ("frames/039/03950.png", 3950)},
        {"pattern": "**/*.json"},
        {"prefix": "configs", "pattern": "*.json"},
        {"prefix": "configs", "pattern": "*"},
    ]
    for asked in pages:
        assert await steps(catalog._database, page(catalog, limit=20, **asked)) < first * 2, asked
    newest = await steps(catalog._database, page(catalog, latest=True, prefix="model.pt", pattern="", limit=20))
    assert newest < first
    behind = {"latest": True, "cursor": ("frames/039/03990.png", 3990), "limit": 20}
    assert await steps(catalog._database, page(catalog, **behind)) < first * 4, "9 paths, of which the last has 4,000"


async def test_a_folder_is_read_alone_whatever_lies_below_it(catalog: SqliteCatalog) -> None:
    """And of a large one only the files of an ending, where the pattern names it."""
    await catalog.commit([record(number, f"{number}.json") for number in range(1, 6)])
    alone = {pattern: await steps(catalog._database, page(catalog, pattern=pattern)) for pattern in ("*", "*.json")}
    await catalog.commit([record(10**6 + number, f"runs/{number}/config.json") for number in range(ROWS)])
    for start in range(0, MANY, ROWS):
        await catalog.commit([handed(number).job.record for number in range(start, start + ROWS)])
    for pattern, before in alone.items():
        assert await steps(catalog._database, page(catalog, pattern=pattern)) < before * 1.2
    none = await steps(catalog._database, page(catalog, prefix="frames", pattern="*"))
    assert none < alone["*"], "40 folders of a hundred files lie below it, and none in it"
    await catalog.commit([record(3 * 10**5 + number, f"all/{number:05}.png") for number in range(2 * FEW)])
    found = await steps(catalog._database, page(catalog, prefix="all", pattern="*.json"))
    assert found < alone["*.json"] + 10 * FEW
