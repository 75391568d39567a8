"""A source that comes to its end while its duplicate is pinned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job, Pin, PinKind, Trouble
from ml_dashd.core.states import State
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.flow.duplicate import Duplicate
from ml_dashd.ports import Session
from tests.edge.journal_rig import accepted, key_of, opened


class World:
    """Looks a file up, and pins it again while it fails, as a source does that was changed."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal

    async def find(self, *_: Any) -> Job:
        (job,) = await self._journal.get([7])
        return job

    async def adopt(
        self, session: Session, message: m.Duplicate, source: Job, is_pinned: Callable[[Job], Awaitable[bool]]
    ) -> Job:
        assert await is_pinned(source)
        trouble = Trouble(Code.SOURCE_CHANGED, "it was changed", "")
        await self._journal.advance(source, State.FAILED, trouble=trouble, pin=Pin(PinKind.NONE))
        assert not await is_pinned(source), "a slot is another save's by now"
        raise error(Code.SOURCE_LOST, "it was let go")


async def test_what_comes_again_has_its_first_answer_though_the_source_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.sqlite") as journal:
        job = await accepted(journal)
        assert await journal.handed(job.record.owner_uid, key_of(7)) == job
        assert await journal.handed(job.record.owner_uid + 1, key_of(7)) is None
        world: Any = World(journal)
        duplicate = Duplicate(browse=None, accept=None, journal=journal, worker=world)  # type: ignore[arg-type]
        file = m.Described(place=m.Place(namespace="a", project="b", experiment="c"), to="x")
        message = m.Duplicate(request=1, key=key_of(7), source=99, file=file)
        assert await duplicate.run(Session(1, job.record.owner_uid, 1), message) == job


async def test_a_source_that_was_let_go_meanwhile_is_not_duplicated(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.sqlite") as journal:
        await accepted(journal)
        world: Any = World(journal)
        duplicate = Duplicate(browse=world, accept=world, journal=journal, worker=world)
        file = m.Described(place=m.Place(namespace="a", project="b", experiment="c"), to="x")
        with pytest.raises(MLDashError) as refused:
            await duplicate.run(Session(1, 1000, 1), m.Duplicate(request=1, key=bytes(16), source=7, file=file))
        assert refused.value.code is Code.SOURCE_CHANGED
