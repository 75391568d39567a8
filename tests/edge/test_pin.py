"""Which pin a file gets, with real files, and what is not taken."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest

from ml_dash.errors import Code
from ml_dash.messages import INLINE_BYTES
from ml_dashd.core.model import MAX_FILE_BYTES, PinKind, Protection
from ml_dashd.edge import pin
from ml_dashd.edge.descriptors import DescriptorBudget
from tests.doubles.disks import tmpfs, with_reflinks
from tests.edge.pin_rig import MIB, SIZE, Spool, content, open_descriptors, path, refused, spool, written

__all__ = ["path", "spool"]


# ---- which pin


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES])
def test_a_small_file_is_read_at_once(spool: Spool, path: Path, size: int) -> None:
    job = spool.take(written(path, size))
    assert job.pin.kind is PinKind.INLINE
    path.write_bytes(b"overwritten")
    path.unlink()
    assert spool.contents[job.id] == spool.read(job) == content(size)
    assert spool.files() == []


def test_a_file_on_the_spools_own_disk_is_linked(spool: Spool, path: Path) -> None:
    job = spool.take(written(path, INLINE_BYTES + 1))
    assert job.pin.kind is PinKind.LINK
    assert (spool.folder / str(job.id)).samefile(path)
    assert job.pin.source == str(path)
    assert spool.untouched(job)
    assert spool.read(job) == content(INLINE_BYTES + 1)


def test_a_file_on_another_disk_is_held_open(spool: Spool, elsewhere: Path) -> None:
    before = open_descriptors()
    job = spool.take(written(elsewhere / "best.pt"))
    assert job.pin.kind is PinKind.FD
    assert open_descriptors() == before + 1
    assert spool.files() == []
    (elsewhere / "best.pt").unlink()
    assert spool.read(job) == content()
    assert spool.read(job) == content()
    spool.pins.release(job.pin, job.id)
    assert open_descriptors() == before


def test_a_file_that_has_no_name_any_more_is_held_open(spool: Spool, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    job = spool.take_descriptor(descriptor)
    os.close(descriptor)
    assert job.pin.kind is PinKind.FD
    assert spool.read(job) == content()


def is_quick(spool: Spool, path: Path) -> bool:
    with path.open("rb") as file:
        return spool.pins.is_quick(file.fileno())


def test_what_the_journals_own_disk_can_pin_is_quick(
    spool: Spool, path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger file only once it is known that the disk shares no blocks: to share them writes the file out first."""
    monkeypatch.setattr(pin, "reflink", lambda *_: errno.EOPNOTSUPP)
    assert is_quick(spool, written(path.with_name("small"), INLINE_BYTES))
    assert not is_quick(spool, written(path, INLINE_BYTES + 1))
    assert spool.take(path).pin.kind is PinKind.LINK
    assert is_quick(spool, path)
    assert not is_quick(spool, written(elsewhere / "small", 1))
    assert not is_quick(spool, written(elsewhere / "best.pt"))
    reading, writing = os.pipe()
    assert not spool.pins.is_quick(reading)
    os.close(reading)
    os.close(writing)
    assert not spool.pins.is_quick(reading)


SEALS = [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE]


def memory(seals: Sequence[int] = SEALS, size: int | None = None) -> int:
    descriptor = os.memfd_create("tensor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(descriptor, content()[:size])
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(seals))
    return descriptor


@pytest.mark.parametrize("missing", SEALS)
@pytest.mark.parametrize("size", [100, None], ids=["small", "large"])
def test_memory_that_can_still_change_is_refused(spool: Spool, missing: int, size: int | None) -> None:
    """No time stamp would tell of it."""
    descriptor = memory([seal for seal in SEALS if seal != missing], size)
    refusal = refused(Code.NOT_A_FILE, lambda: spool.take_descriptor(descriptor))
    os.close(descriptor)
    assert "memfd" in refusal.message
    assert 'snapshot="copy"' in (refusal.hint or "")
    assert spool.files() == []


def test_sealed_memory_is_held_open(spool: Spool) -> None:
    descriptor = memory()
    job = spool.take_descriptor(descriptor)
    os.close(descriptor)
    assert job.pin.kind is PinKind.FD
    assert spool.read(job) == content()


