"""What daemons do with sets: several on one catalog, which may be away; and what one user may do to another's."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code, MLDashError
from ml_dashd.core.access import Policy
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Scope, Selection
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import SetSelection, SetState
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import prepare
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.deliver import Deliver
from ml_dashd.flow.sets import FileSets
from ml_dashd.flow.shares import share_of
from ml_dashd.flow.shown import Shown
from ml_dashd.ports import Catalog, Handed, JournalError, Session

PLACE = m.Place(namespace="alice", project="cv", experiment="resnet", prefix="ckpt")
OWN, ALICE, BOB = 1, 1000, 2000


class Away:
    """A catalog that can't be reached for a while."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.away = False

    def __getattr__(self, name: str) -> Any:
        if self.away and name != "trouble":
            raise JournalError("the catalog is away", Code.CATALOG_UNREACHABLE)
        return getattr(self._catalog, name)


class Node:
    """A daemon, as far as sets go: its own journal, and the catalog that it shares."""

    def __init__(self, folder: Path, catalog: Catalog, number: int) -> None:
        folder.mkdir()
        self.clock, bell = SystemClock(), Bell()
        self.journal = SqliteJournal(folder / "journal.sqlite", self.clock, NoFaults(), lambda *_: Lane.SMALL)
        self.catalog: Any = Away(catalog)
        self.bell, self.folder, self._last = bell, folder, number
        shared: dict[str, Any] = {
            "journal": self.journal, "catalog": self.catalog, "bell": bell, "clock": self.clock, "faults": NoFaults(),
        }  # fmt: skip
        self.deliver = Deliver(keep_s=604_800, **shared)
        policy = Policy(OWN, frozenset({ALICE, BOB}))
        self.sets = FileSets(shown=Shown(cast("Any", None), bell), deliver=self.deliver, policy=policy, **shared)
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.journal.open()
        await self.deliver.load()
        self.running = asyncio.create_task(self.deliver.run())

    async def stop(self) -> None:
        assert self.running is not None
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running
        self.journal.close()

    async def ask(self, uid: int, message: m.Message) -> Any:
        async def send(_: m.Message) -> None:
            """Nothing comes before the reply."""

        reply, _ = await self.sets.answers[type(message)](Session(1, uid, 1), message, (), send)
        return reply

    async def save(self, share: m.Share, uid: int = ALICE, *, listed: bool = True) -> Job:
        """A file of a share, up to the catalog, or queued."""
        self._last += 1
        of = share_of(PLACE, share, uid)
        record = FileRecord(
            self._last, uid, "alice", "cv", "resnet", of.name, f"{self._last}.bin", 5, "", 1, 1, sha256="ab" * 32,
            key=str(self._last), uploaded_ms=self.clock.now_ms(), share=of, pending=True,
        )  # fmt: skip
        job = Job(record, Pin(PinKind.NONE), on_disk=True)
        await self.journal.accept_all([Handed(job, self._last.to_bytes(16, "big"))])
        return await self.list(job) if listed else job

    async def list(self, job: Job) -> Job:
        for state in (State.SENDING, State.VERIFIED):
            job = await self.journal.advance(job, state)
        await self.catalog.commit([job.listed])
        job = await self.journal.advance(job, State.DONE)
        self.bell.ring()
        return job

    async def settle(self) -> None:
        """Until all shares that are ended are in the catalog, or refused."""
        while await self.journal.shares():
            await self.bell.wait(self.bell.listen(), 0.05)

    async def rank(self, share: m.Share, uid: int = ALICE) -> None:
        """A rank that begins, saves a file, and ends."""
        await self.ask(uid, m.OpenSet(request=1, place=PLACE, share=share))
        await self.save(share, uid)
        await self.ask(uid, m.EndShare(request=1, place=PLACE, share=share, files=1))

    async def whole(self, share: m.Share, uid: int = ALICE) -> m.SetRecord:
        """The set of a share, once it is complete."""
        asked = m.ListSets(request=1, place=PLACE, share=share.key, timeout_ms=20_000)
        (found,) = (await self.ask(uid, asked)).sets
        assert found.state == "COMPLETE"
        return found


