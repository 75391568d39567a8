"""What a move costs the journal: its row and its event, and no index of what waits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dashd.core.model import Algorithm, Job, PinKind
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.edge.journal import SqliteJournal
from tests.edge.journal_rig import TROUBLE, accepted, clock, in_state, journal, opened, path, rows

__all__ = ["clock", "journal", "path"]

OF_WHAT_WAITS = {"files_due", "files_listed", "files_waiting"}


async def written(journal: SqliteJournal, path: Path, jobs: list[Job], to: State, **changes: object) -> set[str]:
    """The names of the indexes that SQLite opens for writing when it moves these, as its own program says."""
    asked: list[str] = []
    await journal._database.call(lambda connection: connection.set_trace_callback(asked.append))
    jobs[:] = await journal.advance_all(jobs, to, [changes] * len(jobs))
    await journal._database.call(lambda connection: connection.set_trace_callback(None))
    update = next(statement for statement in asked if statement.startswith("WITH new"))
    roots = dict(rows(path, "SELECT rootpage, name FROM sqlite_schema WHERE type = 'index'"))
    opened = [step[3] for step in rows(path, f"EXPLAIN {update}") if step[1] == "OpenWrite"]
    return {roots[root] for root in opened if root in roots}


async def test_a_move_of_a_file_that_stays_on_its_way_leaves_its_indexes_alone(
    journal: SqliteJournal, path: Path
) -> None:
    jobs = [await accepted(journal, number) for number in range(1, 5)]
    begun = await written(journal, path, jobs, State.SENDING, key="k", algorithm=Algorithm.CRC32C)
    assert not begun & OF_WHAT_WAITS
    proved = {"sha256": "ab" * 32, "crc64nvme": 7, "attempt": 0, "blocked": False, "not_before_ms": 0, "trouble": None}
    assert not await written(journal, path, jobs, State.VERIFIED, **proved) & OF_WHAT_WAITS
    assert [job.id for job in await journal.due(Lane.SMALL, 2**62, [], 9)] == [1, 2, 3, 4]
    assert await written(journal, path, jobs, State.DONE) >= OF_WHAT_WAITS
    assert await journal.due(Lane.SMALL, 2**62, [], 9) == []
    assert await journal.pinned() == []


async def test_a_file_that_was_put_off_runs_when_it_moves_on(journal: SqliteJournal) -> None:
    """One of several, so that the others can't stand for it."""
    late, other = await accepted(journal, 1), await accepted(journal, 2)
    await journal.hold([late.id], 9000, TROUBLE)
    begun = await journal.advance_all([late, other], State.SENDING, [{"not_before_ms": 0, "blocked": False}] * 2)
    assert [(job.id, job.not_before_ms, job.blocked) for job in begun] == [(1, 0, False), (2, 0, False)]
    assert await journal.due(Lane.SMALL, 1000, [], 9) == await journal.get([1, 2])
    assert await journal.next_due_ms(1000) is None


@pytest.mark.parametrize("nonsense", ["state = 'FAILED'", "open = 0", "open = 1, state = 'SENDING'"])
async def test_sql_refuses_a_state_that_is_asked_for_as_another(path: Path, nonsense: str) -> None:
    async with opened(path) as journal:
        await accepted(journal)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="transition table"):
        connection.execute(f"UPDATE files SET {nonsense}")


async def test_each_state_is_asked_for_as_what_it_is(journal: SqliteJournal) -> None:
    jobs = [await in_state(journal, state, number) for number, state in enumerate(State, start=1)]
    await holds(journal, jobs)


async def test_a_journal_of_the_first_release_has_each_of_its_states(path: Path) -> None:
    old = (Path(__file__).parents[1] / "vectors" / "journal-1.sql").read_text()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(old)
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(files)")]
        same = ", ".join(name for name in columns if name not in ("id", "request_key", "state"))
        for number, state in enumerate(State, start=1):
            connection.execute(
                f"INSERT INTO files (id, request_key, state, {same}) "
                f"SELECT ?, randomblob(16), ?, {same} FROM files WHERE id > 1000",
                (number, state),
            )
        connection.execute("DELETE FROM files WHERE id > 1000")
    async with opened(path) as journal:
        jobs = await journal.get(range(1, len(State) + 1))
        await holds(journal, jobs)
        for job in [job for job in jobs if job.state in UNFINISHED]:
            failed = await journal.advance(job, State.FAILED, trouble=TROUBLE)
            again = await journal.advance(failed, State.QUEUED)
            assert again == (await journal.get([job.id]))[0]
        assert await journal.due_count() == len(UNFINISHED)


async def holds(journal: SqliteJournal, jobs: list[Job]) -> None:
    """What is due, listed and finished are the files of those states."""
    going = [job.id for job in jobs if job.state in UNFINISHED]
    ended = [job.id for job in jobs if job.state in (State.DONE, State.CANCELLED)]
    lane = Lane.INLINE if jobs[0].pin.kind is PinKind.INLINE else Lane.SMALL
    await journal.hasten()
    assert sorted(job.id for job in await journal.due(lane, 2**62, [], 99)) == going
    assert sorted(job.id for job in await journal.foremost(lane, 2**62, 99)) == going
    assert sorted(job.id for job in await journal.pinned()) == sorted({job.id for job in jobs} - set(ended))
    assert sorted(job.id for job in await journal.finished(2**62, 99)) == ended
    assert [replace(job, not_before_ms=0) for job in await journal.get([job.id for job in jobs])] == [
        replace(job, not_before_ms=0) for job in jobs
    ]
