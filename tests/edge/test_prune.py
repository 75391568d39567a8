"""What [retention] takes for a version: not what was deleted while it was listed; and who looks, in a fleet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.access import Policy
from ml_dashd.core.model import EVERYBODY, FileRecord, Selection
from ml_dashd.core.retention import Rule
from ml_dashd.core.rounds import Round
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.flow.prune import LEASE_MS, PAUSE_S, Prune
from ml_dashd.flow.rounds import Alone
from ml_dashd.ports import Handed
from tests.edge.journal_rig import SetClock, job, key_of, opened, record


class OneLook(BaseException):
    """The pause after a look at everything."""


class Clock(SetClock):
    async def sleep(self, seconds: float) -> None:
        raise OneLook


async def test_a_version_that_was_deleted_while_it_was_listed_keeps_no_place(tmp_path: Path) -> None:
    """The daemon was killed between its commit and its deletion: lists leave it out, and so does this."""
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    async with opened(tmp_path / "journal.sqlite") as journal:
        older, newer = (record(number, sha256="0" * 64, key=str(number)) for number in (7, 8))
        await catalog.commit([older, newer])
        ((taken, _),) = await journal.accept_all([Handed(job(8), key_of(8))])
        for state in (State.SENDING, State.VERIFIED):
            taken = await journal.advance(taken, state)
        await journal.cancel([8])
        await journal.advance_all([taken], State.DONE)
        browse: Any = None  # which is for requests
        prune = Prune(
            browse=browse,
            journal=journal,
            catalog=catalog,
            policy=Policy(0),
            clock=Clock(),
            faults=NoFaults(),
            rounds=Alone(),
            holder="me",
        )
        with pytest.raises(OneLook):
            await prune.retain(Rule(1), "**")
        assert [each.deleted_ms for each in await catalog.get([7, 8])] == [None, None]
    await catalog.close()


# ---- in a fleet


class Watched(SqliteCatalog):
    """One of which each page that is read takes its time; `dies` is in which experiment who reads it does."""

    def __init__(self, path: Path, clock: SetClock) -> None:
        super().__init__(path, NoFaults())
        self.clock = clock
        clock.now = 1_000_000_000
        self.read: list[str] = []
        self.page_ms = 0
        self.dies = ""

    async def select(self, selection: Selection) -> list[FileRecord]:
        if selection.experiment == self.dies:
            raise OneLook
        self.read.append(selection.experiment)
        self.clock.now += self.page_ms
        return await super().select(selection)

    async def save(self, *numbers: int) -> None:
        """Versions of one path in each of three experiments."""
        places = [(number + 100 * at, name) for number in numbers for at, name in enumerate("abc")]
        made = [replace(record(number, sha256="0" * 64, key=f"{number}"), experiment=name) for number, name in places]
        await self.commit(made)

    async def listed(self) -> list[int]:
        return [each.id for each in await self.newer(0, EVERYBODY, 99)]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    catalog = Watched(tmp_path / "catalog.sqlite", SetClock())
    yield catalog
    await catalog.close()


@pytest.fixture
async def node(tmp_path: Path, watched: Watched) -> AsyncIterator[Callable[[str], Prune]]:
    browse: Any = None
    async with opened(tmp_path / "journal.sqlite") as journal:
        yield lambda name: Prune(
            browse=browse,
            journal=journal,
            catalog=watched,
            policy=Policy(0),
            clock=watched.clock,
            faults=NoFaults(),
            rounds=watched.inventory,
            holder=name,
        )


async def test_one_node_of_a_fleet_looks_through_what_all_have_listed(
    watched: Watched, node: Callable[[str], Prune]
) -> None:
    one, two = node("one"), node("two")
    await watched.save(1, 2)
    await one.retain_once(Rule(1), "**")
    assert await watched.listed() == [2, 102, 202]
    watched.read.clear()
    await two.retain_once(Rule(1), "**")
    assert watched.read == []
    await watched.save(3)
    watched.clock.now += int(PAUSE_S * 1000)
    await two.retain_once(Rule(1), "**")
    assert await watched.listed() == [3, 103, 203]


async def test_where_a_node_has_died_another_goes_on(watched: Watched, node: Callable[[str], Prune]) -> None:
    await watched.save(1, 2)
    watched.page_ms, watched.dies = LEASE_MS // 4, "c"  # each experiment has a page, and an empty one
    with pytest.raises(OneLook):
        await node("one").retain_once(Rule(1), "**")
    assert await watched.listed() == [2, 102, 201, 202]
    watched.page_ms, watched.dies = 0, ""
    watched.read.clear()
    await node("two").retain_once(Rule(1), "**")
    assert watched.read == [], "it may be at it still"
    watched.clock.now += LEASE_MS
    await node("two").retain_once(Rule(1), "**")
    assert set(watched.read) == {"b", "c"}
    assert await watched.listed() == [2, 102, 202]


async def test_who_has_lost_the_turn_leaves_the_rest_to_the_other(
    watched: Watched, node: Callable[[str], Prune]
) -> None:
    await watched.save(1, 2)
    rounds = watched.inventory

    async def overtaken(selection: Selection) -> list[FileRecord]:
        """So slow that another node has begun."""
        watched.clock.now += LEASE_MS
        await rounds.turn(await rounds.round(), Round("two", watched.clock.now + LEASE_MS))
        return await Watched.select(watched, selection)

    watched.select = overtaken  # type: ignore[method-assign]
    await node("one").retain_once(Rule(1), "**")
    assert await watched.listed() == [1, 2, 101, 102, 201, 202]
    assert (await rounds.round()).holder == "two"
