"""Rough treatment that a daemon meets on a node, and gets over by itself."""

from __future__ import annotations

import hashlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.doubles.disks import tmpfs
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, eventually, make_file

MIB = 1 << 20

pytestmark = pytest.mark.slow


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as process:
        yield process


@contextmanager
def descriptors_used_up(daemon: DaemonProcess) -> Iterator[None]:
    """Whatever the daemon opens meanwhile fails with EMFILE."""
    assert daemon.process is not None
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)


def test_another_program_locks_the_journal(daemon: DaemonProcess) -> None:
    """For a while a hand-off waits; nothing is lost, and everything goes on afterwards."""
    expected = {}
    with daemon.experiment().run as exp, closing(sqlite3.connect(daemon.state / "journal.sqlite")) as other:
        for number in range(4):
            content = bytes([number]) * MIB
            expected[f"{number}.bin"] = hashlib.sha256(content).hexdigest()
            exp.files.save_blob(content, to=f"{number}.bin")
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as trainer:
            late = trainer.submit(exp.files.save_text, "late", to="late.txt")
            eventually(late.running)
            other.rollback()
            late.result(30)
        expected["late.txt"] = hashlib.sha256(b"late").hexdigest()
        exp.files.flush(timeout=30)
        assert_whole(daemon, exp, expected)


def test_descriptors_run_out_before_a_source_is_synced(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The disk has said nothing: files are taken on, and none is given up or said to be on disk before it is."""
    digest = make_file(tmp_path / "a.bin", MIB)
    daemon.kill()
    daemon.start("accept.journaled=hang")
    assert isinstance(daemon.store, Folder)
    gate = daemon.store.root / PREFIX.partition("/")[0]
    gate.touch()  # nothing is stored yet
    with daemon.experiment().run as exp, ThreadPoolExecutor(1) as trainer:
        upload = trainer.submit(exp.files.upload, tmp_path / "a.bin")
        daemon.wait_until_hung()
        with descriptors_used_up(daemon):
            daemon.resume()
            result = upload.result(30)
            eventually(lambda: "not_on_disk" in daemon.log())
            assert result["ack"] == "memory"
            exp.files.save_text("taken", to="b.txt")
        eventually(lambda: result.refresh()["ack"] == "disk")
        assert daemon.status().error_code is None
        gate.unlink()
        exp.files.flush(timeout=60)
        expected = {"a.bin": digest, "b.txt": hashlib.sha256(b"taken").hexdigest()}
        assert_whole(daemon, exp, expected)
    assert "read_only" not in daemon.log()
    assert daemon.log().count("not_on_disk") == 1


def test_many_threads_save_at_once(daemon: DaemonProcess) -> None:
    """More than a process may write at once: each waits for its turn, none is turned away."""
    contents = {f"{number}.bin": bytes([number]) * (3 * MIB) for number in range(48)}
    with daemon.experiment().run as exp:
        with ThreadPoolExecutor(48) as threads:
            list(threads.map(lambda name: exp.files.save_blob(contents[name], to=name), contents))
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, {name: hashlib.sha256(each).hexdigest() for name, each in contents.items()})


def test_a_save_is_read_back_while_the_next_takes_its_slot(daemon: DaemonProcess, tmp_path: Path) -> None:
    """What a download reads from a slot counts only if nobody wrote into it meanwhile."""
    size = 48 * MIB
    with daemon.experiment().run as exp, ThreadPoolExecutor(1) as reader:
        for number in range(6):
            content = bytes([number + 1]) * size
            saved = exp.files.save_blob(content, to="a.bin")
            target = tmp_path / f"{number}.bin"
            reading = reader.submit(exp.files(file_id=saved["id"]).download, to=target)
            saved.wait(60)
            exp.files.save_blob(bytes([200]) * size, to="b.bin")
            reading.result(60)
            assert target.read_bytes() == content


def test_a_held_descriptor_is_never_said_to_be_on_disk(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "elsewhere", 8 * MIB) as elsewhere,
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon,
    ):
        make_file(elsewhere / "a.bin", MIB)
        with daemon.experiment().run as exp:
            result = exp.files.upload(elsewhere / "a.bin")
            assert (result["pin"], result["ack"]) == ("fd", "memory")
            on_disk = exp.files.upload(elsewhere / "a.bin", durability="disk")
            assert (on_disk["pin"], on_disk["ack"]) == ("copy", "disk")
            eventually(lambda: result.refresh()["state"] == "DONE" or result["ack"] == "disk")
            assert result["state"] == "DONE"


def test_a_download_that_is_broken_off_is_no_defect(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The daemon says nothing of it, and goes on."""
    make_file(tmp_path / "big.bin", 300 * MIB)
    with daemon.experiment().run as exp:
        exp.files.upload(tmp_path / "big.bin").wait(60)
        command = [sys.executable, "-m", "ml_dash.cli", "get", "big.bin", "--prefix", PREFIX, "--socket"]
        (tmp_path / "big.bin").unlink()
        (tmp_path / "big.bin").write_text("mine")
        getting = subprocess.Popen([*command, str(daemon.socket)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
        eventually(lambda: destination_of(getting.pid, tmp_path))
        getting.kill()
        getting.wait()
        eventually(lambda: daemon.status().connections <= 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["big.bin", "daemon", "store"]
    assert (tmp_path / "big.bin").read_text() == "mine"
    assert "ERROR" not in daemon.log()
    assert "Traceback" not in daemon.log()


def destination_of(pid: int, folder: Path) -> list[str]:
    """The files without a name that a process has open in a folder."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(path.readlink()))
    return [link for link in links if link.startswith(f"{folder}/#") and link.endswith("(deleted)")]


def test_a_tidied_store_is_made_again(daemon: DaemonProcess) -> None:
    store = daemon.store
    assert isinstance(store, Folder)
    with daemon.experiment().run as exp:
        exp.files.save_text("a", to="a.txt").wait(30)
        (store.root / ".ml-dash-tmp").rmdir()
        exp.files.save_text("b", to="b.txt").wait(30)
        exp.files.save_blob(bytes(20 * MIB), to="c.bin").wait(30)


def test_a_deletion_says_nothing_of_the_store(daemon: DaemonProcess) -> None:
    """It is no sign that what holds the other files up is mended."""
    store = daemon.store
    assert isinstance(store, Folder)
    (store.root / PREFIX.partition("/")[0]).touch()  # where the store has to make its folder
    with daemon.experiment().run as exp:
        doomed, other = (exp.files.save_text("x", to=f"{name}.txt") for name in ("doomed", "other"))
        eventually(lambda: len(daemon.status().blocked) == 2)
        exp.files(file_id=doomed["id"]).delete()
        eventually(lambda: "file_cancelled" in daemon.log())
        assert other.refresh()["state"] != "DONE"
        assert "store_mended" not in daemon.log()
        (store.root / PREFIX.partition("/")[0]).unlink()
        other.wait(60)
        eventually(lambda: "store_mended" in daemon.log())
