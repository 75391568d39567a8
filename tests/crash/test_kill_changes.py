"""kill -9 at every durable step of what is done to stored files: duplicates, pruning, bytes that are reclaimed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from tests.crash.test_kill_daemon import DUPLICATE, DUPLICATE_IN_PARTS, PRUNE, RECLAIM, RECONCILE, SUPERSEDE, revived
from tests.doubles.forgetting import forget
from tests.harness import Bucket, DaemonProcess, Folder, StoreUnderTest, assert_whole, eventually, make_file
from tests.scenario.shell import Shell

pytestmark = pytest.mark.slow

MIB = 1 << 20


def daemon_on(store: StoreUnderTest, tmp_path: Path, settings: str = "", faults: str = "") -> DaemonProcess:
    """One whose S3 server copies 16 MiB in one request."""
    daemon = DaemonProcess(tmp_path / "daemon", store, settings=settings, faults=faults)
    daemon.module = ["tests.doubles.small_copies"]
    return daemon


@pytest.mark.parametrize(
    ("kind", "size", "point"),
    [
        *(("local", MIB, point) for point in DUPLICATE),
        ("s3_double", MIB, "duplicate.after_copy"),
        *(("s3_double", 40 * MIB + 5, point) for point in DUPLICATE_IN_PARTS),
    ],
)
def test_killed_while_it_makes_a_duplicate(
    request: pytest.FixtureRequest, kind: str, size: int, point: str, tmp_path: Path
) -> None:
    store = Folder(tmp_path / "store") if kind == "local" else Bucket(request.getfixturevalue(kind))
    sha256 = make_file(tmp_path / "a.bin", size)
    with daemon_on(store, tmp_path) as daemon, daemon.experiment().run as exp:
        exp.files.upload(tmp_path / "a.bin").wait(60)
        daemon.kill()
        daemon.start(faults=f"{point}=kill")
        with revived(daemon):
            copy = exp.files.duplicate("a.bin", "b.bin")
        copy.wait(60)
        assert_whole(daemon, exp, {"a.bin": sha256, "b.bin": sha256})
        assert point in daemon.faults_met()


@pytest.mark.parametrize("point", PRUNE)
def test_killed_while_it_prunes(point: str, tmp_path: Path) -> None:
    """It is asked again by the client, which goes on where it was."""
    with daemon_on(Folder(tmp_path / "store"), tmp_path) as daemon, daemon.experiment().run as exp:
        saved = [exp.files.save_text(str(number), to="a.txt")["id"] for number in range(4)]
        exp.files.flush(60)
        daemon.kill()
        daemon.start(faults=f"{point}=kill")
        with revived(daemon):
            exp.files("a.txt").prune(keep_last=2)
        assert [one["id"] for one in exp.files().list()] == saved[:1:-1]
        assert point in daemon.faults_met()


@pytest.mark.parametrize("point", RECLAIM)
def test_killed_while_it_reclaims_bytes(point: str, tmp_path: Path) -> None:
    """What was not noted is removed once more, and what is not deleted is left alone."""
    store = Folder(tmp_path / "store")
    with daemon_on(store, tmp_path, "delete_grace = 0\n") as daemon, daemon.experiment().run as exp:
        kept = exp.files.save_text("kept", to="kept.txt").wait(60)
        for number in range(3):
            exp.files.save_text(str(number), to=f"{number}.txt")
        exp.files.flush(60)
        daemon.kill()
        daemon.start(faults=f"{point}=kill")
        with revived(daemon):
            exp.files().delete("[0-9].txt")
        eventually(lambda: store.keys() == [store.key_of(kept)])
        eventually(lambda: noted(daemon) == 3)
        assert exp.files("kept.txt").read_text() == "kept"
        assert point in daemon.faults_met()


@pytest.mark.parametrize("point", RECONCILE)
def test_killed_while_it_records_a_file_from_its_object(point: str, tmp_path: Path) -> None:
    """The command waits for the daemon, and goes on with the step at which it was."""
    store = Folder(tmp_path / "store")
    with daemon_on(store, tmp_path, "orphan_age = 3600\n") as daemon, daemon.experiment().run as exp:
        sha256 = exp.files.save_text("lost", to="a/lost.txt").wait(60)["checksum"]
        (key,) = store.keys()
        os.utime(store.root / key, (1, 1))
        daemon.kill()
        forget(daemon)
        daemon.start(faults=f"{point}=kill")
        with revived(daemon):
            Shell(tmp_path, ["--socket", str(daemon.socket)])("doctor", "--reconcile")
        assert_whole(daemon, exp, {"a/lost.txt": sha256})
        assert point in daemon.faults_met()


@pytest.mark.parametrize("kind", ["local", "s3_double"])
@pytest.mark.parametrize("point", ["accept.journaled", *SUPERSEDE, "finish.before_cancelled"])
def test_killed_while_a_version_gives_way(
    request: pytest.FixtureRequest, kind: str, point: str, tmp_path: Path
) -> None:
    """The older one is being sent in parts; whatever comes, the newer one is stored, and nothing else is left."""
    store = Folder(tmp_path / "store") if kind == "local" else Bucket(request.getfixturevalue(kind))
    make_file(tmp_path / "1.bin", 40 * MIB)
    newer = make_file(tmp_path / "2.bin", MIB, seed=2)
    hit = {"accept.journaled": "kill@2"}.get(point, "kill")
    slow = "[limits]\nbandwidth = 8388608\n"  # the older one is seconds from its end when its first part is sent
    faults = f"upload.part_journaled=hang,{point}={hit}"
    with daemon_on(store, tmp_path, slow, faults) as daemon, daemon.experiment().run as exp:
        with revived(daemon):
            old = exp.files.upload(tmp_path / "1.bin", to="last.bin")
            daemon.wait_until_hung()
            daemon.resume()
            new = exp.files.upload(tmp_path / "2.bin", to="last.bin", supersede=True)
        new.wait(60)
        with pytest.raises(MLDashError, match=new["id"]) as refused:
            old.wait(60)
        assert refused.value.code is Code.SUPERSEDED
        # Who waits is told when it is decided; what the store has of the older one goes after that.
        eventually(lambda: store.keys() == [store.key_of(new)] and store.open_uploads() == [])
        assert_whole(daemon, exp, {"last.bin": newer})
        assert point in daemon.faults_met()


def noted(daemon: DaemonProcess) -> Any:
    ((count,),) = daemon.rows("SELECT count(*) FROM files WHERE reclaimed_ms IS NOT NULL", "catalog")
    return count