def share(rank: int, world_size: int = 2, name: str = "step_1", again: int = 0) -> m.Share:
    key = hashlib.sha256(f"{rank} {name} {again}".encode()).digest()[:16]
    return m.Share(key=key, name=name, attempt="a", rank=rank, world_size=world_size)


@pytest.fixture(params=["sqlite", "mongodb"])
async def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sequence[Node]]:
    """Two daemons, each with its own connection to MongoDB; or two on a catalog in SQLite, as one would be."""
    catalogs: list[Catalog]
    if request.param == "sqlite":
        catalogs = [SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())] * 2
    else:
        mongos = [Mongo(request.getfixturevalue("mongodb_url")) for _ in range(2)]
        await prepare(mongos[0])
        catalogs = [MongoCatalog(mongo) for mongo in mongos]
    made = [Node(tmp_path / str(number), catalog, 1000 * number) for number, catalog in enumerate(catalogs)]
    for node in made:
        await node.start()
    yield made
    for node, catalog in zip(made, catalogs, strict=True):
        await node.stop()
        await catalog.close()


async def listed(node: Node, **asked: Any) -> list[int]:
    return sorted(found.id for found in await node.catalog.select(Selection("alice", "cv", "resnet", **asked)))


async def test_ranks_on_two_nodes(nodes: Sequence[Node]) -> None:
    first, second = nodes
    await first.rank(share(0))
    await first.settle()
    assert await listed(second) == []
    assert await listed(second, pending=True) == [1]
    (waiting,) = await second.sets.incomplete(Session(1, ALICE, 1))
    assert (waiting.name, waiting.ranks, waiting.missing) == ("ckpt/step_1", 1, (1,))
    whole = asyncio.create_task(first.whole(share(0)))  # hears of it without any bell
    await second.rank(share(1))
    assert (await whole).files == 2
    assert await listed(first) == await listed(second) == [1, 1001]


async def test_while_the_catalog_is_away_shares_wait(nodes: Sequence[Node], tmp_path: Path) -> None:
    """In the journal, over a restart; a mismatch among them is told at once."""
    first, second = nodes
    job = await first.save(share(0), listed=False)
    first.catalog.away = True
    await first.ask(ALICE, m.OpenSet(request=1, place=PLACE, share=share(0)))
    await first.ask(ALICE, m.EndShare(request=1, place=PLACE, share=share(0), files=1))
    with pytest.raises(ValueError, match="world_size=3"):
        await first.ask(ALICE, m.OpenSet(request=1, place=PLACE, share=share(1, 3)))
    await first.stop()
    first.catalog.away = False
    again = Node(tmp_path / "again", first.catalog, 5)
    again.journal.close()
    again.journal = SqliteJournal(first.folder / "journal.sqlite", again.clock, NoFaults(), lambda *_: Lane.SMALL)
    again.deliver._journal = again.journal
    await again.start()
    first.journal, first.running = again.journal, again.running
    await again.list(job)
    await second.rank(share(1))
    assert (await second.whole(share(1))).files == 2


async def test_a_share_waits_for_all_its_files(nodes: Sequence[Node]) -> None:
    node = nodes[0]
    one = share(0, 1)
    job = await node.save(one, listed=False)
    await node.save(one)
    await node.ask(ALICE, m.EndShare(request=1, place=PLACE, share=one, files=2))
    assert (await node.ask(ALICE, m.ListSets(request=1, place=PLACE, share=one.key, timeout_ms=50))).sets == ()
    pending, _ = await node.journal.unfinished(Selection("alice", "cv", "resnet"))
    assert pending == 2, "the file and the share"
    await node.list(job)
    assert (await node.whole(one)).files == 2
    with pytest.raises(MLDashError, match="3 files of rank 0"):
        await node.ask(ALICE, m.EndShare(request=1, place=PLACE, share=share(0, again=1), files=3))


