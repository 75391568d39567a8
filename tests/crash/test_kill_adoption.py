"""kill -9 while a local store takes a source's own file: it is in the spool, or in the store, or in both, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.test_kill_daemon import ADOPT, MIB, revived
from tests.harness import DaemonProcess, Folder, assert_whole, away, eventually, file_sha256, make_file

SIZE = 40 * MIB + 5
AFTERWARDS = ("upload.before_complete", "local.before_rename", "local.after_rename", "finish.before_release")


@contextmanager
def left_behind(folder: Path) -> Iterator[tuple[DaemonProcess, int]]:
    """A daemon that died with a slot which nobody will write to again, and the inode of that."""
    make_file(folder / "big.bin", SIZE)
    with away(folder) as (daemon, gate):
        with daemon.experiment().run as exp:
            exp.files.save_blob((folder / "big.bin").read_bytes(), to="big.bin")
        eventually(lambda: daemon.rows("SELECT on_disk FROM files") == [(1,)])
        daemon.kill()
        (daemon.folder / "faults").unlink(missing_ok=True)
        gate.unlink()
        ((slot,),) = daemon.rows("SELECT pin_name FROM files")
        yield daemon, (daemon.state / "spool" / "slots" / slot).stat().st_ino


@pytest.mark.slow
@pytest.mark.parametrize("point", [*ADOPT, *AFTERWARDS])
def test_killed_while_a_slot_becomes_an_object(point: str, tmp_path: Path) -> None:
    with left_behind(tmp_path) as (daemon, inode):
        daemon.start(faults=f"{point}=kill")
        with revived(daemon):
            pass
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"big.bin": file_sha256(tmp_path / "big.bin")})
            (record,) = exp.files().list()
        status = (Folder(tmp_path / "store").root / daemon.store.key_of(record)).stat()
        assert (status.st_ino, status.st_nlink) == (inode, 1), "the very file, and no name of it is left in the spool"
        assert oct(status.st_mode & 0o777) == "0o640"
        assert daemon.spool() == []
        assert {point, "settle.before_sync"} <= daemon.faults_met(), "the disk is asked of it as of a source, before"