def test_a_pool_serves_its_disk(elsewhere: Path, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", (elsewhere / "spool",))
    job = spool.take(written(elsewhere / "best.pt"))
    assert job.pin.kind is PinKind.LINK
    assert (elsewhere / "spool" / str(job.id)).samefile(elsewhere / "best.pt")
    assert spool.read(job) == content()
    spool.pins.release(job.pin, job.id)
    assert list((elsewhere / "spool").iterdir()) == []
    assert (elsewhere / "best.pt").read_bytes() == content()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_snapshot_is_a_copy_that_no_write_reaches(
    spool: Spool, path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    if where == "elsewhere":
        path = written(request.getfixturevalue("elsewhere") / "best.pt")
    job = spool.take(path, Protection.COPY)
    assert job.pin.kind is PinKind.COPY
    copy = spool.folder / str(job.id)
    assert not copy.samefile(path)
    assert copy.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"overwritten in place")
    assert spool.untouched(job)
    assert spool.read(job) == content()


def test_a_snapshot_of_memory_is_a_copy(spool: Spool) -> None:
    descriptor = os.memfd_create("tensor")
    os.write(descriptor, content())
    job = spool.take_descriptor(descriptor, protection=Protection.COPY)
    os.ftruncate(descriptor, 0)
    os.close(descriptor)
    assert spool.read(job) == content()


def test_what_must_outlive_a_reboot_is_linked_or_copied(spool: Spool, path: Path, elsewhere: Path) -> None:
    assert spool.take(path, Protection.REBOOT).pin.kind is PinKind.LINK
    job = spool.take(written(elsewhere / "best.pt"), Protection.REBOOT)
    assert job.pin.kind is PinKind.COPY
    (elsewhere / "best.pt").unlink()
    spool.pins.sync(job.pin, job.id)
    assert spool.read(job) == content()


def test_a_reflink_is_a_copy_that_shares_its_blocks(tmp_path: Path) -> None:
    with with_reflinks(tmp_path / "disk") as disk:
        path = written(disk / "data" / "best.pt", 32 * MIB)
        before = shutil.disk_usage(disk).used
        spool = Spool(disk / "spool")
        job = spool.take(path)
        assert job.pin.kind is PinKind.REFLINK
        assert not is_quick(spool, path)
        assert not (disk / "spool" / str(job.id)).samefile(path)
        assert shutil.disk_usage(disk).used - before < 8 * MIB
        path.write_bytes(b"overwritten in place")
        assert spool.untouched(job)
        assert spool.read(job) == content(32 * MIB)
        spool.pins.release(job.pin, job.id)
        assert spool.files() == []
        spool.slots.close()


# ---- what is refused


def test_what_is_no_regular_file_is_refused(spool: Spool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ours, theirs = socket.socketpair()
    descriptors = [
        os.open(tmp_path, os.O_RDONLY),
        os.open(tmp_path, os.O_PATH),
        os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK),
        os.open("/dev/zero", os.O_RDONLY),
        os.dup(ours.fileno()),
    ]
    before = open_descriptors()
    for descriptor in descriptors:
        refused(Code.NOT_A_FILE, lambda descriptor=descriptor: spool.take_descriptor(descriptor))
    assert open_descriptors() == before
    assert spool.files() == []
    for descriptor in descriptors:
        os.close(descriptor)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("size", [5, SIZE])
def test_a_descriptor_that_gives_no_right_to_read_is_refused(spool: Spool, path: Path, flags: int, size: int) -> None:
    written(path, size)
    failure = refused(Code.NOT_READABLE, lambda: spool.take(path, flags=flags))
    assert str(path) in failure.message
    assert spool.files() == []


MADE_UP = {
    "/proc/self/maps": "proc", "/proc/cpuinfo": "proc", "/sys/kernel/mm/transparent_hugepage/enabled": "sysfs",
    "/sys/fs/cgroup/cgroup.procs": "cgroup2", "/sys/fs/cgroup/memory/cgroup.procs": "cgroup",
    "/proc/self/ns/net": "nsfs", "/sys/kernel/tracing/trace": "tracefs",
}  # fmt: skip


@pytest.mark.parametrize("made_up", MADE_UP)
@pytest.mark.parametrize("protection", [Protection.RESTART, Protection.COPY])
def test_a_file_that_the_kernel_makes_up_is_refused(spool: Spool, made_up: str, protection: Protection) -> None:
    """It says that it is regular and, mostly, that it is empty; its content comes with the reading."""
    try:
        descriptor = os.open(made_up, os.O_RDONLY)
    except OSError as failure:
        pytest.skip(f"{made_up}: {failure.strerror}")
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    refusal = refused(Code.NOT_A_FILE, lambda: spool.take_descriptor(descriptor, made_up, protection))
    os.close(descriptor)
    assert f"{made_up} is a file of {MADE_UP[made_up]}" in refusal.message
    assert "copy it to a plain file" in (refusal.hint or "")
    assert spool.files() == []


def test_a_file_that_can_not_be_read_after_all_is_refused_by_name(
    spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of a network file system whose server has thought better of it."""

    def gone(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    written(path, 100)
    monkeypatch.setattr(pin.os, "pread", gone)
    assert "Stale" in refused(Code.NOT_READABLE, lambda: spool.take(path)).message


@pytest.mark.parametrize("protection", [Protection.RESTART, Protection.COPY])
def test_the_spools_own_files_are_not_handed_over(spool: Spool, path: Path, protection: Protection) -> None:
    """A slot would be granted and written to again while it is kept."""
    slot = spool.slots.grant(1, SIZE)
    before = spool.files()
    refusal = refused(Code.NOT_A_FILE, lambda: spool.take_descriptor(slot.descriptor, protection=protection))
    assert "spool" in refusal.message
    assert spool.files() == before
    pinned = spool.take(path, Protection.COPY)
    assert refused(Code.NOT_A_FILE, lambda: spool.take(spool.folder / pinned.pin.name)).code is Code.NOT_A_FILE


def test_a_file_opened_for_both_is_only_read(spool: Spool, path: Path) -> None:
    job = spool.take(path, flags=os.O_RDWR | os.O_APPEND)
    assert spool.read(job) == content()
    assert path.read_bytes() == content()


def test_a_sparse_file_is_no_larger_than_it_says(spool: Spool, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES)
    job = spool.take(path)
    assert job.record.size_bytes == MAX_FILE_BYTES
    assert spool.pins.spool_bytes() == 0


def test_descriptors_are_held_only_as_far_as_the_budget_goes(elsewhere: Path, tmp_path: Path) -> None:
    """Then sources have to be copied: connections, and the daemon's own files, need what is left."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (300, hard))
    try:
        budget = DescriptorBudget(own=260)  # leaves 150, by the rule of half
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    before = open_descriptors()
    spool = Spool(tmp_path / "spool", budget=budget)
    path = written(elsewhere / "best.pt", INLINE_BYTES + 1)
    jobs = [spool.take(path) for _ in range(75)]
    refused(Code.RETRY_LATER, lambda: spool.take(path))
    assert spool.take(path, Protection.COPY).pin.kind is PinKind.COPY
    assert spool.slots.grant(1, 5).capacity_bytes  # slots go further
    for job in jobs[:2]:
        spool.pins.release(job.pin, job.id)
    assert spool.take(path).pin.kind is PinKind.FD
    spool.pins.close()
    spool.slots.close()
    assert open_descriptors() == before


def test_slots_are_granted_only_as_far_as_the_budget_goes(tmp_path: Path) -> None:
    held = [0]
    budget = DescriptorBudget()
    budget.count(lambda: held[0])
    spool = Spool(tmp_path / "spool", budget=budget)
    held[0] = 10**9
    assert budget.left() < 0
    refused(Code.RETRY_LATER, lambda: spool.slots.grant(1, 5))
    held[0] = 0
    spool.slots.grant(1, 5)
    assert len(spool.files()) == 1
    spool.slots.close()


def test_more_than_100_gb_is_refused_before_anything_is_kept(spool: Spool, path: Path) -> None:
    os.truncate(path, MAX_FILE_BYTES + 1)
    failure = refused(Code.TOO_LARGE, lambda: spool.take(path, Protection.COPY))
    assert str(MAX_FILE_BYTES + 1) in failure.message
    assert spool.files() == []
    os.truncate(path, MAX_FILE_BYTES)
    assert spool.take(path).record.size_bytes == MAX_FILE_BYTES


def test_a_copy_that_finds_no_room_leaves_nothing(path: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 2 * MIB) as disk:
        spool = Spool(disk / "spool")
        assert refused(Code.DISK_FULL, lambda: spool.take(path, Protection.COPY)).hint
        assert spool.files() == []
        assert refused(Code.DISK_FULL, lambda: spool.slots.grant(1, 3 * MIB)).hint
        assert spool.files() == []
        spool.slots.close()
