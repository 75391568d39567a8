"""kill -9 of the daemon at every durable step, and anywhere: the same object, one version, nothing left over."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from tests.doubles.archives import archive, unsealed
from tests.doubles.counting_proxy import CountingProxy
from tests.harness import (
    Bucket,
    DaemonProcess,
    Folder,
    StoreUnderTest,
    assert_whole,
    eventually,
    fault_points,
    make_file,
)

MIB = 1 << 20
SIZE = 40 * MIB + 5
PART = 5 * MIB
SMALL_PARTS = f"part_size = {PART}\n"
"""As small as S3 allows: three parts are a quarter of the bytes."""
CANCEL = "finish.before_cancelled"
RUNS = ("runs.before_commit", "runs.after_commit")
"""Of test_kill_rows.py."""
COPY = ("copies.copied", "copies.before_repin", "copies.after_repin")
LEASE = ("lease.copied", "lease.repinned")
SEAL = ("seal.written", "seal.done")
DUPLICATE = ("duplicate.before_copy", "duplicate.after_copy", "duplicate.before_verified")
DUPLICATE_IN_PARTS = (
    "duplicate.before_begin", "duplicate.after_begin", "duplicate.after_part", "duplicate.before_completing",
)  # fmt: skip
PRUNE = ("prune.before_delete", "prune.after_delete")
SETS = (
    "sets.before_journal", "sets.after_journal", "sets.before_deliver", "sets.after_deliver", "sets.after_forget",
    "sets.before_clean", "sets.after_clean", "sets.before_drop", "sets.after_drop",
    "prune.before_set", "prune.after_set",
)  # fmt: skip
"""What tests/crash/test_kill_sets.py kills it at."""
RECLAIM = ("reclaim.before_delete", "reclaim.after_delete", "reclaim.after_noted")
RECONCILE = ("reconcile.before_record", "reconcile.after_record")
SUPERSEDE = ("supersede.before_drop", "supersede.after_drop")
INBOX = ("inbox.adopted", "inbox.removed")
"""tests/scenario/test_inbox.py"""
ADOPT = ("local.before_adopt", "local.linked", "local.adopted")
"""tests/crash/test_kill_adoption.py"""
ELSEWHERE = (*INBOX, *ADOPT, *DUPLICATE, *DUPLICATE_IN_PARTS, *PRUNE, *RECLAIM, *RECONCILE, *SUPERSEDE, *SETS)
"""What tests/crash/test_kill_changes.py kills it at."""
RULES = {
    "rule 1": ("pin.before", "pin.after", "accept.pinned", "accept.journaled",
               "settle.before_sync", "settle.after_sync",
               "journal.before_commit", "journal.after_commit"),
    "rule 2": ("upload.before_begin", "upload.after_begin", "upload.before_part"),
    "rule 3": ("upload.after_part", "upload.part_journaled"),
    "rule 4": ("upload.before_completing", "upload.before_complete", "upload.after_complete"),
    "rule 5": ("single.before_put", "single.after_put", "upload.before_verified",
               "batch.before_verified",
               "local.before_rename", "local.after_rename"),
    "rule 6": ("finish.before_catalog", "finish.after_catalog", "catalog.before_commit", "catalog.after_commit"),
    "rule 7": ("finish.before_release",),
    "rule 8": ("finish.after_release", "finish.after_notify"),
}  # fmt: skip
"""The points on the two sides of each rule of DURABILITY.md."""
LOCAL_ONLY = "local."
NO_COPIES = "[spool]\ncopy_below = 0\n"
"""A source of which there is a copy may change as it likes: tests of what a change does go without."""
STARTUP_COMMITS = {"journal": 2}
"""Transactions that write, of the first start before the first file: the point of interest is a later one."""


def cases() -> list[Any]:
    """Every point of every rule, on a folder and on a real S3 server."""
    return [
        pytest.param(store, point, id=f"{rule}-{store}-{point}")
        for rule, points in RULES.items()
        for point in points
        for store in ("local", "swift")
        if store == "local" or not point.startswith(LOCAL_ONLY)
    ]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    if request.param == "local":
        return Folder(tmp_path / "store")
    return Bucket(request.getfixturevalue("swift"))


def test_every_point_in_the_code_belongs_to_a_rule() -> None:
    """The list is read from the code; each case below fails unless its point was met."""
    named = (point for points in RULES.values() for point in points)
    assert sorted([CANCEL, *COPY, *LEASE, *SEAL, *RUNS, *ELSEWHERE, *named]) == fault_points()


@pytest.mark.slow
@pytest.mark.parametrize(("store", "point"), cases(), indirect=["store"])
def test_killed_at_a_durable_step(store: StoreUnderTest, point: str, tmp_path: Path) -> None:
    hit = STARTUP_COMMITS.get(point.partition(".")[0], 0) + 1
    with DaemonProcess(tmp_path / "daemon", store, SMALL_PARTS, faults=f"{point}=kill@{hit}") as daemon:
        assert_stored(daemon, tmp_path)
        assert point in daemon.faults_met()


def assert_stored(daemon: DaemonProcess, folder: Path) -> None:
    """Files of three sizes are handed over, and all are stored, though the daemon ends once meanwhile.

    With SMALL_PARTS the largest goes in three.
    """
    expected = {
        "big.bin": make_file(folder / "big.bin", 2 * PART + 5),
        "small.bin": make_file(folder / "small.bin", MIB, seed=1),
        "tiny.bin": make_file(folder / "tiny.bin", 1000, seed=2),
    }
    with revived(daemon), daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(folder / name, to=name)
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["local", "swift"], indirect=True)
def test_killed_while_it_takes_a_file_back(store: StoreUnderTest, tmp_path: Path) -> None:
    make_file(tmp_path / "big.bin", SIZE)
    with DaemonProcess(tmp_path / "daemon", store, faults=f"upload.part_journaled=hang,{CANCEL}=kill") as daemon:
        with revived(daemon), daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "big.bin", to="big.bin")
            daemon.wait_until_hung()
            daemon.resume()
            exp.files("big.bin").delete()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert exp.files().list() == []
            eventually(lambda: daemon.spool() == [])  # nobody waits for a file that was taken back
            assert_whole(daemon, exp, {})
        assert CANCEL in daemon.faults_met()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["local", "swift"], indirect=True)
def test_a_source_that_was_changed_while_the_daemon_was_dead(store: StoreUnderTest, tmp_path: Path) -> None:
    """Its times were put back, so that nothing but the bytes tells: parts of two contents never make one object."""
    source = tmp_path / "big.bin"
    make_file(source, SIZE)
    before = source.stat()
    with DaemonProcess(tmp_path / "daemon", store, settings=NO_COPIES, faults="upload.part_journaled=kill@2") as daemon:
        with daemon.experiment().run as exp:
            exp.files.upload(source, to="big.bin")
        daemon.wait_for_death(30)
        with source.open("r+b") as file:
            for part in range(0, SIZE, 16 * MIB):  # whichever were sent
                file.seek(part)
                file.write(b"another head")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        daemon.start()
        with daemon.experiment().run as exp:
            (found,) = exp.files().list()
            with pytest.raises(MLDashError) as ended:
                found.wait(30)
            assert ended.value.code is Code.SOURCE_CHANGED
        assert store.keys() == []
        assert store.open_uploads() == []
        eventually(lambda: daemon.spool() == [])


@pytest.mark.slow
@pytest.mark.parametrize("point", COPY)
def test_killed_while_it_copies_a_source(point: str, tmp_path: Path) -> None:
    """What lies in the spool afterwards is one pin, and the file goes up from it."""
    source = tmp_path / "big.bin"
    sha256 = make_file(source, SIZE)
    store = Folder(tmp_path / "store")
    store.root.mkdir()
    gate = store.root / ".ml-dash-tmp"
    gate.touch()  # nothing can be sent while a plain file stands there
    with DaemonProcess(tmp_path / "daemon", store, faults=f"{point}=kill") as daemon:
        with revived(daemon), daemon.experiment().run as exp:
            exp.files.upload(source, to="big.bin")
        with daemon.experiment().run as exp:
            (result,) = exp.files().list()
            eventually(lambda: result.refresh()["pin"] == "copy" and len(daemon.spool()) == 1)
            source.write_bytes(b"overwritten")
            gate.unlink()
            result.wait(60)
            assert_whole(daemon, exp, {"big.bin": sha256})
        assert point in daemon.faults_met()


@pytest.mark.slow
@pytest.mark.parametrize("point", LEASE)
def test_killed_while_a_writer_waits(point: str, tmp_path: Path) -> None:
    """The kernel lets him go on. Once the journal has the copy, that is what is stored; before, the file fails."""
    source = tmp_path / "big.bin"
    sha256 = make_file(source, SIZE)
    store = Folder(tmp_path / "store")
    store.root.mkdir()
    gate = store.root / ".ml-dash-tmp"
    gate.touch()
    with DaemonProcess(tmp_path / "daemon", store, settings=NO_COPIES, faults=f"{point}=kill") as daemon:
        with revived(daemon), daemon.experiment().run as exp:
            result = exp.files.upload(source, to="big.bin", protect="lease")
            assert result["pin"] == "lease"
            source.write_bytes(b"overwritten")
        gate.unlink()
        with daemon.experiment().run as exp:
            (found,) = exp.files().list()
            if point == "lease.copied":
                with pytest.raises(MLDashError) as ended:
                    found.wait(60)
                assert ended.value.code is Code.SOURCE_CHANGED
            else:
                found.wait(60)
                assert_whole(daemon, exp, {"big.bin": sha256})
            eventually(lambda: daemon.spool() == [])
        assert source.read_bytes() == b"overwritten"
        assert point in daemon.faults_met()


@pytest.mark.slow
@pytest.mark.parametrize(("store", "size"), [("local", MIB), ("swift", SIZE)], indirect=["store"])
@pytest.mark.parametrize("point", SEAL)
def test_killed_while_it_puts_an_archive_right(store: StoreUnderTest, size: int, point: str, tmp_path: Path) -> None:
    """As often as it is killed there: what is stored is the archive with its checksums, and the SHA-256 is of that."""
    make_file(tmp_path / "big.bin", size)
    whole = archive({"data": (tmp_path / "big.bin").read_bytes(), "version": b"3"})
    bare = unsealed(whole)
    with DaemonProcess(tmp_path / "daemon", store, faults=f"{point}=kill") as daemon:
        with (
            revived(daemon),
            daemon.experiment().run as exp,
            exp.files.writing("model.pt", size_hint=len(bare), seal=True) as written,
        ):
            written.out.write(bare)
        daemon.kill()
        # A small one may be stored by now: then there is nothing left to be killed at.
        again = point == "seal.done" and daemon.rows("SELECT count(*) FROM files WHERE state <> 'DONE'") != [(0,)]
        daemon.start(faults=f"{point}=kill" if again else "")
        if again:
            with revived(daemon):
                pass
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"model.pt": hashlib.sha256(whole).hexdigest()})
            assert exp.files("model.pt").download(to=tmp_path / "back.pt")
        assert (tmp_path / "back.pt").read_bytes() == whole
        assert point in daemon.faults_met()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["local", "swift"], indirect=True)
@pytest.mark.parametrize(("size", "point"), [(MIB, "single.after_put"), (SIZE, "upload.after_complete")])
def test_a_stored_object_goes_with_its_file(store: StoreUnderTest, size: int, point: str, tmp_path: Path) -> None:
    """Killed when the store had it and the journal did not; then the source changed, and there was no way to tell."""
    make_file(tmp_path / "a.bin", size)
    with DaemonProcess(tmp_path / "daemon", store, settings=NO_COPIES, faults=f"{point}=kill") as daemon:
        with daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "a.bin")
        daemon.wait_for_death(30)
        assert len(store.keys()) == 1
        (tmp_path / "a.bin").write_bytes(b"another")
        daemon.start()
        with daemon.experiment().run as exp:
            (found,) = exp.files().list()
            eventually(lambda: found.refresh()["state"] in ("FAILED", "DONE"))
            kept = [store.key_of(found)] if found["state"] == "DONE" else []
            eventually(lambda: store.keys() == kept)  # a file has failed before its object is removed
            assert (found["state"] == "DONE") == (size == SIZE), "what was completed needs its source no more"


@contextmanager
def revived(daemon: DaemonProcess) -> Iterator[None]:
    """The operator's part: the daemon that dies in this block is started again before the block's end."""
    with ThreadPoolExecutor(1) as operator:
        done = operator.submit(lambda: (daemon.wait_for_death(30), daemon.start()))
        yield
        done.result()


@pytest.mark.slow
def test_killed_anywhere_it_sends_only_what_was_in_flight_again(swift, tmp_path: Path, full_size: bool) -> None:
    """Random moments of an upload; what the server is sent is counted on the way to it."""
    size, kills = (512 * MIB, 50) if full_size else (128 * MIB, 10)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    expected = {"big.bin": make_file(tmp_path / "big.bin", size)}
    with CountingProxy(swift.endpoint) as proxy:
        store = Bucket(swift, endpoint=proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "big.bin", to="big.bin")
            done = 0
            for _ in range(kills):
                proxy.wait_for_bytes(proxy.received + chance.randrange(48 * MIB), timeout=2)
                daemon.kill()
                done += 1
                daemon.start()
            exp.files.flush(timeout=120)
            assert_whole(daemon, exp, expected)
        in_flight = 4 * 16 * MIB
        assert proxy.received <= size + done * in_flight + 4 * MIB
