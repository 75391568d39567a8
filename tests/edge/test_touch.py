"""The command `touch` opens a file to write and writes nothing: told from who writes by a lease that it asks for."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import Job, PinKind, Protection
from ml_dashd.core.states import State
from ml_dashd.edge import cloning, spool_copies
from ml_dashd.edge.descriptors import FOR_PINS, DescriptorBudget
from ml_dashd.edge.file_leases import FileLeases
from ml_dashd.edge.system import ignore_lease_signals
from ml_dashd.edge.witness import Witness
from tests.doubles.disks import ext4
from tests.edge.pin_rig import (
    MIB,
    SIZE,
    Spool,
    content,
    later_spool,
    leases,
    leasing,
    open_descriptors,
    path,
    refused,
    spool,
    written,
)
from tests.edge.test_witness import DISKS, LATER_MS, WRITES, disk, meddled, pinned, put_back, set_now

__all__ = ["path", "spool"]


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """A spool whose files are leased while they wait, on a file system without reflinks."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    with later_spool(tmp_path / "spool", leasing()) as made:
        yield made


def touch(path: Path, *options: str) -> None:
    subprocess.run(["touch", *options, path], check=True)


@contextmanager
def at_the_door(spool: Spool, act: Callable[[], object]) -> Iterator[threading.Thread]:
    """Somebody who opens a file to write, and waits for that; he is let in after the block at the latest."""
    writer = threading.Thread(target=act)
    writer.start()
    yield writer
    while writer.is_alive():
        spool.pins.give_way()
        writer.join(0.001)


@pytest.mark.parametrize("kind", DISKS)
def test_the_command_is_no_false_alarm(waiting: Spool, tmp_path: Path, kind: str) -> None:
    """Before it is read, between two reads, copied, leased for its owner, handed on, and when its times are noted."""
    with disk(kind, tmp_path) as folder:
        for number, options in enumerate(([], ["-c"], ["-d", "2020-02-02"], ["-a"])):
            path = folder / f"{number}.pt"
            job = pinned(waiting, path)
            assert leases(path) == ["ACTIVE"]
            touch(path, *options)
            assert waiting.read(job) == content()
            assert waiting.read(replace(job, pin=waiting.pins.copy(job))) == content()
            waiting.pins.release(waiting.pins.adopt(job, 1000 + number)[0], 1000 + number)
            assert waiting.pins.retimed(job, LATER_MS) is not None or options == ["-a"]
            source = waiting.pins.open(job, b"")
            got = memoryview(bytearray(SIZE))
            source.read(0, got[:MIB], ())
            touch(path, *options)
            source.read(MIB, got[MIB:], ())
            assert not source.check()
            assert got == content()
            source.close()
            assert waiting.pins.lease(job) is None
            waiting.pins.release(job.pin, job.id)
            assert leases(path) == []


def test_it_may_be_touched_again_and_again(waiting: Spool, path: Path) -> None:
    """One behind the other, too: who gives way to touch has another lease at once, unless somebody writes."""
    job = pinned(waiting, path)
    for _ in range(3):
        touch(path)
        assert leases(path) == ["BREAKING"]
        touch(path)  # before anybody has looked
        assert waiting.pins.give_way()
        assert not waiting.pins.give_way()
        assert leases(path) == ["ACTIVE"]
        touch(path)
        assert waiting.read(job) == content()
        assert leases(path) == ["ACTIVE"]
    assert waiting.pins.touched() == [job.id]
    assert waiting.pins.retimed(job, LATER_MS) is not None
    with at_the_door(waiting, lambda: path.open("r+b").close()):
        pass
    os.utime(path)
    assert waiting.pins.retimed(job, LATER_MS) is None
    assert leases(path) == []
    refused(Code.SOURCE_CHANGED, lambda: waiting.read(job))


