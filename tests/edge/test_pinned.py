"""What a pin protects against, with real files: how it is read, copied and let go; a user's own is only read."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import FileRecord, Job, PinKind, Protection
from ml_dashd.edge import cloning, spool_copies
from ml_dashd.edge.room import Room
from ml_dashd.edge.witness import Witness
from tests.edge.pin_rig import MIB, SIZE, Spool, content, later_spool, open_descriptors, path, refused, spool, written

__all__ = ["path", "spool"]


# ---- the fingerprint rule


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, Callable[[Path], object]] = {
    "overwritten in place": overwrite,
    "written anew, with the same bytes": lambda path: path.write_bytes(content()),
    "appended to": append,
    "truncated": lambda path: os.truncate(path, SIZE - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "enlarged": lambda path: os.truncate(path, SIZE + 1),
    "opened to write, and touched": lambda path: path.open("r+b").close() or os.utime(path),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "unlinked": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("other.pt")),
    "replaced by rename": lambda path: written(path.with_name("new"), 5).rename(path),
    "given another mode": lambda path: path.chmod(0o400),
    "given another name": lambda path: os.link(path, path.with_name("second.pt")),
    "touched": os.utime,
    "given another mtime": lambda path: os.utime(path, ns=(1, 1)),
    "touched where it changes ctime alone": lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns)),
}


def pinned(spool: Spool, kind: str, path: Path, request: pytest.FixtureRequest) -> tuple[Job, Path]:
    if kind == "fd":
        path = written(request.getfixturevalue("elsewhere") / "best.pt")
    job = spool.take(path)
    assert job.pin.kind == kind
    return job, path


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["link", "fd"])
def test_a_source_that_was_changed_is_never_read(
    spool: Spool, path: Path, kind: str, change: str, request: pytest.FixtureRequest
) -> None:
    job, path = pinned(spool, kind, path, request)
    before = open_descriptors()
    CHANGES[change](path)
    failure = refused(Code.SOURCE_CHANGED, lambda: spool.read(job))
    assert str(path) in failure.message
    assert "snapshot" in failure.hint
    assert open_descriptors() == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_is_changed_between_two_reads_is_read_no_further(spool: Spool, path: Path, change: str) -> None:
    job = spool.take(path)
    source = spool.pins.open(job, b"")
    buffer = memoryview(bytearray(MIB))
    source.read(0, buffer, ())
    CHANGES[change](path)
    refused(Code.SOURCE_CHANGED, lambda: source.read(MIB, buffer, ()))
    refused(Code.SOURCE_CHANGED, source.check)
    source.close()


def test_a_source_that_is_changed_during_a_read_is_noticed_at_its_end(spool: Spool, path: Path) -> None:
    """A digester is called in the middle of it."""
    job = spool.take(path)
    source = spool.pins.open(job, b"")

    class Writer:
        def update(self, data: memoryview, /) -> None:
            overwrite(path)

    refused(Code.SOURCE_CHANGED, lambda: source.read(0, memoryview(bytearray(SIZE)), (Writer(),)))
    source.close()


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize("kind", ["link", "fd"])
def test_what_leaves_the_bytes_alone_fails_nothing(
    spool: Spool, path: Path, kind: str, change: str, request: pytest.FixtureRequest
) -> None:
    job, path = pinned(spool, kind, path, request)
    assert spool.untouched(job) is (kind == "link")  # the other lies in memory, where no time tells of every write
    HARMLESS[change](path)
    assert not spool.untouched(job)
    assert spool.read(job) == content()


def test_nothing_done_to_the_source_reaches_a_copy(spool: Spool, path: Path) -> None:
    for change in [*CHANGES.values(), *HARMLESS.values()]:
        job = spool.take(written(path), Protection.COPY)
        change(path)
        assert spool.untouched(job)
        assert spool.read(job) == content()
        shutil.rmtree(path.parent)


def test_a_copy_that_there_is_stays_whoever_asks_for_another(spool: Spool, path: Path) -> None:
    job = spool.take(path)
    copied = replace(job, pin=spool.pins.copy(job))
    with pytest.raises(OSError, match="exists"):
        spool.pins.copy(job)
    assert spool.read(copied) == content()


def test_the_offset_that_the_caller_shares_is_left_alone(spool: Spool, path: Path, elsewhere: Path) -> None:
    for each in (path, written(path.with_name("small"), 100), written(elsewhere / "best.pt")):
        descriptor = os.open(each, os.O_RDONLY)
        os.lseek(descriptor, 17, os.SEEK_SET)
        for protection in Protection:
            spool.read(spool.take_descriptor(descriptor, str(each), protection))
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 17
        os.close(descriptor)


@pytest.mark.parametrize("harmless", [True, False], ids=["linked and chmodded", "written to"])
def test_a_copy_minds_writes_while_it_is_made_and_nothing_else(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch, harmless: bool
) -> None:
    """The same file may be handed over twice at once, and linking it moves its ctime."""
    copy = os.copy_file_range

    def meddle(*arguments: int) -> int:
        if harmless:
            os.link(path, path.with_name("second.pt"))
            path.chmod(0o400)
        else:
            overwrite(path)
        return copy(*arguments)

    monkeypatch.setattr(os, "copy_file_range", meddle)
    if harmless:
        assert spool.read(spool.take(path, Protection.COPY)) == content()
    else:
        refused(Code.SOURCE_CHANGED, lambda: spool.take(path, Protection.COPY))
        assert spool.files() == []


# ---- afterwards


@pytest.mark.parametrize("protection", Protection)
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_users_file_is_as_it_was(
    spool: Spool, path: Path, protection: Protection, where: str, request: pytest.FixtureRequest
) -> None:
    """Content, name, mode, owner, mtime and number of names; from the hand-off to the end."""
    if where == "elsewhere":
        path = written(request.getfixturevalue("elsewhere") / "best.pt")
    path.chmod(0o640)
    os.utime(path, ns=(1, 123_456_789))

    def facts() -> tuple[object, ...]:
        status = path.stat()
        names = ("ino", "mode", "uid", "gid", "size", "mtime_ns", "nlink")
        return tuple(getattr(status, f"st_{name}") for name in names)

    before = facts()
    job = spool.take(path, protection)
    spool.pins.sync(job.pin, job.id)
    spool.read(job)
    spool.pins.release(job.pin, job.id)
    spool.pins.release(job.pin, job.id)
    assert facts() == before
    assert path.read_bytes() == content()
    assert spool.files() == []


def test_a_source_that_the_spool_has_lost_is_said_to_be_lost(spool: Spool, path: Path) -> None:
    job = spool.take(path)
    (spool.folder / str(job.id)).unlink()
    assert job.record.path in refused(Code.SOURCE_LOST, lambda: spool.read(job)).message


def test_a_slot_that_is_another_saves_by_now_is_not_read_for_the_first(spool: Spool) -> None:
    slot = spool.slots.grant(1, SIZE)
    os.pwrite(slot.descriptor, content(), 0)
    pinned = spool.slots.commit(1, slot.number, SIZE, 1)
    ended = Job(FileRecord(1, 0, "a", "b", "c", "", "best.pt", SIZE, "", 0, 0), pinned)
    assert spool.read(ended) == content()
    spool.pins.release(pinned, 1)
    assert spool.slots.grant(1, SIZE).number == slot.number
    again = replace(ended, record=replace(ended.record, id=2), pin=spool.slots.commit(1, slot.number, SIZE, 2))
    refused(Code.SOURCE_LOST, lambda: spool.read(ended))
    assert spool.read(again) == content()


def restarted(spool: Spool) -> Spool:
    """What a new daemon finds: nothing that was in memory."""
    spool.pins.close()
    spool.slots.close()
    return Spool(spool.folder, spool.pools, spool.contents, spool.numbers)


def test_a_held_file_is_found_again_after_a_restart_if_it_is_the_very_one(spool: Spool, elsewhere: Path) -> None:
    job = spool.take(written(elsewhere / "best.pt"))
    later = restarted(spool)
    assert later.read(job) == content()
    assert not later.untouched(job)  # it lies in memory, where no time tells of every write


@pytest.mark.parametrize("change", [*CHANGES, *HARMLESS])
def test_a_held_file_that_was_touched_is_lost_after_a_restart(spool: Spool, elsewhere: Path, change: str) -> None:
    """Without the descriptor, nothing but the fingerprint says that it is the same file: then all of it has to fit."""
    path = written(elsewhere / "best.pt")
    job = spool.take(path)
    later = restarted(spool)
    before = open_descriptors()
    (CHANGES | HARMLESS)[change](path)
    assert str(path) in refused(Code.SOURCE_LOST, lambda: later.read(job)).message
    assert open_descriptors() == before


def test_what_took_the_place_of_a_held_file_is_not_even_opened(spool: Spool, elsewhere: Path) -> None:
    path = written(elsewhere / "best.pt")
    job = spool.take(path)
    later = restarted(spool)
    path.unlink()
    os.mkfifo(path)  # opening it would block for ever
    refused(Code.SOURCE_LOST, lambda: later.read(job))


@pytest.mark.parametrize("protection", [Protection.RESTART, Protection.COPY])
def test_what_lies_in_the_spool_outlives_a_restart(spool: Spool, path: Path, protection: Protection) -> None:
    job = spool.take(path, protection)
    path.unlink()
    later = restarted(spool)
    assert later.pins.sweep([job]) == 0
    assert later.read(job) == content()


@pytest.mark.parametrize(
    ("protection", "change", "right"),
    [
        (Protection.RESTART, "copied", True),
        (Protection.RESTART, "copied, other time", False),
        (Protection.COPY, "copied", True),
        (Protection.COPY, "copied, other time", True),
        (Protection.COPY, "shortened", False),
    ],
)
def test_a_spool_that_was_copied(spool: Spool, path: Path, protection: Protection, change: str, right: bool) -> None:
    """As with its root: another inode, and no other content. Who could write to a link may have done it."""
    job = spool.take(written(path), protection)
    assert spool.pins.rebase(job) is None  # where it was, nothing is to be changed
    kept = spool.folder / job.pin.name
    times = (kept.stat().st_atime_ns, kept.stat().st_mtime_ns)
    bytes_there = kept.read_bytes()
    kept.rename(kept.with_name("aside"))  # so that the copy has another inode
    kept.write_bytes(bytes_there if change != "shortened" else bytes_there[:-1])
    if change == "copied":
        os.utime(kept, ns=times)
    pin = spool.pins.rebase(job)
    assert (pin is not None) == right
    if pin is not None:
        assert spool.read(replace(job, pin=pin)) == content()
    else:
        refused(Code.SOURCE_CHANGED, lambda: spool.read(job))
    kept.unlink()
    assert spool.pins.rebase(job) is None


def test_the_sweep_removes_what_no_job_needs_and_nothing_else(spool: Spool, path: Path) -> None:
    kept, copied, stray = spool.take(path), spool.take(path, Protection.COPY), spool.take(path)
    slot, left = spool.slots.grant(1, MIB), spool.slots.grant(1, MIB)
    os.pwrite(slot.descriptor, content(), 0)
    saved = Job(replace(kept.record, id=90, size_bytes=SIZE), spool.slots.commit(1, slot.number, SIZE // 4))
    spool.slots.commit(1, left.number, 5)
    small = spool.take(written(path.with_name("small"), 5))
    spool.slots.close()
    assert spool.pins.sweep([kept, copied, saved, small]) == 2
    assert spool.files() == sorted([str(kept.id), str(copied.id), f"slots/{slot.number}"])
    assert stray.pin.name
    assert path.read_bytes() == spool.read(kept) == spool.read(copied) == content()
    assert spool.pins.sweep([kept, copied, saved, small]) == 0


def test_the_sweep_leaves_what_is_not_the_daemons(spool: Spool, path: Path) -> None:
    """An operator may have named a folder that holds other things."""
    foreign = spool.folder / "README.txt"
    foreign.write_text("what this disk is for")
    (spool.folder / "link").symlink_to(path)
    (spool.folder / "folder").mkdir()
    spool.take(path)
    assert spool.pins.sweep([]) == 1
    assert foreign.read_text() == "what this disk is for"
    assert spool.files() == ["README.txt", "link"]
    assert (spool.folder / "folder").is_dir()


def test_what_the_spool_takes_is_counted_without_what_is_only_linked(spool: Spool, path: Path) -> None:
    assert spool.pins.spool_bytes() == 0
    spool.take(path)
    assert spool.pins.spool_bytes() == 0
    spool.take(path, Protection.COPY)
    assert SIZE <= spool.pins.spool_bytes() < SIZE + MIB
    path.unlink()
    assert 2 * SIZE <= spool.pins.spool_bytes() < 2 * SIZE + 2 * MIB


def test_what_is_released_while_the_spool_is_measured_counts_for_nothing(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spool.take(path, Protection.COPY)
    scan = os.scandir

    def scan_and_release(folder: Path) -> list[os.DirEntry[str]]:
        found = list(scan(folder))
        spool.pins.release(job.pin, job.id)
        return found

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "scandir", scan_and_release)
        assert spool.pins.spool_bytes() == 0


def test_a_linking_that_the_kernel_forbids_becomes_a_held_descriptor(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a file that another uid owns and the daemon may not write (fs.protected_hardlinks)."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    job = spool.take(path)
    assert job.pin.kind is PinKind.FD
    assert spool.read(job) == content()
    assert spool.take(path, Protection.REBOOT).pin.kind is PinKind.COPY


def test_a_file_that_may_be_linked_and_not_be_read_is_held(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a daemon with CAP_FOWNER alone: its owner has opened the file, and nobody else may."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    job = spool.take(path)
    assert job.pin.kind is PinKind.FD
    assert spool.read(job) == content()
    assert spool.files() == []


def test_a_failed_hand_off_keeps_nothing(spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="Input/output error"):
        spool.take(path)
    assert spool.files() == []
    assert open_descriptors() == before


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_times_are_trusted_while_nobody_can_write(spool: Spool, path: Path, how: str) -> None:
    """What is mapped may be written to without a trace."""
    job = spool.take(written(path))
    file = path.open("r+b")
    mapping = mmap.mmap(file.fileno(), 0)
    if how == "mapped":
        file.close()
    else:
        mapping.close()
    source = spool.pins.open(job, b"")
    assert not source.check()
    source.close()
    file.close()
    mapping.close()
    source = spool.pins.open(job, b"")
    assert source.check()
    source.close()


def test_a_copy_of_what_is_written_to_without_a_trace_is_none(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is not synced yet is written to through a mapping, which moves no time, while others are copied."""
    written(path)
    copy_range = cloning.copy_range

    def write_after(descriptor: int, copy: int, size: int, source: str, in_time: None) -> None:
        copy_range(descriptor, copy, size, source, in_time)
        mapping[0] ^= 1

    monkeypatch.setattr(spool_copies, "copy_range", write_after)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0] ^= 1
        before = path.stat().st_mtime_ns
        refused(Code.SOURCE_CHANGED, lambda: spool.take(path, Protection.COPY))
        assert path.stat().st_mtime_ns == before
    assert spool.files() == []


