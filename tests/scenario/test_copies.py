"""Copies in the background: what is only linked or held soon has bytes of the daemon's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disks import tmpfs
from tests.harness import DaemonProcess, Folder, assert_whole, away, eventually, make_file

MIB = 1 << 20

pytestmark = pytest.mark.slow


def is_copied(result: Any) -> bool:
    return result.refresh()["pin"] == "copy"


@pytest.mark.parametrize("size", [MIB, 20 * MIB], ids=["one request", "parts"])
def test_a_linked_file_may_be_overwritten_once_it_is_copied(tmp_path: Path, size: int) -> None:
    sha256 = make_file(tmp_path / "a.bin", size)
    with away(tmp_path) as (daemon, gate), daemon.experiment().run as exp:
        result = exp.files.upload(tmp_path / "a.bin")
        assert result["pin"] == "link"
        eventually(lambda: is_copied(result))
        assert result["ack"] == "disk"
        (tmp_path / "a.bin").write_bytes(b"the next epoch")
        gate.unlink()
        result.wait(60)
        assert_whole(daemon, exp, {"a.bin": sha256})
    assert (tmp_path / "a.bin").read_bytes() == b"the next epoch"


def test_a_held_file_outlives_the_daemon_once_it_is_copied(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "elsewhere", 64 * MIB) as elsewhere, away(tmp_path) as (daemon, gate):
        sha256 = make_file(elsewhere / "a.bin", 20 * MIB)
        with daemon.experiment().run as exp:
            result = exp.files.upload(elsewhere / "a.bin")
            assert result["pin"] == "fd"
            (elsewhere / "a.bin").unlink()
            eventually(lambda: is_copied(result))
        daemon.kill()
        gate.unlink()
        daemon.start()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"a.bin": sha256})


def test_what_was_not_copied_before_a_restart_is_copied_after_it(tmp_path: Path) -> None:
    sha256 = make_file(tmp_path / "a.bin", 3 * MIB)
    with away(tmp_path) as (daemon, gate):
        with daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "a.bin")
        daemon.kill()
        daemon.start()
        with daemon.experiment().run as exp:
            (result,) = exp.files().list()
            eventually(lambda: is_copied(result))
            (tmp_path / "a.bin").write_bytes(b"another")
            gate.unlink()
            result.wait(60)
            assert_whole(daemon, exp, {"a.bin": sha256})


def test_a_large_file_is_copied_only_where_it_is_held_and_waits(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "elsewhere", 64 * MIB) as elsewhere,
        away(tmp_path, f"copy_below = {MIB}\ncopy_after = 0.1\n") as (daemon, gate),
        daemon.experiment().run as exp,
    ):
        expected = {
            "held.bin": make_file(elsewhere / "held.bin", 20 * MIB),
            "linked.bin": make_file(tmp_path / "linked.bin", 20 * MIB, seed=1),
        }
        linked = exp.files.upload(tmp_path / "linked.bin")
        held = exp.files.upload(elsewhere / "held.bin")
        eventually(lambda: is_copied(held))
        assert linked.refresh()["pin"] == "link"
        gate.unlink()
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


def test_without_room_a_file_goes_on_as_it_is_pinned(tmp_path: Path) -> None:
    sha256 = make_file(tmp_path / "a.bin", 3 * MIB)
    with away(tmp_path, f"quota = {2 * MIB}\n") as (daemon, gate), daemon.experiment().run as exp:
        result = exp.files.upload(tmp_path / "a.bin")
        eventually(lambda: "copy_postponed" in daemon.log())
        assert result.refresh()["pin"] == "link"
        gate.unlink()
        result.wait(60)
        assert_whole(daemon, exp, {"a.bin": sha256})


def test_an_upload_goes_on_from_the_copy(tmp_path: Path) -> None:
    """The first part was sent from the user's file, which is then overwritten; the second is sent from the copy."""
    sha256 = make_file(tmp_path / "a.bin", 20 * MIB)
    with away(tmp_path, faults="upload.part_journaled=error") as (daemon, gate), daemon.experiment().run as exp:
        gate.unlink()
        result = exp.files.upload(tmp_path / "a.bin")
        eventually(lambda: is_copied(result))
        assert result["state"] == "SENDING"
        assert daemon.rows("SELECT count(*) FROM parts") != [(0,)]
        (tmp_path / "a.bin").write_bytes(b"another")
        result.wait(60)
        assert_whole(daemon, exp, {"a.bin": sha256})


def test_a_file_that_changed_before_it_was_copied_says_so(tmp_path: Path) -> None:
    make_file(tmp_path / "a.bin", 3 * MIB)
    with away(tmp_path) as (daemon, gate), daemon.experiment().run as exp:
        result = exp.files.upload(tmp_path / "a.bin")
        (tmp_path / "a.bin").write_bytes(b"at once")
        eventually(lambda: result.refresh()["state"] == "FAILED")
        assert daemon.rows("SELECT error_code FROM files") == [("SOURCE_CHANGED",)]
        eventually(lambda: daemon.spool() == [])
        gate.unlink()
    assert daemon.store.keys() == []


def test_a_file_that_is_completed_has_a_copy_should_the_store_lose_its_upload(tmp_path: Path) -> None:
    """Its source is needed once more then, and may have been overwritten long since."""
    sha256 = make_file(tmp_path / "a.bin", 20 * MIB)
    with away(tmp_path) as (daemon, gate), daemon.experiment().run as exp:
        gate.unlink()
        namespace = gate.with_name("alice")
        namespace.touch()  # parts can be sent, and the object can't be made
        result = exp.files.upload(tmp_path / "a.bin")
        eventually(lambda: result.refresh()["state"] == "COMPLETING")
        eventually(lambda: is_copied(result))
        (tmp_path / "a.bin").write_bytes(b"another")
        for upload in gate.iterdir():
            upload.unlink()
        namespace.unlink()
        result.wait(60)
        assert_whole(daemon, exp, {"a.bin": sha256})


def test_copies_leave_half_of_the_quota_to_saves(tmp_path: Path) -> None:
    with away(tmp_path, f"quota = {8 * MIB}\n") as (daemon, gate), daemon.experiment(on_full="raise").run as exp:
        for number in range(3):
            make_file(tmp_path / f"{number}.bin", 3 * MIB, seed=number)
            exp.files.upload(tmp_path / f"{number}.bin")
        eventually(lambda: daemon.log().count("copy_postponed") == 2)
        assert [each["pin"] for each in exp.files.list()].count("copy") == 1
        exp.files.save_blob(bytes(4 * MIB), to="saved.bin")
        gate.unlink()
        exp.files.flush(timeout=60)
        assert len(daemon.store.keys()) == 4


def test_copies_leave_a_tenth_of_the_disk_to_others(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    store.root.mkdir()
    (store.root / ".ml-dash-tmp").touch()
    with (
        tmpfs(tmp_path / "disk", 100 * MIB) as disk,
        DaemonProcess(tmp_path / "daemon", store, state=disk / "state") as daemon,
        daemon.experiment().run as exp,
    ):
        for number in range(3):
            make_file(tmp_path / f"{number}.bin", 30 * MIB, seed=number)
            exp.files.upload(tmp_path / f"{number}.bin")
        eventually(lambda: "copy_postponed" in daemon.log())
        assert shutil.disk_usage(disk).free >= 10 * MIB
