"""A page while files move over from the journal to the catalog: each is seen once, never not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dash.messages import Place
from ml_dashd.core.access import Policy
from ml_dashd.core.model import Amendment, FileRecord, Job, Pin, PinKind, Selection
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.browse import Browse
from ml_dashd.ports import Handed, Session

ME = Session(1, 1000, 1)
PLACE = Place(namespace="alice", project="cv", experiment="resnet")


class Moves:
    """Lets files go on right after journal or catalog was asked, before the other is."""

    def __init__(self) -> None:
        self.go_on: Callable[[], Awaitable[None]] | None = None

    async def now(self) -> None:
        if self.go_on is not None:
            await self.go_on()


class MovingJournal(SqliteJournal):
    moves: Moves

    async def select(self, selection: Selection) -> list[Job]:
        jobs = await super().select(selection)
        await self.moves.now()
        return jobs


class MovingCatalog(SqliteCatalog):
    moves: Moves

    async def select(self, selection: Selection) -> list[FileRecord]:
        records = await super().select(selection)
        await self.moves.now()
        return records


@pytest.fixture
def moves() -> Moves:
    return Moves()


@pytest.fixture
async def journal(tmp_path: Path, moves: Moves) -> AsyncIterator[MovingJournal]:
    made = MovingJournal(tmp_path / "journal.sqlite", SystemClock(), NoFaults(), lambda _, __: Lane.INLINE)
    made.moves = moves
    await made.open()
    yield made
    made.close()


@pytest.fixture
async def catalog(tmp_path: Path, moves: Moves) -> AsyncIterator[MovingCatalog]:
    made = MovingCatalog(tmp_path / "catalog.sqlite", NoFaults())
    made.moves = moves
    yield made
    await made.close()


@pytest.fixture
def browse(journal: MovingJournal, catalog: MovingCatalog) -> Browse:
    unused = cast("Any", None)
    return Browse(
        journal=journal, catalog=catalog, pins=unused, threads=unused, worker=unused, bell=Bell(),
        clock=SystemClock(), policy=Policy(1000),
    )  # fmt: skip


def file(number: int, path: str) -> FileRecord:
    prefix, _, filename = path.rpartition("/")
    return FileRecord(
        number, 1000, "alice", "cv", "resnet", prefix, filename, 5, "text/plain", 1, 1,
        sha256="ab" * 32, key=f"files/{number}", uploaded_ms=1,
    )  # fmt: skip


async def hand_over(journal: MovingJournal, *files: FileRecord) -> list[Job]:
    taken = [Handed(Job(one, Pin(PinKind.NONE), on_disk=True), one.id.to_bytes(16, "big")) for one in files]
    return [job for job, _ in await journal.accept_all(taken)]


async def store(journal: MovingJournal, catalog: MovingCatalog, jobs: list[Job]) -> None:
    for state in (State.SENDING, State.VERIFIED):
        jobs = await journal.advance_all(jobs, state)
    await catalog.commit([job.record for job in jobs])
    await journal.advance_all(jobs, State.DONE)


async def pages(browse: Browse, pattern: str | None = None, *, latest: bool = False, size: int = 2) -> list[int]:
    """The ids of all pages."""
    found: list[int] = []
    cursor = None
    while True:
        page, cursor = await browse.page(ME, PLACE, pattern, cursor, size, latest=latest)
        found += [seen.id for seen in page]
        if cursor is None:
            return found


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("pattern", [None, "**/*.pt", "m/*"])
async def test_what_moves_over_between_the_two_questions(
    browse: Browse, journal: MovingJournal, catalog: MovingCatalog, moves: Moves, pattern: str | None, latest: bool
) -> None:
    jobs = await hand_over(journal, *(file(number, f"m/{number}.pt") for number in range(1, 8)))
    left = iter([[], jobs[:1], [], jobs[1:2], jobs[2:4], [], jobs[4:]])

    async def go_on() -> None:
        if some := next(left, None):
            await store(journal, catalog, some)

    moves.go_on = go_on
    for _ in range(4):
        assert await pages(browse, pattern, latest=latest) == [1, 2, 3, 4, 5, 6, 7]


async def test_the_newest_is_the_newest_of_both(browse: Browse, journal: MovingJournal, catalog: MovingCatalog) -> None:
    """Whichever of journal and catalog has it, with versions of a path that reach over pages."""
    stored = await hand_over(journal, *(file(number, f"{'abc'[number % 3]}.pt") for number in range(1, 13)))
    await store(journal, catalog, stored[:6] + stored[9:10])
    assert await pages(browse, latest=True) == [12, 10, 11]
    assert await pages(browse, latest=True, size=1) == [12, 10, 11]
    assert await pages(browse, "b.pt", latest=True) == [10]
    assert await pages(browse, "b.pt") == [10, 7, 4, 1]
    assert await pages(browse, size=1) == [12, 9, 6, 3, 10, 7, 4, 1, 11, 8, 5, 2]


async def test_what_is_said_while_a_file_is_listed_is_shown_at_once(
    browse: Browse, journal: MovingJournal, catalog: MovingCatalog
) -> None:
    """Between its commit and its end the catalog has the old words, and the journal the new ones."""
    jobs = await hand_over(journal, file(1, "m/1.pt"), file(2, "m/2.pt"))
    for state in (State.SENDING, State.VERIFIED):
        jobs = await journal.advance_all(jobs, state)
    await catalog.commit([job.record for job in jobs])
    await journal.amend(1, Amendment(description="new", tags=("best",)))
    page, _ = await browse.page(ME, PLACE, None, None, 10, latest=False)
    assert [(seen.id, seen.record.description, seen.record.tags) for seen in page] == [
        (1, "new", ("best",)),
        (2, None, ()),
    ]


async def test_what_is_deleted_while_it_is_listed_is_gone_at_once(
    browse: Browse, journal: MovingJournal, catalog: MovingCatalog
) -> None:
    """Between its commit and its end the catalog has it, and has not heard of the deletion."""
    jobs = await hand_over(journal, *(file(number, f"m/{number}.pt") for number in range(1, 5)))
    for state in (State.SENDING, State.VERIFIED):
        jobs = await journal.advance_all(jobs, state)
    await journal.cancel([1, 3])
    await catalog.commit([job.record for job in jobs])
    for _ in range(2):
        assert await pages(browse) == [2, 4]
        assert [seen.id for seen in (await browse.everywhere(ME, None, 10))[0]] == [2, 4]
        of_ids = await browse.get(ME, [1, 2, 3, 4])
        assert [seen.cancel_requested or seen.record.deleted_ms is not None for seen in of_ids] == [
            True, False, True, False,
        ]  # fmt: skip
        await journal.advance_all(jobs, State.DONE)
