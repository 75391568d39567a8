"""SIGTERM to the daemon at every durable step, where commits are slow: what is on its way goes on at the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.test_kill_daemon import COPY, RULES, SIZE, SMALL_PARTS, STARTUP_COMMITS, assert_stored, revived
from tests.harness import DaemonProcess, Folder, assert_whole, away, make_file
from tests.prefork import FULL_SIZE

SLOW = "journal.before_commit=slow@*"
"""What was asked of the journal is not done yet when whoever asked is told to end."""
AT_ONCE = "drain_timeout = 0"
SOME = {
    "accept.pinned", "accept.journaled", "upload.after_begin", "upload.part_journaled", "upload.before_complete",
    "batch.before_verified", "finish.after_catalog", "finish.before_release",
}  # fmt: skip
"""`make long` takes all."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "point", [point for points in RULES.values() for point in points if FULL_SIZE or point in SOME]
)
def test_ended_at_a_durable_step(point: str, tmp_path: Path) -> None:
    hit = STARTUP_COMMITS.get(point.partition(".")[0], 0) + 1
    faults = f"{SLOW},{point}=end@{hit}"
    store = Folder(tmp_path / "store")
    with DaemonProcess(tmp_path / "daemon", store, SMALL_PARTS, AT_ONCE, faults=faults) as daemon:
        assert_stored(daemon, tmp_path)
        assert point in daemon.faults_met()


@pytest.mark.parametrize("point", COPY)
def test_ended_while_it_copies_a_source(point: str, tmp_path: Path) -> None:
    """Whichever of the two the journal names by then is there, and the other is not."""
    sha256 = make_file(tmp_path / "big.bin", SIZE)
    with away(tmp_path, "", f"{SLOW},{point}=end", AT_ONCE) as (daemon, gate):
        with revived(daemon), daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "big.bin", to="big.bin")
        ((pin,),) = daemon.rows("SELECT pin_name FROM files")
        assert daemon.spool() == [f"spool/{pin}"]
        gate.unlink()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"big.bin": sha256})
        assert point in daemon.faults_met()
