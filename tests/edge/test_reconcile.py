"""Store and catalog compared, by a clock that the test sets: files that come and go meanwhile, steps, and turns."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code, MLDashError
from ml_dashd.core import reconcile as rules
from ml_dashd.core.access import Policy
from ml_dashd.core.checksum import digest
from ml_dashd.core.ids import EPOCH_MS
from ml_dashd.core.model import Algorithm, FileRecord, Job, Pin, PinKind, Stored, Trouble
from ml_dashd.core.reconcile import Outcome, Rule
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.rounds import Round
from ml_dashd.core.sets import Share
from ml_dashd.core.states import State
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults, NoMeter
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.threads import Pool
from ml_dashd.flow import reconcile
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.findings import Findings
from ml_dashd.flow.reconcile import FINDINGS, LEASE_MS, Reconcile, Step
from ml_dashd.flow.scratch import Scratch
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Handed, Session
from tests.contract.test_store import s3_store
from tests.doubles.s3_double import S3Double
from tests.doubles.s3_double.objects import StoredObject
from tests.edge.test_journal import SetClock, opened

DAY_MS = 24 * 3600 * 1000
NOW = EPOCH_MS + 1000 * DAY_MS
OLD_MS = NOW - 100 * DAY_MS
RULE = Rule(14 * DAY_MS, 7 * DAY_MS, alone=True)
MIB = 1 << 20


class Folder(LocalStore):
    """One whose list may be of an earlier moment, that refuses to delete, and that goes away after so many pages."""

    stale: Sequence[Stored] | None = None
    refuses = False
    pages = 1 << 30

    async def objects(self, after: str = "") -> AsyncIterator[Sequence[Stored]]:
        if self.stale is not None:
            yield self.stale
            return
        async for page in super().objects(after):
            self.pages -= 1
            if self.pages < 0:
                raise StoreError(Fault.TRANSIENT, "it went away")
            yield page

    async def delete(self, key: str) -> None:
        if self.refuses:
            raise StoreError(Fault.DENIED, f"delete {key}")
        await super().delete(key)


class Counted(NoMeter):
    """Counts findings alone."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def found(self, kind: str) -> None:
        self.kinds[kind] += 1


@dataclass
class World:
    catalog: SqliteCatalog
    journal: SqliteJournal
    store: Folder
    clock: SetClock
    threads: Pool
    root: Path
    meter: Counted
    obstacle: Trouble | None = None

    def reconcile(self, holder: str = "me", rule: Rule = RULE) -> Reconcile:
        checksums = Checksums(self.journal, self.store, Scratch(self.journal, self.store, self.clock), self.clock)
        return Reconcile(
            store=self.store,
            catalog=self.catalog,
            journal=self.journal,
            checksums=checksums,
            verify=Verify(self.store, self.threads, BufferPool(16 * MIB, 16 * MIB), self.clock),
            clock=self.clock,
            faults=NoFaults(),
            meter=self.meter,
            obstacle=lambda: self.obstacle,
            rule=rule,
            holder=holder,
            every_s=DAY_MS / 1000,
        )

    def record(self, number: int, **changes: Any) -> FileRecord:
        sha256 = hashlib.sha256(b"x").hexdigest()
        made = FileRecord(number, 1000, "a", "b", "c", "d", "x.txt", 1, "text/plain", 0, 0, sha256=sha256)
        made = replace(made, description="said", uploaded_ms=OLD_MS, **changes)
        return replace(made, key=self.store.key(made))

    async def put(self, record: FileRecord, at_ms: int = OLD_MS) -> FileRecord:
        """Its object, which nobody has listed."""
        body = memoryview(b"x")
        target = Job(record, Pin(PinKind.NONE)).target
        await self.store.put(target, body, digest(body, Algorithm.CRC64NVME))
        os.utime(self.root / (record.key or ""), (at_ms / 1000, at_ms / 1000))
        return record

    async def all_of_it(self, *, mend: bool = True, rule: Rule = RULE) -> Step:
        return together(await self.steps(mend=mend, rule=rule))

    async def steps(self, *, mend: bool = True, rule: Rule = RULE) -> list[Step]:
        steps, cursor, compared = list[Step](), None, self.reconcile(rule=rule)
        while not steps or cursor is not None:
            steps.append(await compared.step(cursor, mend=mend))
            cursor = steps[-1].cursor
        return steps


def together(steps: Sequence[Step]) -> Step:
    findings = [finding for step in steps for finding in step.findings]
    sums = (sum(getattr(step, name) for step in steps) for name in ("objects", "records", "uploads", "waiting"))
    return Step(findings, *sums)


