"""A store whose disk is not mounted: files wait, nothing is written below, and nothing is taken for gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from tests.doubles.disks import Unplugged
from tests.doubles.http_client import HttpClient
from tests.harness import DaemonProcess, Folder, eventually, make_file
from tests.scenario.shell import Shell
from tests.scenario.test_roots import AS_ROOT

pytestmark = [pytest.mark.slow, AS_ROOT]

HURRIED = "reconcile_every = 0.2\n"
"""Whoever compares store and catalog so often does it while the disk is away, too."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Unplugged]:
    disk = Unplugged(tmp_path / "disk", tmp_path / "big")
    yield disk
    disk.umount()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """Not started yet."""
    listen = f'[http]\nlisten = "unix:{tmp_path}/http"\n'
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "big"), HURRIED + listen)
    yield daemon
    daemon.kill()


def test_after_a_reboot_without_its_disk(daemon: DaemonProcess, disk: Unplugged, tmp_path: Path) -> None:
    """It is ready for files and not ready to store them; all is as it was once the disk is there."""
    below, http = tmp_path / "big", HttpClient(tmp_path / "http")
    shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
    make_file(tmp_path / "large.bin", 17 << 20)
    disk.mount()
    daemon.start()
    with daemon.experiment().run as exp:
        exp.files.save_text("before", to="before.txt").wait(30)
    daemon.kill()
    disk.umount()

    daemon.start()
    reason = http.reasons()["store"]
    assert reason["code"] == "STORE_NOT_MOUNTED"
    assert f"{below} is not the folder that it was" in reason["message"]
    assert "mount the disk of store.url" in reason["hint"]
    with daemon.experiment(wait=False).run as exp:
        exp.metrics("train").log(loss=1.0)
        exp.files.save_text("small", to="small.txt")
        exp.files.upload(tmp_path / "large.bin")
        said = eventually(lambda: {one.error_code for one in daemon.status().blocked})
        assert said == {"STORE_NOT_MOUNTED"}
        assert "FILES WAIT TO BE STORED\n  STORE_NOT_MOUNTED: " in shell("status").out
        checks = {each["name"]: each for each in json.loads(shell("doctor", "--json", status=1).out)["checks"]}
        assert checks["hand-offs"]["verdict"] == "ok"
        assert (checks["store write"]["verdict"], checks["store write"]["hint"]) == ("bad", reason["hint"])
        assert shell.refused("doctor", "--reconcile", status=1)["code"] == "STORE_NOT_MOUNTED"
        eventually(lambda: "reconcile_postponed error=" in daemon.log())
        with pytest.raises(MLDashError) as refused:
            exp.files("before.txt").download(to=tmp_path / "back")
        assert refused.value.code is Code.STORE_NOT_MOUNTED
        assert list(below.iterdir()) == [], "nothing is written below the mount point"

        disk.mount()
        exp.files.flush(timeout=60)
        assert {each["filename"]: each["state"] for each in exp.files().list()} == {
            "before.txt": "DONE",
            "small.txt": "DONE",
            "large.bin": "DONE",
        }
        assert exp.files("before.txt").read_text() == "before"
        eventually(lambda: http.reasons() == {})
        assert shell.json("status")["error"] is None
    eventually(lambda: "reconciled " in daemon.log())
    assert "missing" not in daemon.log()
    assert len(daemon.store.keys()) == 3


def test_a_disk_that_goes_while_the_daemon_runs(daemon: DaemonProcess, disk: Unplugged, tmp_path: Path) -> None:
    disk.mount()
    daemon.start()
    with daemon.experiment(wait=False).run as exp:
        exp.files.save_text("before", to="before.txt").wait(30)
        disk.umount()
        exp.files.save_text("while", to="while.txt")
        eventually(lambda: {one.error_code for one in daemon.status().blocked} == {"STORE_NOT_MOUNTED"})
        assert list((tmp_path / "big").iterdir()) == []
        disk.mount()
        exp.files.flush(timeout=60)
    assert len(daemon.store.keys()) == 2


def test_daemons_that_share_a_folder_agree(disk: Unplugged, tmp_path: Path) -> None:
    """Both are new, and start at the same time: neither finds a mark that is another's."""
    store = Folder(tmp_path / "big")
    daemons = [DaemonProcess(tmp_path / name, store) for name in ("one", "two")]
    disk.mount()
    try:
        with ThreadPoolExecutor(2) as starting:
            list(starting.map(DaemonProcess.start, daemons))
        for number, daemon in enumerate(daemons):
            with daemon.experiment(f"alice/cv/{number}").run as exp:
                exp.files.save_text("x", to="a.txt").wait(30)
        assert len(store.keys()) == 2
    finally:
        for daemon in daemons:
            daemon.kill()