async def test_a_rank_that_is_ahead_waits_for_the_round_before(nodes: Sequence[Node]) -> None:
    """It saves again while another's first share is on its way: each round has what was saved for it."""
    node = nodes[0]
    await node.rank(share(0))
    await node.settle()
    slow = await node.save(share(1), listed=False)
    await node.ask(ALICE, m.EndShare(request=1, place=PLACE, share=share(1), files=1))
    await node.rank(share(0, again=1))
    assert await listed(node) == []
    await node.list(slow)
    assert (await node.whole(share(0))).files == 2
    await node.settle()
    assert await listed(node) == [1, 2]
    assert await listed(node, pending=True) == [1, 2, 3]


async def test_a_file_that_is_deleted_breaks_its_share(nodes: Sequence[Node], caplog: pytest.LogCaptureFixture) -> None:
    node = nodes[0]
    one = share(0, 1)
    job = await node.save(one, listed=False)
    await node.ask(ALICE, m.EndShare(request=1, place=PLACE, share=one, files=1))
    await node.journal.cancel([job.id])
    node.bell.ring()
    with caplog.at_level(logging.WARNING), pytest.raises(MLDashError, match="was deleted") as refused:
        await node.whole(one)
    assert refused.value.code is Code.SET_INCOMPLETE
    assert "share_refused" in caplog.text
    assert await node.journal.shares() == []


async def test_nobody_gets_at_anothers_set(nodes: Sequence[Node]) -> None:
    """The same name is another set; another's files never get into it, whatever key a client takes."""
    node = nodes[0]
    await node.rank(share(0, 1))
    found = await node.whole(share(0, 1))
    for message in (
        m.SetFiles(request=1, id=found.id),
        m.DropSet(request=1, id=found.id),
        m.ListSets(request=1, place=PLACE, share=share(0, 1).key),
    ):
        with pytest.raises(MLDashError):
            await node.ask(BOB, message)
    assert (await node.ask(BOB, m.ListSets(request=1, place=PLACE))).sets == ()
    assert (await node.ask(OWN, m.ListSets(request=1, place=PLACE))).sets == (found,), "an admin's"
    await node.save(share(0, again=1))
    with pytest.raises(MLDashError, match="0 of them"):
        await node.ask(BOB, m.EndShare(request=1, place=PLACE, share=share(0, again=1), files=1))
    await node.ask(BOB, m.EndShare(request=1, place=PLACE, share=share(0, 5, again=1), files=0))
    await node.settle()
    (own,) = await node.catalog.sets.select(SetSelection((SetState.OPEN,), Scope(BOB)))
    assert (own.key.owner_uid, own.world_size, own.files) == (BOB, 5, 0)
    await node.ask(ALICE, m.DropSet(request=1, id=found.id))
    assert await listed(node) == []


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (m.ListSets(request=1, place=PLACE, cursor="x"), "cursor"),
        (m.SetFiles(request=1, id="0" * 32), "no set has the id"),
        (
            m.OpenSet(request=1, place=PLACE, share=m.Share(key=b"k", name="s", attempt="a", rank=0, world_size=1)),
            "key",
        ),
        (m.OpenSet(request=1, place=PLACE, share=share(3, 3)), "rank=3"),
        (m.OpenSet(request=1, place=PLACE, share=share(0, 0)), "world_size=0"),
    ],
)
async def test_what_is_asked_wrongly(tmp_path: Path, message: m.Message, match: str) -> None:
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    node = Node(tmp_path / "node", catalog, 0)
    await node.start()
    with pytest.raises(ValueError, match=match):
        await node.ask(ALICE, message)
    await node.stop()
    await catalog.close()