def outcomes(step: Step) -> list[Outcome]:
    return [finding.outcome for finding in step.findings]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock, threads = SetClock(), Pool(1, "test")
    clock.now = NOW
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    store = Folder(tmp_path / "store", threads, NoFaults())
    await store.prepare()
    async with opened(tmp_path / "journal.sqlite", clock) as journal:
        yield World(catalog, journal, store, clock, threads, tmp_path / "store", Counted())
    await catalog.close()
    threads.close()


# ---- what is left alone


@pytest.mark.parametrize("state", [State.VERIFIED, State.COMPLETING, State.FAILED])
async def test_a_file_of_this_journal_is_left_alone_however_old(world: World, state: State) -> None:
    """It may wait to be listed for weeks; or it failed, and what the store has of it goes by its own way."""
    record = await world.put(world.record(7))
    ((job, _),) = await world.journal.accept_all([Handed(Job(record, Pin(PinKind.NONE)), bytes(16))])
    job = await world.journal.advance(job, State.SENDING, part_size=1)
    if state is not State.FAILED:
        job = await world.journal.advance(job, State.COMPLETING)
    if state is not State.COMPLETING:
        await world.journal.advance(job, state)
    (world.root / ".ml-dash-tmp/7").touch()
    os.utime(world.root / ".ml-dash-tmp/7", (1, 1))
    done = await world.all_of_it()
    assert (done.findings, done.waiting) == ([], 2)
    assert await world.catalog.get([7]) == []
    assert (world.root / ".ml-dash-tmp/7").exists()


@pytest.mark.parametrize("age_ms", [RULE.age_ms - 1, 0, -DAY_MS])
async def test_what_may_be_on_its_way_on_another_node_is_left_alone(world: World, age_ms: int) -> None:
    await world.put(world.record(7), NOW - age_ms)
    done = await world.all_of_it()
    assert (done.findings, done.waiting) == ([], 1)


async def test_a_file_that_is_listed_between_the_two_lists_is_no_finding(world: World) -> None:
    """Its object was seen, its record not yet; or its record, and not yet its object; or both, and it was deleted."""
    records = [world.record(number) for number in (1, 2, 3, 4)]
    for record in records:
        await world.put(record)
    await world.catalog.commit(records[1:])
    await world.catalog.delete([4], NOW)
    await world.store.delete(records[3].key or "")
    world.store.stale = [Stored(records[0].key or "", 1, OLD_MS)]
    compared = world.reconcile()
    before = world.journal.get

    async def get(ids: Sequence[int]) -> list[Job]:
        await world.catalog.commit(records[:1])  # in this moment
        return await before(ids)

    world.journal.get = get  # type: ignore[method-assign]
    step = await compared.step(None, mend=True)
    assert (step.findings, step.objects, step.records) == ([], 1, 3)
    assert [each.missing_ms for each in await world.catalog.get([1, 2, 3, 4])] == [None] * 4


async def test_a_deleted_file_goes_by_its_own_way(world: World) -> None:
    """In its grace; and after it for as long as whoever reclaims it may be late."""
    await world.catalog.commit([await world.put(world.record(7))])
    await world.catalog.delete([7], NOW - 20 * DAY_MS)
    assert (await world.all_of_it()).findings == []
    await world.catalog.reclaimed(await world.catalog.get([7]), NOW)
    assert (await world.all_of_it()).findings == []
    assert (world.root / world.store.key(world.record(7))).exists()


# ---- what is mended


async def test_an_object_that_stayed_after_its_file_was_reclaimed_is_removed(world: World) -> None:
    """Not while a duplicate is to be made of it, nor where the store refuses."""
    record = await world.put(world.record(7))
    await world.catalog.commit([record])
    await world.catalog.delete([7], NOW - 21 * DAY_MS)
    await world.catalog.reclaimed(await world.catalog.get([7]), NOW - 14 * DAY_MS)
    duplicate = Job(replace(record, id=8, key=None), Pin(PinKind.OBJECT, source=record.key or ""))
    ((job, _),) = await world.journal.accept_all([Handed(duplicate, bytes(16))])
    assert outcomes(await world.all_of_it()) == []
    await world.journal.advance(job, State.CANCELLED)
    world.store.refuses = True
    assert outcomes(await world.all_of_it()) == [Outcome.KEPT]
    world.store.refuses = False
    assert outcomes(await world.all_of_it(mend=False)) == [Outcome.REMOVED]
    assert (world.root / (record.key or "")).exists()
    assert outcomes(await world.all_of_it()) == [Outcome.REMOVED]
    assert not (world.root / (record.key or "")).exists()
    assert outcomes(await world.all_of_it()) == []


async def test_a_file_is_recorded_as_its_object_tells_and_stays_whose_it_is(world: World) -> None:
    await world.put(world.record(7, experiment="c/files/2", prefix="größe/files"))
    done = await world.all_of_it()
    assert outcomes(done) == [Outcome.RECORDED]
    (made,) = await world.catalog.get([7])
    said = world.record(7, experiment="c/files/2", prefix="größe/files")
    assert made.identity == said.identity
    assert (made.group, made.path, made.size_bytes, made.description) == (said.group, said.path, 1, None)
    assert world.meter.kinds == {"unlisted": 1}
    await world.catalog.commit([said])
    assert (await world.catalog.get([7]))[0].description == "said"


