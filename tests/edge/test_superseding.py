"""The journal's part in superseding: whose versions may give way, and that none which did is ever stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dashd.core.model import Amendment
from ml_dashd.core.states import State
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.ports import Superseded
from tests.edge.journal_rig import OWNER, accept, accepted, in_state, job, key_of, opened

pytestmark = pytest.mark.slow


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    async with opened(tmp_path / "journal.sqlite") as made:
        yield made


async def test_whose_versions_may_give_way(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number)
    await accepted(journal, 20, owner_uid=OWNER + 1)
    await accepted(journal, 21, file="models/other.pt")
    await accepted(journal, 22, project="nlp")
    await accepted(journal, 23)
    await journal.cancel([23])
    newer = await accepted(journal, 30)
    await accepted(journal, 31)
    found = await journal.older(newer)
    assert {one.state for one in found} == {State.QUEUED, State.SENDING, State.COMPLETING}
    assert await journal.get([one.id for one in found]) == found
    assert max(one.id for one in found) < 20


@pytest.mark.parametrize("state", [State.QUEUED, State.SENDING, State.COMPLETING])
async def test_what_gave_way_is_never_stored(journal: SqliteJournal, state: State) -> None:
    older, newer = await in_state(journal, state, 1), await accepted(journal, 2)
    (dropped,) = await journal.supersede([older], newer.id)
    assert dropped == replace(older, cancel_requested=True, superseded_by=2)
    assert await journal.supersede([older], newer.id) == []
    ahead = {State.QUEUED: State.SENDING, State.SENDING: State.COMPLETING, State.COMPLETING: State.VERIFIED}[state]
    with pytest.raises(Superseded):
        await journal.advance(older, ahead)
    assert await journal.advance_all([older], ahead) == []
    assert (await journal.advance(dropped, State.CANCELLED)).superseded_by == 2
    assert (await journal.summary()).superseded == 1


async def test_what_was_stored_or_spoken_of_meanwhile_stays(journal: SqliteJournal) -> None:
    stored, tagged = await in_state(journal, State.COMPLETING, 1), await accepted(journal, 2)
    await journal.advance(stored, State.VERIFIED)
    await journal.amend(tagged.id, Amendment(tags=("best",)))
    newer = await accepted(journal, 3)
    assert await journal.supersede([stored, tagged], newer.id) == []
    assert not any(one.cancel_requested for one in await journal.get([1, 2]))


@pytest.mark.parametrize("end", ["deleted", "failed", "unknown"])
async def test_nothing_gives_way_to_what_is_not_there(journal: SqliteJournal, end: str) -> None:
    older, newer = await accepted(journal, 1), await accepted(journal, 2)
    if end == "deleted":
        await journal.cancel([newer.id])
    elif end == "failed":
        await journal.advance(newer, State.FAILED)
    assert await journal.supersede([older], 99 if end == "unknown" else newer.id) == []


async def test_it_is_kept_that_a_file_takes_the_place_of_others(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    async with opened(path) as journal:
        await accept(journal, replace(job(1), supersedes=True), key_of(1))
    async with opened(path) as journal:
        assert [one.supersedes for one in await journal.pinned()] == [True]
