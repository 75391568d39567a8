"""What the worker is given to do: by priority, by turns of the experiments, and without what waits for the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ml_dash.errors import Code
from ml_dashd.core.model import Trouble
from ml_dashd.core.schedule import Lane
from ml_dashd.edge.journal import SqliteJournal
from tests.edge.journal_rig import EXPERIMENT, TROUBLE, accept, clock, job, journal, key_of, path, record

__all__ = ["clock", "journal", "path"]


async def given(journal: SqliteJournal, number: int, experiment: str, priority: int = 0) -> None:
    """A file of an experiment."""
    record_of = replace(record(number), experiment=experiment)
    await accept(journal, replace(job(number), record=record_of, priority=priority), key_of(number))


async def test_experiments_take_turns(journal: SqliteJournal) -> None:
    """Each with what it handed over first, and it goes on where it stood."""
    for number in range(1, 11):
        await given(journal, number, "a")
    await given(journal, 11, "b")
    for number in (12, 13):
        await given(journal, number, "c")
    assert await due_ids(journal, 9) == [1, 11, 12, 2, 13, 3, 4, 5, 6]
    under_way: list[int] = []
    for _ in range(5):
        under_way += await due_ids(journal, 1, under_way)
    # After the file of "a" that was given last it is the turn of "b".
    assert under_way == [11, 12, 1, 13, 2]


async def test_a_higher_priority_comes_before_every_turn(journal: SqliteJournal) -> None:
    for number in range(1, 5):
        await given(journal, number, "a", priority=1)
    await given(journal, 5, "b")
    await given(journal, 6, "b", priority=-1)
    assert await due_ids(journal, 9) == [1, 2, 3, 4, 5, 6]
    assert await due_ids(journal, 3) == [1, 2, 3]


async def test_a_single_file_waits_for_one_turn_of_ten_thousand(journal: SqliteJournal) -> None:
    """And what is asked for costs as many steps as it has files."""
    await asyncio.gather(*(given(journal, number, "many") for number in range(1, 10_001)))
    await given(journal, 99_999, "single")
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    await journal._database.call(lambda connection: connection.set_progress_handler(count, 100))
    assert 99_999 in await due_ids(journal, 2)
    await journal._database.call(lambda connection: connection.set_progress_handler(None, 0))
    assert steps < 50, "it looked at more than it was asked for"


async def due_ids(journal: SqliteJournal, limit: int, skip: list[int] | None = None) -> list[int]:
    return [one.id for one in await journal.due(Lane.SMALL, 1000, skip or [], limit)]


async def test_what_waits_behind_a_circuit_is_blocked_and_let_go(journal: SqliteJournal) -> None:
    for number in range(1, 6):
        await given(journal, number, "a" if number < 4 else "b")
    away = Trouble(Code.STORE_UNREACHABLE, "refused", "mend it")
    await journal.hold([1, 2, 4], 9000, away)
    await journal.hold([5], 9500, TROUBLE)
    assert await due_ids(journal, 9) == [3]
    assert {one.id: one.trouble for one in (await journal.summary()).blocked} == {1: away, 2: away, 4: away, 5: TROUBLE}
    assert (await journal.left(1000)).held == 4
    assert [one.attempt for one in await journal.get([1, 2, 4, 5])] == [0, 0, 0, 0]
    first = await journal.held(None, [1])
    assert first is not None
    assert first.id == 2
    refused = await journal.held((*EXPERIMENT[:2], "b"), [])
    assert refused is not None
    assert refused.id == 5  # the other one of "b" waits for the store
    assert await journal.held((*EXPERIMENT[:2], "a"), []) is None
    assert await journal.release(None, 2) == 2
    assert await journal.release(None, 9) == 1
    assert sorted(await due_ids(journal, 9)) == [1, 2, 3, 4]
    assert [one.id for one in (await journal.summary()).blocked] == [5]
    assert await journal.release((*EXPERIMENT[:2], "b"), 9) == 1
    assert [(one.blocked, one.trouble) for one in await journal.get([5])] == [(False, None)]