@contextmanager
def duplicated(folder: Path, path: Path) -> Iterator[tuple[Spool, Job, Job]]:
    """A copy and its duplicate, which have all the room that there is; at the end nothing may be left of them."""
    room = Room(2 * SIZE)
    with later_spool(folder, Witness(most=0), room) as limited:
        job = limited.take(path, Protection.COPY)
        pin, _, size = limited.pins.adopt(job, 99)
        assert (pin.kind, size, room.used_bytes) == (PinKind.COPY, SIZE, 2 * SIZE)
        yield limited, job, replace(job, record=replace(job.record, id=99), pin=pin)
        assert (limited.files(), room.used_bytes) == ([], 0)


def test_a_copy_that_is_duplicated_counts_twice_and_outlives_the_first(spool: Spool, path: Path) -> None:
    """By two names of one file, which is no user's: its times may move, as when a store takes it, too."""
    with duplicated(spool.folder, path) as (limited, job, duplicate):
        refused(Code.RETRY_LATER, lambda: limited.pins.adopt(job, 100))
        limited.pins.release(job.pin, job.id)
        (spool.folder / duplicate.pin.name).chmod(0o640)
        assert limited.read(duplicate) == content()
        with limited.pins._opened(duplicate) as descriptor:
            limited.pins.release(duplicate.pin, 99)
            refused(Code.SOURCE_LOST, lambda: limited.pins._copies.share(descriptor, "100", duplicate))


def test_a_copy_is_duplicated_by_its_bytes_where_files_have_but_one_name(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, and on some that are mounted by FUSE."""
    monkeypatch.setattr(spool_copies, "link", lambda *_: False)
    with duplicated(spool.folder, path) as (limited, job, duplicate):
        limited.pins.release(job.pin, job.id)
        assert limited.read(duplicate) == content()
        limited.pins.release(duplicate.pin, 99)
