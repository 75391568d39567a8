"""Pins, with real files: what each protects against, and that a user's own file is only ever read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dash.messages import INLINE_BYTES
from ml_dashd.core.model import MAX_FILE_BYTES, FileRecord, Job, PinKind, Protection
from ml_dashd.edge import cloning, pin, spool_copies
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.system import NoFaults
from tests.doubles.disks import tmpfs, with_reflinks

MIB = 1 << 20
SIZE = 3 * MIB + 5


@dataclass
class Spool:
    """A spool, and hand-offs to it as the flow makes them."""

    folder: Path
    pools: tuple[Path, ...] = ()
    contents: dict[int, bytes] = field(default_factory=dict)
    numbers: int = 0
    budget: DescriptorBudget | None = None

    def __post_init__(self) -> None:
        self.slots = SlotFiles(self.folder, budget=self.budget)
        self.pins = SpoolPins([self.folder, *self.pools], self.slots, NoFaults(), budget=self.budget)

    def take(self, path: Path, protection: Protection = Protection.RESTART, flags: int = os.O_RDONLY) -> Job:
        descriptor = os.open(path, flags)
        try:
            return self.take_descriptor(descriptor, str(path), protection)
        finally:
            os.close(descriptor)

    def take_descriptor(
        self, descriptor: int, source: str = "/source", protection: Protection = Protection.RESTART
    ) -> Job:
        self.numbers += 1
        kept, content, size = self.pins.take(descriptor, self.numbers, source, protection)
        if content is not None:
            self.contents[self.numbers] = content
        return Job(FileRecord(self.numbers, 0, "a", "b", "c", "", Path(source).name, size, "", 0, 0), kept)

    def read(self, job: Job) -> bytes:
        """The bytes that would be sent, in two reads."""
        source = self.pins.open(job, self.contents.get(job.id, b""))
        sha256 = hashlib.sha256()
        try:
            got = bytearray(source.size_bytes)
            half = source.size_bytes // 2
            source.read(0, memoryview(got)[:half], (sha256,))
            source.read(half, memoryview(got)[half:], (sha256,))
        finally:
            source.close()
        assert sha256.digest() == hashlib.sha256(got).digest()
        return bytes(got)

    def untouched(self, job: Job) -> bool:
        source = self.pins.open(job, self.contents.get(job.id, b""))
        try:
            return source.check()
        finally:
            source.close()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """On a file system without reflinks, whatever the machine's is: the request is made one that no kernel knows."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    made = Spool(tmp_path / "spool")
    yield made
    made.pins.close()
    made.slots.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "data" / "best.pt")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:  # noqa: PTH116
        pytest.skip("/dev/shm is no other file system")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def written(path: Path, size: int = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(size))
    return path


def content(size: int = SIZE) -> bytes:
    return hashlib.shake_256(b"content").digest(size)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refused(code: Code, call: Callable[[], object]) -> MLDashError:
    with pytest.raises(MLDashError) as raised:
        call()
    assert raised.value.code is code
    return raised.value


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
    spool = Spool(tmp_path / "spool", budget=budget)
    path = written(elsewhere / "best.pt", INLINE_BYTES + 1)
    before = open_descriptors()
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
    "given another mtime": lambda path: os.utime(path, ns=(1, 1)),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "unlinked": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("other.pt")),
    "replaced by rename": lambda path: written(path.with_name("new"), 5).rename(path),
    "given another mode": lambda path: path.chmod(0o400),
    "given another name": lambda path: os.link(path, path.with_name("second.pt")),
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
