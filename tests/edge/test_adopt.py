"""A local store takes a source's own file, or its blocks: none that somebody may write to, or that is kept warm."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core import about
from ml_dashd.core.checksum import combine, digest, has_part
from ml_dashd.core.model import Algorithm, FileRecord, Job, PinKind, Protection
from ml_dashd.core.plan import Part, parts
from ml_dashd.core.retry import StoreError
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import TEMPORARY, LocalStore
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.adopt import Adopting, Adoption
from ml_dashd.flow.health import Health
from ml_dashd.flow.settle import Settle
from ml_dashd.ports import Catalog, Journal, Runs, SyncRefusedError
from tests.doubles.disks import tmpfs, with_reflinks
from tests.edge.pin_rig import MIB, SIZE, Spool, content, path, spool, written
from tests.edge.test_settle import Well

__all__ = ["path", "spool"]
MINE = 1


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(2, "store")
    yield pool
    pool.close()


@pytest.fixture
def store(tmp_path: Path, threads: Pool) -> LocalStore:
    (tmp_path / "store").mkdir()
    return LocalStore(tmp_path / "store", threads, NoFaults())


def saved(spool: Spool, size: int = SIZE, connection: int = MINE) -> Job:
    """A save's slot, committed."""
    spool.numbers += 1
    slot = spool.slots.grant(connection, size)
    os.pwrite(slot.descriptor, content(size), 0)
    pin = spool.slots.commit(connection, slot.number, size, spool.numbers)
    return Job(FileRecord(spool.numbers, 0, "a", "b", "c", "", "best.pt", size, "", 0, 0), pin)


async def begun(store: LocalStore, job: Job) -> Job:
    await store.prepare()
    job = replace(job, record=replace(job.record, key=store.key(job.record)), algorithm=Algorithm.CRC64NVME)
    return replace(job, part_size=MIB, upload_id=await store.begin(job.target))


def device(spool: Spool) -> int:
    return spool.folder.stat().st_dev


def settle(spool: Spool, threads: Pool) -> Settle:
    well = Health(cast("Journal", Well()), cast("Catalog", Well()), cast("Runs", Well()))
    return Settle(spool.pins, threads, well, NoFaults())


async def adoption(spool: Spool, store: LocalStore, threads: Pool, job: Job) -> Adoption:
    return await Adopting(store, spool.pins, threads, settle(spool, threads)).begin(job)


async def completed(store: LocalStore, job: Job) -> Path:
    """The object, once its parts were listed as those of the content; with that, the source is released."""
    whole, upload_id = memoryview(content(job.record.size_bytes)), job.upload_id or ""
    cut = [whole[part.offset : part.offset + part.size_bytes] for part in parts(len(whole), MIB)]
    digests = [digest(piece, Algorithm.CRC64NVME) for piece in cut]
    listed = await store.list_parts(job.target, upload_id, MIB)
    assert [has_part(one, ours, None) for one, ours in zip(listed, digests, strict=True)] == [True] * len(cut)
    await store.complete(job.target, upload_id, listed, combine(digests, Algorithm.CRC64NVME))
    return Path(store.url.removeprefix("file://")) / job.target.key


# ---- what is offered


def test_a_slot_that_the_next_save_is_to_find_warm_is_not_offered(spool: Spool) -> None:
    job = saved(spool)
    assert spool.pins.offer(job, device(spool)) is None
    spool.pins.release(job.pin, job.id)
    assert spool.slots.grant(MINE, SIZE).number == int(job.pin.name), "its pages are there for the next save"


def test_a_slot_beside_two_that_wait_is_offered_and_never_granted_again(spool: Spool) -> None:
    jobs = [saved(spool) for _ in range(3)]
    for job in jobs[:2]:
        spool.pins.release(job.pin, job.id)
    assert itself(spool, jobs[2])
    spool.pins.release(jobs[2].pin, jobs[2].id)
    assert int(jobs[2].pin.name) not in [spool.slots.grant(MINE, SIZE).number for _ in range(3)]


def test_a_slot_of_which_the_disk_has_no_room_for_a_copy_is_offered(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 8 * MIB) as disk:
        spool = Spool(disk / "spool")
        job = saved(spool, 5 * MIB)
        assert itself(spool, job)
        spool.slots.close()


def test_what_its_client_may_write_to_is_offered_with_its_blocks_alone(spool: Spool) -> None:
    """A trainer that keeps the descriptor of a slot, or a mapping, could write to the object."""
    job = saved(spool)
    late = os.open(spool.folder / "slots" / job.pin.name, os.O_RDWR)
    spool.slots.disconnect(MINE)
    assert not itself(spool, job)
    os.close(late)
    assert itself(spool, job)


def test_what_lies_on_another_file_system_is_not_offered(spool: Spool) -> None:
    job = saved(spool)
    spool.slots.disconnect(MINE)
    assert spool.pins.offer(job, device(spool) + 1) is None


def test_of_a_users_own_file_the_blocks_alone_are_offered(spool: Spool, path: Path) -> None:
    assert spool.take(path).pin.kind is PinKind.LINK
    assert not itself(spool, spool.take(path))
    copied = spool.take(path, Protection.COPY)
    assert copied.pin.kind is PinKind.COPY
    assert itself(spool, copied)


def itself(spool: Spool, job: Job) -> bool:
    offer = spool.pins.offer(job, device(spool))
    assert offer is not None
    os.close(offer.descriptor)
    return offer.itself


# ---- what is taken