@pytest.mark.parametrize(
    ("kind", "times"),
    [("linked", put_back), ("linked", set_now), ("ext4", put_back), ("xfs", set_now), ("tmpfs", set_now)],
)
def test_who_writes_is_let_in_and_found(
    waiting: Spool, tmp_path: Path, kind: str, times: Callable[[Path, tuple[int, int]], None]
) -> None:
    """He waits until the daemon gives way, and no longer; whatever he does to the times afterwards."""
    with disk(kind, tmp_path) as folder:
        for number, how in enumerate(WRITES.values()):
            path = folder / f"{number}.pt"
            job = pinned(waiting, path)
            status = path.stat()
            with at_the_door(waiting, lambda path=path, how=how: meddled(path, how)):
                while leases(path) != ["BREAKING"]:
                    time.sleep(0.001)
                assert path.read_bytes() == content()
                assert waiting.read(job) == content()  # he has written nothing yet
            times(path, (status.st_atime_ns, status.st_mtime_ns))
            assert path.read_bytes() != content()
            refused(Code.SOURCE_CHANGED, lambda job=job: waiting.read(job))
            waiting.pins.release(job.pin, job.id)
        path = written(folder / "truncated.pt")
        job = waiting.take(path)
        with at_the_door(waiting, lambda: os.truncate(path, SIZE - 1)):
            pass
        refused(Code.SOURCE_CHANGED, lambda: waiting.read(job))


def test_a_touch_that_shows_late_is_known_all_the_same(waiting: Spool, path: Path) -> None:
    """Who is let in before it has set the times: touch is let out of the processor by whom it has woken."""
    job = pinned(waiting, path)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
    assert waiting.pins.give_way()
    assert leases(path) == []
    waiting.pins.lease_touched()
    assert leases(path) == []
    os.utime(path)
    waiting.pins.lease_touched()
    assert leases(path) == ["ACTIVE"]
    touch(path)
    assert waiting.read(job) == content()
    before = open_descriptors()
    with at_the_door(waiting, lambda: path.open("r+b").close()):
        pass
    waiting.pins.lease_touched(last=True)
    assert leases(path) == []
    assert open_descriptors() < before


def test_who_writes_after_a_touch_waits_no_longer(waiting: Spool, path: Path) -> None:
    """The lease that the next touch was to find is his: it is asked for once more, and not given again."""
    job = pinned(waiting, path)
    os.utime(path)
    with at_the_door(waiting, lambda: meddled(path, WRITES["by mmap"])):
        while leases(path) != ["BREAKING"]:
            time.sleep(0.001)
        assert waiting.pins.give_way()
    assert path.read_bytes() != content()
    os.utime(path)
    assert leases(path) == []
    refused(Code.SOURCE_CHANGED, lambda: waiting.read(job))


def test_a_lease_that_the_kernel_took_keeps_nobody_else_waiting(waiting: Spool, path: Path) -> None:
    """As after a daemon was stopped (SIGSTOP, a frozen container) for longer than a writer waits."""
    other = path.with_name("other.pt")
    taken, asked_for = pinned(waiting, path), pinned(waiting, other)
    before = open_descriptors()
    fcntl.fcntl(waiting.witness._leases._held[taken.id], fcntl.F_SETLEASE, fcntl.F_UNLCK)
    meddled(path, WRITES["by mmap"])
    with at_the_door(waiting, lambda: other.open("r+b").close()):
        pass
    waiting.pins.lease_touched(last=True)
    assert open_descriptors() == before - 2
    os.utime(path)
    refused(Code.SOURCE_CHANGED, lambda: waiting.read(taken))
    assert waiting.read(asked_for) == content()


def test_small_files_leave_leases_to_large_ones(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied soon, and there may be many."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    with later_spool(tmp_path / "spool", leasing(most=4, small=MIB)) as spool:
        small = [written(path.with_name(f"{number}.pt"), MIB) for number in range(3)]
        jobs = [spool.take(each) for each in small]
        assert [leases(each) for each in small] == [["ACTIVE"], ["ACTIVE"], []]
        touch(small[0])
        assert spool.read(jobs[0]) == content(MIB)
        pinned(spool, path)
        assert leases(path) == ["ACTIVE"]


def test_who_waits_for_nothing_is_refused_once(waiting: Spool, path: Path) -> None:
    """O_NONBLOCK: the next time there is no lease, and what he writes is found."""
    job = pinned(waiting, path)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_RDWR | os.O_NONBLOCK)
    assert waiting.pins.give_way()
    assert waiting.read(job) == content()
    file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    WRITES["by mmap"](file)
    os.close(file)
    os.utime(path)
    refused(Code.SOURCE_CHANGED, lambda: waiting.read(job))


