"""When bytes of deleted files go, by a clock that the test sets; and what is left of them where something breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ml_dashd.core.checksum import digest
from ml_dashd.core.model import Algorithm, FileRecord, Job, Pin, PinKind, Target
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.rounds import Round
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.reclaim import AT_ONCE, LEASE_MS, PAUSE_S, Reclaim
from ml_dashd.flow.rounds import Alone
from ml_dashd.ports import Handed, Rounds
from tests.edge.journal_rig import SetClock, opened

GRACE_S = 7 * 24 * 3600.0
DAY_MS = 24 * 3600 * 1000


class Crash(BaseException):
    """The process ends."""


class Folder(LocalStore):
    """One that refuses to delete what is asked of it, or ends the process after it did."""

    refused: frozenset[str] = frozenset()
    fault = Fault.DENIED
    asked = 0
    crashes_after: str | None = None

    async def delete(self, key: str) -> None:
        self.asked += 1
        if key in self.refused:
            raise StoreError(self.fault, f"delete {key}")
        await super().delete(key)
        if key == self.crashes_after:
            self.crashes_after = None
            raise Crash


@dataclass
class World:
    catalog: SqliteCatalog
    journal: SqliteJournal
    store: Folder
    clock: SetClock
    root: Path

    async def stored(self, number: int) -> FileRecord:
        record = FileRecord(number, 0, "a", "b", "c", "", f"{number}.txt", 1, "", 0, 0, sha256="0" * 64)
        record = replace(record, key=self.store.key(record))
        body = memoryview(b"x")
        await self.store.put(Target(record.key or "", number, 1, ""), body, digest(body, Algorithm.CRC64NVME))
        await self.catalog.commit([record])
        return record

    def reclaim(self, rounds: Rounds | None = None, holder: str = "me", store: Folder | None = None) -> Reclaim:
        return Reclaim(
            catalog=self.catalog,
            journal=self.journal,
            store=store or self.store,
            clock=self.clock,
            faults=NoFaults(),
            rounds=rounds or Alone(),
            holder=holder,
            grace_s=GRACE_S,
        )

    def left(self) -> list[str]:
        return sorted(path.name for path in self.root.rglob("*.txt"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock, threads = SetClock(), Pool(1, "test")
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    store = Folder(tmp_path / "store", threads, NoFaults())
    await store.prepare()
    async with opened(tmp_path / "journal.sqlite", clock) as journal:
        yield World(catalog, journal, store, clock, tmp_path / "store")
    await catalog.close()
    threads.close()


async def test_bytes_go_when_the_grace_is_over_and_no_sooner(world: World) -> None:
    for number in (1, 2, 3):
        await world.stored(number)
    await world.catalog.delete([1], 0)
    await world.catalog.delete([2], 1000)
    for now_ms, left in (
        (7 * DAY_MS, ["1.txt", "2.txt", "3.txt"]),
        (7 * DAY_MS + 1, ["2.txt", "3.txt"]),
        (7 * DAY_MS + 1000, ["2.txt", "3.txt"]),
        (7 * DAY_MS + 1001, ["3.txt"]),
        (700 * DAY_MS, ["3.txt"]),
    ):
        world.clock.now = now_ms
        await world.reclaim().once()
        assert world.left() == left
    assert [each.deleted_ms for each in await world.catalog.get([1, 2, 3])] == [0, 1000, None]


async def test_what_a_duplicate_is_to_be_made_of_stays_until_it_is_made(world: World) -> None:
    source = await world.stored(1)
    await world.catalog.delete([1], 0)
    duplicate = Job(replace(source, id=2, key=None), Pin(PinKind.OBJECT, source=source.key or ""))
    ((job, _),) = await world.journal.accept_all([Handed(duplicate, bytes(16))])
    world.clock.now = 8 * DAY_MS
    await world.reclaim().once()
    assert world.left() == ["1.txt"]
    await world.journal.advance(job, State.CANCELLED)
    await world.reclaim().once()
    assert world.left() == []


async def test_a_store_that_refuses_one_is_asked_again(world: World) -> None:
    """One object that may not be removed, or whose folder may not, keeps none of the others."""
    keys = [(await world.stored(number)).key for number in (1, 2, 3)]
    await world.catalog.delete([1, 2, 3], 0)
    world.clock.now = 8 * DAY_MS
    world.store.refused = frozenset({keys[0] or ""})
    with pytest.raises(StoreError):
        await world.reclaim().once()
    assert world.left() == ["1.txt"]
    assert [each.id for each in await world.catalog.deleted(8 * DAY_MS, (0, 0), 9)] == [1], "the others are noted"
    world.store.refused = frozenset()
    await world.reclaim().once()
    assert world.left() == []


@pytest.mark.parametrize(("fault", "asked"), [(Fault.DENIED, 100), (Fault.TRANSIENT, AT_ONCE)])
async def test_a_store_that_refuses_all_is_not_asked_for_each(world: World, fault: Fault, asked: int) -> None:
    records = [
        FileRecord(number, 0, "a", "b", "c", "", "x", 1, "", 0, 0, sha256="0" * 64, key=f"{number}")
        for number in range(250)
    ]
    await world.catalog.commit(records)
    await world.catalog.delete([record.id for record in records], 0)
    world.clock.now = 8 * DAY_MS
    world.store.refused, world.store.fault = frozenset(record.key or "" for record in records), fault
    with pytest.raises(StoreError):
        await world.reclaim().once()
    assert world.store.asked <= asked


async def test_who_dies_between_the_object_and_its_note_removes_it_again(world: World) -> None:
    record = await world.stored(1)
    await world.stored(2)
    await world.catalog.delete([1], 0)
    world.clock.now = 8 * DAY_MS
    world.store.crashes_after = record.key
    with pytest.raises(Crash):
        await world.reclaim().once()
    assert [each.id for each in await world.catalog.deleted(8 * DAY_MS, (0, 0), 9)] == [1]
    await world.reclaim().once()
    assert await world.catalog.deleted(8 * DAY_MS, (0, 0), 9) == []
    assert world.left() == ["2.txt"]


# ---- in a fleet


async def deleted(world: World, *numbers: int) -> None:
    for number in numbers:
        await world.stored(number)
    await world.catalog.delete(numbers, 0)
    world.clock.now += 8 * DAY_MS


async def test_one_node_of_a_fleet_asks_the_store_for_all(world: World) -> None:
    rounds = world.catalog.inventory
    one, two = world.reclaim(rounds, "one"), world.reclaim(rounds, "two")
    await deleted(world, 1)
    await one.once()
    assert world.left() == []
    await world.stored(2)
    await world.catalog.delete([2], 0)
    await two.once()
    assert world.left() == ["2.txt"], "the next round is not due"
    world.clock.now += int(PAUSE_S * 1000)
    await two.once()
    await one.once()
    assert (world.left(), world.store.asked) == ([], 2)


async def test_of_a_node_whose_store_is_away_another_takes_the_turn(world: World, tmp_path: Path) -> None:
    class Away(Folder):
        async def delete(self, key: str) -> None:
            raise StoreError(Fault.UNREACHABLE, f"delete {key}")

    threads = Pool(1, "away")
    rounds = world.catalog.inventory
    one, two = world.reclaim(rounds, "one", Away(tmp_path, threads, NoFaults())), world.reclaim(rounds, "two")
    await deleted(world, 1)
    with pytest.raises(StoreError):
        await one.once()
    world.clock.now += int(PAUSE_S * 1000)
    await two.once()
    assert world.left() == []
    threads.close()


async def test_of_a_node_that_died_another_takes_the_turn_after_a_while(world: World) -> None:
    rounds = world.catalog.inventory
    await deleted(world, 1)
    world.store.crashes_after = (await world.catalog.get([1]))[0].key
    with pytest.raises(Crash):
        await world.reclaim(rounds, "one").once()
    await world.reclaim(rounds, "two").once()
    assert [each.id for each in await world.catalog.deleted(world.clock.now, (0, 0), 9)] == [1], "it may be at it still"
    world.clock.now += LEASE_MS
    await world.reclaim(rounds, "two").once()
    assert await world.catalog.deleted(world.clock.now, (0, 0), 9) == []


async def test_who_has_lost_the_turn_leaves_the_rest_to_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dashd.flow.reclaim.BATCH", 2)
    rounds = world.catalog.inventory
    await deleted(world, 1, 2, 3, 4)
    delete = world.store.delete

    async def slow(key: str) -> None:
        """So slow that another node has begun."""
        await delete(key)
        if world.clock.now < 9 * DAY_MS:
            world.clock.now += DAY_MS
            assert await rounds.turn(await rounds.round(), Round("other", world.clock.now + LEASE_MS))

    monkeypatch.setattr(world.store, "delete", slow)
    await world.reclaim(rounds, "one").once()
    assert world.left() == ["3.txt", "4.txt"]
    assert (await rounds.round()).holder == "other"