async def test_what_can_not_be_recorded_truly_is_kept(world: World) -> None:
    """A share of a set; an object that says that it is another's; one that other catalogs may list."""
    await world.put(world.record(1, share=Share("00" * 16, "step", "1", 0, 2)))
    await world.put(world.record(2))
    lying = world.record(3)
    os.setxattr(world.root / (world.record(2).key or ""), "user.ml-dash.about", b"owner=1000;depth=2;set=0")
    await world.put(lying)
    os.setxattr(world.root / (lying.key or ""), "user.ml-dash.about", b"owner=1000;depth=1;set=0;sha256=" + b"0" * 64)
    done = await world.all_of_it()
    assert outcomes(done) == [Outcome.KEPT] * 3
    assert [finding.code for finding in done.findings] == [None, None, Code.CHECKSUM_MISMATCH]
    assert await world.catalog.get([1, 2, 3]) == []
    await world.put(world.record(4))
    assert outcomes(await world.all_of_it(rule=replace(RULE, alone=False))) == [Outcome.KEPT] * 4
    assert await world.catalog.get([4]) == []


# ---- steps


async def test_many_findings_come_in_steps_and_each_once(world: World, monkeypatch) -> None:
    """Objects that nobody can record, records without objects, and uploads: more than a step takes of each."""
    few, many = 20, 50
    monkeypatch.setattr(reconcile, "FINDINGS", few)
    for number in range(1, many + 1):
        path = world.root / f"a/b/c/files/{number}/x"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1, 1))
        upload = world.root / f".ml-dash-tmp/{number}"
        upload.touch()
        os.utime(upload, (1, 1))
    gone = [world.record(number) for number in range(10_000, 10_000 + many)]
    await world.catalog.commit(gone)
    tried = await world.steps(mend=False)
    assert max(len(step.findings) for step in tried) == few
    assert len(list((world.root / ".ml-dash-tmp").iterdir())) == many
    done = await world.steps()
    assert max(len(step.findings) for step in done) == few
    for steps in (tried, done):
        keys = Counter(finding.key for step in steps for finding in step.findings)
        assert len(keys) == 3 * many
        assert keys.most_common(1)[0][1] == 1
        whole = together(steps)
        assert (whole.objects, whole.records) == (many, many)
    assert list((world.root / ".ml-dash-tmp").iterdir()) == []
    assert world.meter.kinds == {"unlisted": many, "missing": many, "upload": many}


async def test_a_big_bucket_is_listed_in_bounded_pages(s3_double: S3Double, world: World, monkeypatch) -> None:
    """2,500 keys are three calls; a step holds a page, and costs the calls for what it looks at."""
    store = s3_store(s3_double, monkeypatch)
    await store.prepare(Algorithm.CRC64NVME)
    bucket = s3_double.buckets[store.url.split("/")[2]].objects
    records = []
    made = datetime.fromtimestamp(OLD_MS / 1000, UTC)
    for number in range(1, 2501):
        record = replace(world.record(number), key=None)
        record = replace(record, key=store.key(record))
        bucket[record.key or ""] = StoredObject([b"x"], "e", {}, ("crc64nvme", "", "FULL_OBJECT"), made)
        records.append(record)
    for start in range(0, 2500, 500):
        await world.catalog.commit(records[start : start + 500])
    before = s3_double.requests["ListObjectsV2"]
    pages = [page async for page in store.objects()]
    assert [len(page) for page in pages] == [1000, 1000, 500]
    assert [each.key for page in pages for each in page] == sorted(bucket, key=str.encode)
    assert s3_double.requests["ListObjectsV2"] == before + 3
    del bucket[records[1234].key or ""]
    world.store = store  # type: ignore[assignment]
    monkeypatch.setattr(reconcile, "STEP", 500)
    steps = await world.steps()
    await store.close()
    assert max(step.objects + step.records for step in steps) <= 1001
    assert s3_double.requests["ListObjectsV2"] - before - 3 <= len(steps)
    whole = together(steps)
    assert (whole.objects, whole.records) == (2499, 2500)
    assert [finding.file_id for finding in whole.findings] == [1235]


# ---- turns


async def test_one_of_all_nodes_looks_once_a_day(world: World) -> None:
    await world.put(world.record(7))
    one, two = world.reconcile("one"), world.reconcile("two")
    await one.once()
    assert world.meter.kinds == {"unlisted": 1}
    await world.put(world.record(8))
    await two.once()
    await one.once()
    assert world.meter.kinds == {"unlisted": 1}
    world.clock.now += DAY_MS
    await two.once()
    assert world.meter.kinds == {"unlisted": 2}