def test_without_a_lease_it_is_an_alarm(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than may be leased, or one that somebody has open: safe, as ever."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    with later_spool(tmp_path / "spool", leasing(most=1)) as spool:
        unleased = list[Job]()
        with written(path.with_name("open.pt")).open("r+b") as file:
            unleased.append(spool.take(Path(file.name)))
        leased = spool.take(written(path))
        unleased.append(spool.take(written(path.with_name("one-more.pt"))))
        for job in (leased, *unleased):
            touch(Path(job.pin.source))
        assert spool.read(leased) == content()
        for job in unleased:
            refused(Code.SOURCE_CHANGED, lambda job=job: spool.read(job))
        spool.pins.release(leased.pin, leased.id)
        next_one = spool.take(written(path.with_name("next.pt")))
        touch(Path(next_one.pin.source))
        assert spool.read(next_one) == content()


def test_a_lease_that_the_kernel_took_is_not_taken_for_a_file_on_another_disk(tmp_path: Path) -> None:
    """The first files of two disks have one inode number, and the list of locks names files by both."""
    ignore_lease_signals()
    kept = FileLeases(DescriptorBudget())
    with ext4(tmp_path / "one") as one, ext4(tmp_path / "two") as two:
        paths = [written(disk / "best.pt", MIB) for disk in (one, two)]
        assert paths[0].stat().st_ino == paths[1].stat().st_ino
        for file_id, path in enumerate(paths):
            with path.open("rb") as file:
                assert kept.take(file.fileno(), file_id) is None
        assert kept.stands(0)
        fcntl.fcntl(kept._held[0], fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert [kept.stands(file_id) for file_id in (0, 1)] == [False, True]
        kept.close()


def test_leases_are_the_first_to_go_without_descriptors(
    tmp_path: Path, path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is held open is worth more: where there is no room for it, all of them are given back."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    ignore_lease_signals()
    budget, held = DescriptorBudget(), [0]
    budget.count(lambda: held[0])
    witness = Witness(leases=FileLeases(budget, spare=True))
    spool = Spool(tmp_path / "spool", witness=witness, budget=budget)
    leased = pinned(spool, path)
    assert leases(path) == ["ACTIVE"]
    held[0] += budget.left(FOR_PINS)
    unleased = pinned(spool, elsewhere / "best.pt")
    assert unleased.pin.kind is PinKind.FD
    assert leases(path) == leases(elsewhere / "best.pt") == []
    refused(Code.RETRY_LATER, lambda: spool.take(elsewhere / "best.pt"))
    os.utime(path)
    assert spool.read(leased) == content()
    spool.pins.close()
    spool.slots.close()


def test_nobody_waits_for_what_needs_no_source(waiting: Spool, path: Path) -> None:
    """Read, failed, leased for its owner, let go, or watched no more: the lease is given back, and stays so."""
    before = open_descriptors()
    ends: dict[str, Callable[[Job], object]] = {
        "read": lambda job: waiting.pins.done_reading(job.id),
        "failed": lambda job: waiting.pins.note_failed(job.pin, job.id),
        "handed over twice": lambda job: waiting.pins.pass_on(job.id, 99),
        "released": lambda job: waiting.pins.release(job.pin, job.id),
        "gone": lambda job: (path.unlink(), waiting.pins.release(job.pin, job.id)),
    }
    for what, end in ends.items():
        job = pinned(waiting, path)
        assert leases(path) == ["ACTIVE"], what
        with path.open("rb") as file:
            end(job)
            assert leases(Path(f"/proc/self/fd/{file.fileno()}")) == [], what
        if what in ("read", "failed"):
            os.utime(path)
            assert waiting.pins.retimed(job, LATER_MS) is not None
            assert waiting.read(job) == content()
            assert leases(path) == [], what
        waiting.pins.release(job.pin, job.id)
    job = pinned(waiting, path)
    assert waiting.pins.lease(job) is None
    assert leases(path) == ["ACTIVE"]  # its owner's
    waiting.pins.close()
    assert open_descriptors() <= before


def test_one_that_is_touched_while_it_is_copied(waiting: Spool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, or before the answer; then it is leased for as long as the copy takes, however small it is."""
    copy_range = cloning.copy_range

    def touch_after(*arguments: object) -> None:
        copy_range(*arguments)  # type: ignore[arg-type]
        touch(path)

    job = pinned(waiting, path)
    monkeypatch.setattr(spool_copies, "copy_range", touch_after)
    assert waiting.read(replace(job, pin=waiting.pins.copy(job))) == content()
    waiting.pins.release(job.pin, job.id)
    assert waiting.read(waiting.take(path, Protection.COPY)) == content()
    assert leases(path) == []


# ---- the next daemon


@pytest.mark.parametrize("state", [State.QUEUED, State.SENDING])
def test_the_next_daemon_watches_what_it_finds_as_it_was(spool: Spool, path: Path, state: State) -> None:
    job = replace(pinned(spool, path), state=state)
    spool.pins.close()
    with later_spool(spool.folder, leasing()) as later:
        assert later.pins.sweep([job]) == 0
        assert leases(path) == ["ACTIVE"]
        touch(path)
        assert later.read(job) == content()
        with at_the_door(later, lambda: meddled(path, WRITES["by mmap"])):
            pass
        os.utime(path)
        refused(Code.SOURCE_CHANGED, lambda: later.read(job))


def test_the_next_daemon_holds_what_the_last_one_held(spool: Spool, elsewhere: Path) -> None:
    """It is opened by its path once, soon after the start, and neither removed from then on nor touched in vain."""
    gone, kept = pinned(spool, elsewhere / "gone.pt"), pinned(spool, elsewhere / "kept.pt")
    assert (gone.pin.kind, kept.pin.kind) == (PinKind.FD, PinKind.FD)
    spool.pins.close()
    (elsewhere / "gone.pt").unlink()
    before = open_descriptors()
    with later_spool(spool.folder, leasing()) as later:
        later.pins.sweep([gone, kept])
        for job in (gone, kept, kept):
            later.pins.hold_again(job)
        assert leases(elsewhere / "kept.pt") == ["ACTIVE"]
        touch(elsewhere / "kept.pt")
        (elsewhere / "kept.pt").unlink()
        assert later.read(kept) == content()
        refused(Code.SOURCE_LOST, lambda: later.read(gone))
        later.pins.release(kept.pin, kept.id)
    assert open_descriptors() <= before


def test_the_next_daemon_vouches_for_nothing_that_came_before_it(spool: Spool, path: Path) -> None:
    """Written to and given its old time back, so that ctime alone tells; open to somebody; read before; or gone."""
    jobs = [pinned(spool, path.with_name(name)) for name in ("touched", "written", "open", "read", "gone")]
    at = {Path(job.pin.source).name: Path(job.pin.source) for job in jobs}
    spool.pins.close()
    os.utime(at["touched"])
    was = at["written"].stat()
    meddled(at["written"], WRITES["by mmap"])
    os.utime(at["written"], ns=(was.st_atime_ns, was.st_mtime_ns))
    (spool.folder / jobs[-1].pin.name).unlink()
    with at["open"].open("r+b"), later_spool(spool.folder, leasing()) as later:
        later.pins.sweep([replace(job, state=State.VERIFIED) if "read" in job.pin.source else job for job in jobs])
        assert [name for name, path in at.items() if leases(path)] == []
        for job in jobs[:3]:
            os.utime(job.pin.source)
            refused(Code.SOURCE_CHANGED, lambda job=job: later.read(job))
