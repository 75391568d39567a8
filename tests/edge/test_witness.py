"""Who saw that nothing was written: a source whose times were set is what it was; one that was written to never is."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import Fingerprint, Job, PinKind, Protection
from ml_dashd.edge import cloning, spool_copies, witness
from ml_dashd.edge.system import ignore_lease_signals
from ml_dashd.edge.witness import Witness
from tests.doubles.disks import ext4, tmpfs, with_reflinks
from tests.edge.pin_rig import MIB, SIZE, Spool, content, open_descriptors, path, refused, spool, written

__all__ = ["path", "spool"]

LATER_MS = 1 << 50
"""A time at which no touch is young any more."""


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[Path]:
    """Where sources lie: beside the spool, so that they are linked, or on a disk of their own, and are held."""
    made = {
        "linked": lambda: nullcontext(folder),
        "ext4": lambda: ext4(folder / "disk"),
        "xfs": lambda: with_reflinks(folder / "disk"),
        "tmpfs": lambda: tmpfs(folder / "disk", 64 * MIB),
    }
    with made[kind]() as place:
        yield place


DISKS = ["linked", "ext4", "xfs", "tmpfs"]


def pinned(spool: Spool, path: Path) -> Job:
    job = spool.take(written(path))
    assert job.pin.kind in (PinKind.LINK, PinKind.FD)
    return job


def set_times(path: Path) -> None:
    """As `tar`, `rsync -t` and `touch -d` do."""
    os.utime(path, ns=(1, 1))


TOUCHES: dict[str, Callable[[Path], object]] = {
    "utime": os.utime,
    "an old time": set_times,
    "Path.touch": lambda path: path.touch(),
    "touch -c": lambda path: subprocess.run(["touch", "-c", path], check=True),
    "utime, and opened to read": lambda path: (os.utime(path), path.read_bytes()),
    "utime, chmod, link, rename": lambda path: (
        os.utime(path), path.chmod(0o600), os.link(path, f"{path}.2"), path.rename(f"{path}.3"), os.utime(f"{path}.3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DISKS)
def test_a_source_that_is_only_touched_is_what_it_was(spool: Spool, tmp_path: Path, kind: str) -> None:
    """Before it is read, while it is, copied, leased and handed on; what was read is read again and compared."""
    with disk(kind, tmp_path) as folder:
        for number, (how, touch) in enumerate(TOUCHES.items()):
            path = folder / f"{number}.pt"
            job = pinned(spool, path)
            touch(path)
            assert not spool.untouched(job), how
            assert spool.read(job) == content(), how
            assert spool.pins.lease(job) is None, how
            assert spool.read(replace(job, pin=spool.pins.copy(job))) == content(), how
            pin, _, size = spool.pins.adopt(job, 1000 + number)
            assert spool.read(replace(job, record=replace(job.record, id=1000 + number), pin=pin)) == content()
            assert size == SIZE
            spool.pins.release(pin, 1000 + number)
            spool.pins.release(job.pin, job.id)


@pytest.mark.parametrize("kind", DISKS)
def test_a_source_that_is_touched_between_two_reads_is_read_on(spool: Spool, tmp_path: Path, kind: str) -> None:
    with disk(kind, tmp_path) as folder:
        job = pinned(spool, folder / "best.pt")
        source = spool.pins.open(job, b"")
        got = memoryview(bytearray(SIZE))
        source.read(0, got[:MIB], ())
        os.utime(folder / "best.pt")
        source.read(MIB, got[MIB:], ())
        assert not source.check()
        assert got == content()
        source.close()
        spool.pins.release(job.pin, job.id)


def put_back(path: Path, times: tuple[int, int]) -> None:
    os.utime(path, ns=times)


def set_now(path: Path, times: tuple[int, int]) -> None:
    os.utime(path)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def write(file: int) -> None:
    os.pwrite(file, b"x", 5)


def write_by_mmap(file: int) -> None:
    with mmap.mmap(file, 0) as mapping:
        mapping[-1] ^= 1


def rewrite(file: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, bytes(SIZE), 0)


def punch(file: int) -> None:
    """FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE."""
    assert ctypes.CDLL(None).fallocate(file, 1 | 2, ctypes.c_long(0), ctypes.c_long(4096)) == 0


def copy_into(file: int) -> None:
    os.lseek(file, MIB, os.SEEK_SET)
    assert os.sendfile(file, file, 0, 4096)


WRITES: dict[str, Callable[[int], object]] = {
    "written to": write,
    "by mmap": write_by_mmap,
    "written anew": rewrite,
    "a hole": punch,
    "sendfile": copy_into,
}


def meddled(path: Path, how: Callable[[int], object]) -> None:
    file = opened(path)
    how(file)
    os.close(file)


def truncated(path: Path) -> None:
    """By its name, and to its size again: nobody opens it."""
    os.truncate(path, SIZE - 1)
    os.truncate(path, SIZE)


@pytest.mark.parametrize("times", [put_back, set_now])
@pytest.mark.parametrize("kind", DISKS)
def test_a_write_is_found_whatever_its_times_say_afterwards(
    spool: Spool, tmp_path: Path, kind: str, times: Callable[[Path, tuple[int, int]], None]
) -> None:
    changes = {how: lambda path, do=do: meddled(path, do) for how, do in WRITES.items()} | {"truncated": truncated}
    with disk(kind, tmp_path) as folder:
        for number, (how, change) in enumerate(changes.items()):
            path = folder / f"{number}.pt"
            job = pinned(spool, path)
            status = path.stat()
            change(path)
            times(path, (status.st_atime_ns, status.st_mtime_ns))
            assert path.read_bytes() != content()
            refused(Code.SOURCE_CHANGED, lambda job=job: spool.read(job))
            refused(Code.SOURCE_CHANGED, lambda job=job: spool.pins.copy(job))
            assert spool.pins.retimed(job, LATER_MS) is None, how
            spool.pins.release(job.pin, job.id)
        assert spool.files() == []


@pytest.mark.parametrize("kind", DISKS)
def test_who_still_has_it_open_is_never_trusted(spool: Spool, tmp_path: Path, kind: str) -> None:
    """It may have written, or be writing: no write shows that goes through a mapping to a page that is written to."""
    with disk(kind, tmp_path) as folder:
        for how, when in product(("open", "mapped", "a child's"), ("before the hand-off", "after it")):
            path = written(folder / f"{how} {when}")
            job = spool.take(path) if when == "after it" else None
            with kept_open(path, how) as write_on:
                job = job or spool.take(path)
                os.utime(path)
                refused(Code.SOURCE_CHANGED, lambda job=job: spool.read(job))
                write_on()
                os.utime(path)
                refused(Code.SOURCE_CHANGED, lambda job=job: spool.read(job))
                os.utime(path, ns=(0, job.pin.fingerprint.mtime_ns))
                if how == "mapped" and when == "before the hand-off":  # no call, no opening: it is one content
                    assert spool.read(job) == path.read_bytes() != content()
                    continue
            refused(Code.SOURCE_CHANGED, lambda job=job: spool.read(job))
            spool.pins.release(job.pin, job.id)


@contextmanager
def kept_open(path: Path, how: str) -> Iterator[Callable[[], object]]:
    """Somebody has it open to write, by a descriptor, a mapping alone, or in a child that was left it; he may write."""
    file = opened(path)
    if how == "open":
        yield lambda: write(file)
        os.close(file)
    elif how == "mapped":
        with mmap.mmap(file, 0) as mapping:
            os.close(file)
            yield lambda: mapping.__setitem__(0, mapping[0] ^ 1)
    else:
        code = f"import os; input(); os.pwrite({file}, b'x', 5); print(flush=True); input()"
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, pass_fds=[file]) as child:
            os.close(file)
            assert child.stdin is not None
            assert child.stdout is not None
            yield lambda: (child.stdin.write(b"\n"), child.stdin.flush(), child.stdout.readline())
            child.communicate(b"\n")


def test_a_file_that_was_handed_over_twice_is_watched_for_each(spool: Spool, path: Path) -> None:
    """One watch is all that the kernel gives for it; what came before the second is nothing to that one."""
    first = pinned(spool, path)
    meddled(path, write)
    os.utime(path)
    second = spool.take(path)
    os.utime(path)
    refused(Code.SOURCE_CHANGED, lambda: spool.read(first))
    spool.pins.release(first.pin, first.id)
    got = spool.read(second)
    assert got == path.read_bytes() != content()
    third = spool.take(path)
    spool.pins.release(second.pin, second.id)
    os.utime(path)
    assert spool.read(third) == got


def test_a_source_that_is_touched_while_it_is_copied(spool: Spool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, for a writer who waits, or before the answer."""
    copy_range = cloning.copy_range

    def touch_after(*arguments: object) -> None:
        copy_range(*arguments)  # type: ignore[arg-type]
        os.utime(path)

    job = pinned(spool, path)
    leased = spool.take(path)
    assert spool.pins.lease(leased) is None
    monkeypatch.setattr(spool_copies, "copy_range", touch_after)
    assert spool.read(replace(job, pin=spool.pins.copy(job))) == content()
    assert spool.read(replace(leased, pin=spool.pins.copy(leased, lambda: True))) == content()
    assert spool.read(spool.take(path, Protection.COPY)) == content()