async def test_a_slot_becomes_the_object_and_nothing_is_copied(spool: Spool, store: LocalStore, threads: Pool) -> None:
    job = await begun(store, saved(spool))
    slot = (spool.folder / "slots" / job.pin.name).stat()
    spool.slots.disconnect(MINE)
    adopting = await adoption(spool, store, threads, job)
    assert await adopting.attempt()
    assert await (await adoption(spool, store, threads, job)).attempt(), "asked again, it is what it was"
    assert spool.read(job) == content(), "the source stays until it is released"
    await adopting.settle()
    object_ = await completed(store, job)
    spool.pins.release(job.pin, job.id)
    status = object_.stat()
    assert (status.st_ino, status.st_nlink, status.st_size) == (slot.st_ino, 1, SIZE)
    assert oct(status.st_mode) == "0o100640"
    assert status.st_blocks * 512 < SIZE + MIB, "the slot's last blocks are given back"
    assert object_.read_bytes() == content()
    stated = await store.head(job.target.key)
    assert stated is not None
    assert stated.about == about.read(job.target.about)
    assert spool.files() == []


async def test_a_copy_is_the_same_source_after_it_was_taken(
    spool: Spool, store: LocalStore, threads: Pool, path: Path
) -> None:
    """Its times are those of its pin: it may be read once more, and is not taken for a changed one."""
    job = await begun(store, spool.take(path, Protection.COPY))
    assert await (await adoption(spool, store, threads, job)).attempt()
    assert spool.read(job) == content()
    assert (await completed(store, job)).read_bytes() == content()
    path.write_bytes(b"another")
    assert spool.read(job) == content()


async def test_nothing_is_written_to_what_was_taken(spool: Spool, store: LocalStore, threads: Pool) -> None:
    """A part that was on its way when the file was adopted, or an upload that begins anew, leave the source alone."""
    job = await begun(store, saved(spool))
    spool.slots.disconnect(MINE)
    assert await (await adoption(spool, store, threads, job)).attempt()
    late = memoryview(bytes(MIB))
    await store.send_part(job.target, job.upload_id or "", Part(1, 0, MIB), late, digest(late, Algorithm.CRC64NVME))
    assert spool.read(job) == content()
    await store.begin(job.target)
    assert spool.read(job) == content()
    await store.abort(job.target, job.upload_id or "")
    assert spool.read(job) == content()


async def test_a_slot_that_another_file_has_too_is_copied(spool: Spool, store: LocalStore, threads: Pool) -> None:
    """Two objects that are one file: what is done to the one would be done to the other."""
    job = await begun(store, saved(spool))
    spool.pins.adopt(job, 99)
    spool.slots.disconnect(MINE)
    adopting = await adoption(spool, store, threads, job)
    assert not await adopting.attempt()
    assert [path.stat().st_nlink for path in (spool.folder / "slots").iterdir()] == [2, 2]


async def test_a_kept_warm_slot_is_asked_for_until_its_trainer_ends(
    spool: Spool, store: LocalStore, threads: Pool
) -> None:
    job = await begun(store, saved(spool))
    adopting = await adoption(spool, store, threads, job)
    assert not await adopting.attempt()
    spool.slots.disconnect(MINE)
    assert await adopting.attempt()


async def test_what_a_kill_has_left_beside_an_upload_goes_when_that_ends(
    spool: Spool, store: LocalStore, tmp_path: Path
) -> None:
    job = await begun(store, saved(spool))
    beside = tmp_path / "store" / TEMPORARY / f"{job.upload_id}.put"
    whole = memoryview(content())
    for end in ("complete", "abort"):
        beside.touch()
        if end == "abort":
            await store.abort(job.target, job.upload_id or "")
        else:
            for part in parts(SIZE, MIB):
                piece = whole[part.offset : part.offset + part.size_bytes]
                await store.send_part(job.target, job.upload_id or "", part, piece, digest(piece, Algorithm.CRC64NVME))
            await completed(store, job)
        assert not beside.exists()


# ---- blocks that are shared


async def test_where_blocks_can_be_shared_they_are(tmp_path: Path, threads: Pool) -> None:
    with with_reflinks(tmp_path / "disk") as disk:
        spool, store = Spool(disk / "spool"), LocalStore(disk / "store", threads, NoFaults())
        (disk / "store").mkdir()
        job = await begun(store, saved(spool))
        late = os.open(spool.folder / "slots" / job.pin.name, os.O_RDWR)
        spool.slots.disconnect(MINE)
        assert await (await adoption(spool, store, threads, job)).attempt()
        os.pwrite(late, b"a late write", 0)
        os.close(late)
        assert (await completed(store, job)).read_bytes() == content()

        source = written(disk / "data" / "best.pt")
        pinned = await begun(store, spool.take(source))
        assert pinned.pin.kind is PinKind.REFLINK
        assert await (await adoption(spool, store, threads, pinned)).attempt()
        source.write_bytes(b"another")
        assert (await completed(store, pinned)).read_bytes() == content()
        spool.pins.close()


# ---- disks that fail


async def test_a_source_that_the_disk_could_not_keep_is_not_made_an_object(
    spool: Spool, store: LocalStore, threads: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's own sync would say the same, once, and nobody would know that the source is lost, too."""
    job = await begun(store, saved(spool))
    spool.slots.disconnect(MINE)
    adopting = await adoption(spool, store, threads, job)
    await adopting.settle()  # nothing is adopted yet
    assert await adopting.attempt()

    def refuse(*_: object) -> None:
        raise SyncRefusedError(errno.EIO, "the disk")

    monkeypatch.setattr(spool.pins, "sync", refuse)
    with pytest.raises(MLDashError) as ended:
        await adopting.settle()
    assert ended.value.code is Code.DISK_FAILED

    def unasked(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is left")

    monkeypatch.setattr(spool.pins, "sync", unasked)
    with pytest.raises(StoreError):
        await adopting.settle()