async def test_who_can_not_look_leaves_the_turn_to_others(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.put(world.record(7))
    one, two = world.reconcile("one"), world.reconcile("two")
    world.obstacle = Trouble(Code.STORE_NOT_MOUNTED, "there is no disk", "mount it")
    with caplog.at_level("INFO"):
        await one.once()
    assert [(each.message, each.__dict__["error"]) for each in caplog.records] == [
        ("reconcile_postponed", "there is no disk")
    ]
    world.obstacle = None
    await two.once()
    assert world.meter.kinds == {"unlisted": 1}


async def test_who_breaks_off_is_followed_by_another_that_goes_on_from_there(world: World, monkeypatch) -> None:
    monkeypatch.setattr(reconcile, "STEP", 2)
    for number in range(1, 10):
        await world.put(world.record(number))
    one, two = world.reconcile("one"), world.reconcile("two")
    world.store.pages = 1
    with pytest.raises(StoreError):
        await one.once()
    world.store.pages = 1 << 30
    assert world.meter.kinds == {"unlisted": 4}
    await two.once()
    assert world.meter.kinds == {"unlisted": 4}, "it may still be at it"
    seen = list[str | None]()
    step = two.step

    async def stepped(cursor: str | None, *, mend: bool) -> Step:
        seen.append(cursor)
        return await step(cursor, mend=mend)

    monkeypatch.setattr(two, "step", stepped)
    world.clock.now += LEASE_MS
    await two.once()
    assert seen[0] is not None
    assert world.meter.kinds == {"unlisted": 9}
    assert len(await world.catalog.get(range(1, 10))) == 9
    assert (await world.catalog.inventory.round()).ended_ms == world.clock.now


async def test_who_has_lost_the_turn_stops(world: World, monkeypatch) -> None:
    """It was away for longer than its lease, and another is at it."""
    monkeypatch.setattr(reconcile, "STEP", 2)
    for number in range(1, 10):
        await world.put(world.record(number))
    one = world.reconcile("one")
    step = one.step

    async def stepped(cursor: str | None, *, mend: bool) -> Step:
        done = await step(cursor, mend=mend)
        was = await world.catalog.inventory.round()
        await world.catalog.inventory.turn(was, replace(was, holder="other"))
        return done

    monkeypatch.setattr(one, "step", stepped)
    await one.once()
    assert world.meter.kinds == {"unlisted": 4}
    assert (await world.catalog.inventory.round()).holder == "other"


# ---- requests


async def test_it_is_for_admins(world: World) -> None:
    findings = Findings(reconcile=world.reconcile(), policy=Policy(1000, uids=frozenset({1001})), clock=Ticking())
    await world.put(world.record(7))
    answer = findings.answers[m.Reconcile]
    told = list[m.Message]()

    async def send(message: m.Message) -> None:
        told.append(message)

    for uid in (0, 1001):
        with pytest.raises(MLDashError) as refused:
            await answer(Session(1, uid, 1), m.Reconcile(request=1), (), send)
        assert refused.value.code is Code.ACCESS_DENIED
    (done, _) = await answer(Session(1, 1000, 1), m.Reconcile(request=1, dry_run=True), (), send)
    assert isinstance(done, m.Reconciled)
    assert [(found.what, found.outcome, found.path) for found in done.findings] == [("unlisted", "recorded", "d/x.txt")]
    for cursor in ("", "x", "objects", "uploads\nx", "nothing\nfiles"):
        with pytest.raises(MLDashError) as refused:
            await answer(Session(1, 1000, 1), m.Reconcile(request=1, cursor=cursor), (), send)
        assert refused.value.code is Code.INVALID_ARGUMENT
    world.store.pages = 0
    with pytest.raises(MLDashError) as refused:
        await answer(Session(1, 1000, 1), m.Reconcile(request=1), (), send)
    assert refused.value.code is Code.STORE_UNAVAILABLE


class Ticking(SetClock):
    """It may be slept by."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def test_a_step_fits_into_its_answer() -> None:
    assert FINDINGS <= m.FINDINGS
    assert {*rules.Kind} == {"unlisted", "missing", "resized", "found", "left", "upload"}


async def test_the_next_daemon_goes_on_with_a_round_that_a_kill_broke_off(tmp_path: Path) -> None:
    """A machine's catalog is one daemon's: nobody waits for the hours that another node would have."""
    killed = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    mine = Round("killed", LEASE_MS, "files/a", 5)
    assert await killed.inventory.turn(await killed.inventory.round(), mine)
    assert await killed.inventory.round() == mine
    await killed.close()
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    assert await catalog.inventory.round() == Round("", 0, "files/a", 5)
    await catalog.close()