def test_a_leased_file_that_was_touched_is_copied_for_whoever_waits(spool: Spool, path: Path) -> None:
    """He has it open to write, as far as the kernel counts, and has written nothing."""
    ignore_lease_signals()
    job = pinned(spool, path)
    assert spool.pins.lease(job) is None
    os.utime(path)
    code = "import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b'x', 0)"
    with subprocess.Popen([sys.executable, "-c", code, path]) as writer:
        while not spool.pins.wanted():
            assert writer.poll() is None
        copied = replace(job, pin=spool.pins.copy(job, lambda: True))
        spool.pins.unlease(job.id)
    assert spool.read(copied) == content() != path.read_bytes()
    refused(Code.SOURCE_CHANGED, lambda: spool.read(job))


# ---- what is journaled


def looked(spool: Spool, job: Job, now_ms: int = LATER_MS) -> Fingerprint | None:
    return spool.pins.retimed(job, now_ms) if job.id in spool.pins.touched() else None


def test_new_times_are_told_once_they_are_settled(spool: Spool, path: Path) -> None:
    job = pinned(spool, path)
    assert looked(spool, job) is None
    os.utime(path)
    assert looked(spool, job, path.stat().st_ctime_ns // 1_000_000) is None  # a write in the same tick would not show
    mark = looked(spool, job)
    assert mark is not None
    assert mark.mtime_ns == path.stat().st_mtime_ns
    assert spool.untouched(replace(job, pin=replace(job.pin, fingerprint=mark)))
    assert looked(spool, job) is None
    path.chmod(0o600)
    assert looked(spool, replace(job, pin=replace(job.pin, fingerprint=mark))) is None  # mtime is what matters
    meddled(path, write)
    os.utime(path)
    assert looked(spool, job) is None
    copied = replace(job, pin=replace(job.pin, kind=PinKind.COPY))
    assert spool.pins.retimed(copied, LATER_MS) is None


# ---- without a witness


def assert_alarm(spool: Spool, path: Path) -> None:
    """The rule without one."""
    job = spool.take(path)
    path.chmod(0o600)
    assert spool.read(job) == content()
    os.utime(path)
    refused(Code.SOURCE_CHANGED, lambda: spool.read(job))
    spool.pins.release(job.pin, job.id)


def test_no_more_files_are_watched_than_may_be(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is free again when a source is let go, or was written to."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    spool = Spool(tmp_path / "spool", witness=Witness(most=1))
    first = pinned(spool, path)
    other = written(path.with_name("other.pt"))
    assert_alarm(spool, other)
    spool.pins.release(first.pin, first.id)
    second = spool.take(other)
    os.utime(other)
    assert spool.read(second) == content()
    meddled(other, write)
    refused(Code.SOURCE_CHANGED, lambda: spool.read(second))
    third = spool.take(path)
    os.utime(path)
    assert spool.read(third) == content()
    spool.pins.close()
    spool.slots.close()


def test_where_the_kernel_watches_nothing_mtime_is_what_counts(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No instance is left for this user (EMFILE), no watch (ENOSPC), or the file system tells not all."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    written(path)
    for number, none in enumerate(("inotify_init1", "inotify_add_watch", "TELLING")):
        with monkeypatch.context() as meanwhile:
            if none == "TELLING":
                meanwhile.setattr(witness, "TELLING", ())
            else:
                meanwhile.setattr(witness, "_libc", Refusing(none))
            spool = Spool(tmp_path / f"spool-{number}")
            assert_alarm(spool, path)
            spool.pins.close()
            spool.slots.close()


class Refusing:
    """The C library, with one call that fails."""

    def __init__(self, call: str) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Callable[..., int]:
        return (lambda *_: -1) if name == self._call else getattr(ctypes.CDLL(None, use_errno=True), name)


def test_when_the_kernel_has_lost_what_it_was_to_tell_nobody_is_vouched_for(spool: Spool, path: Path) -> None:
    """It keeps so many events for who does not read them, and then one that says that others are lost."""
    others = [written(path.with_name(name)) for name in ("one.pt", "two.pt")]
    job, *rest = [spool.take(each) for each in (path, *others)]
    for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2 + 1):
        for each in others:  # of equal ones in a row the kernel keeps one
            os.utime(each)
    os.utime(path)
    for each in (job, *rest):
        refused(Code.SOURCE_CHANGED, lambda each=each: spool.read(each))
    later = spool.take(path)
    os.utime(path)
    assert spool.read(later) == content()


def test_what_is_gone_takes_no_place(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "FICLONE", 0)
    spool = Spool(tmp_path / "spool", witness=Witness(most=1))
    gone = pinned(spool, path)
    path.unlink()
    (spool.folder / gone.pin.name).unlink()
    job = pinned(spool, path)
    os.utime(path)
    assert spool.read(job) == content()
    refused(Code.SOURCE_LOST, lambda: spool.pins.retimed(gone, LATER_MS))
    spool.pins.close()
    spool.slots.close()


def test_a_hand_off_that_came_again_takes_no_place(
    tmp_path: Path, path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds open is held for the first one, of which it has seen less."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    spool = Spool(tmp_path / "spool", witness=Witness(most=1))
    again = pinned(spool, elsewhere / "best.pt")
    spool.pins.pass_on(again.id, 99)
    job = pinned(spool, path)
    os.utime(path)
    assert spool.read(job) == content()
    spool.pins.close()
    spool.slots.close()


def test_nothing_is_kept_open(path: Path) -> None:
    before = open_descriptors()
    heard = Witness()
    descriptor = os.open(written(path), os.O_RDONLY)
    with heard.during(1, descriptor) as ask:
        assert ask() is not None
    assert ask() is None
    heard.watch(2, descriptor)
    heard.close()
    heard.close()
    heard.watch(3, descriptor)
    assert heard.account(2, descriptor) is None
    assert heard.account(3, descriptor) is None
    os.close(descriptor)
    assert open_descriptors() == before
