"""What happens to a source, at every stage of its way, for every pin: right bytes or SOURCE_CHANGED, never a mixture.

At each stage the daemon is stopped, so that what is done to the file is done just there.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from ml_dash.result import FileResult
from tests.doubles.disks import ext4, tmpfs, with_reflinks
from tests.doubles.meddling import CHANGES, HARMLESS, Meddling
from tests.harness import DaemonProcess, Folder, file_sha256, make_file

MIB = 1 << 20
KIB = 1 << 10

pytestmark = pytest.mark.slow

UNREAD = ("accept.journaled", "upload.before_begin", "upload.after_part")
"""Where the daemon has yet to read the source, or to look whether what it read was one content."""
READ = ("upload.before_completing", "finish.before_release")
OF_ITS_OWN = ("accept.journaled", "upload.after_part", "finish.before_release")
"""Enough for pins that nobody else can reach."""
STAGES = {
    "link": UNREAD + READ,
    "fd": UNREAD + READ,
    "reflink": OF_ITS_OWN,
    "copy": OF_ITS_OWN,
    "inline": ("accept.journaled", "upload.before_put", "finish.before_catalog"),
}


@dataclass
class Ground:
    """A daemon that hangs at a stage, and where the files are that it pins in one way."""

    daemon: DaemonProcess
    folder: Path
    size: int
    pin: str
    options: dict[str, Any]

    def meddle(self, exp: Experiment, name: str, change: Meddling) -> tuple[dict[str, Any], str, Code | None]:
        """Hands a file over, does that to it at the stage, and returns its record, its first SHA-256, and its end."""
        path = self.folder / name
        sha256 = make_file(path, self.size, seed=len(name))
        with ThreadPoolExecutor(1) as trainer:
            trained = trainer.submit(self._train, exp, path, name)
            self.daemon.wait_until_hung()
            change(path)
            self.daemon.let_go_until(trained.done)
            record, ended = trained.result()
        for left in self.folder.glob(f"{name}*"):
            left.unlink()
        return record, sha256, ended

    def _train(self, exp: Experiment, path: Path, name: str) -> tuple[dict[str, Any], Code | None]:
        result = exp.files.upload(path, to=name, **self.options)
        assert result["pin"] == self.pin
        try:
            result.wait(60)
        except MLDashError as failure:
            return dict(dict.items(result.refresh())), failure.code
        return dict(result), None


@contextmanager
def ground(tmp_path: Path, pin: str, stage: str) -> Iterator[Ground]:
    size = 40 * KIB if pin == "inline" else 17 * MIB  # two parts
    options = {"snapshot": "copy"} if pin == "copy" else {}
    if pin == "reflink":
        with with_reflinks(tmp_path / "disk") as disk, hanging(disk / "daemon", tmp_path / "store", stage) as daemon:
            yield Ground(daemon, disk, size, pin, options)
    elif pin == "fd":
        with (
            ext4(tmp_path / "disk") as disk,
            hanging(tmp_path / "daemon", tmp_path / "store", stage) as daemon,
        ):
            yield Ground(daemon, disk, size, pin, options)
    else:
        with hanging(tmp_path / "daemon", tmp_path / "store", stage) as daemon:
            yield Ground(daemon, tmp_path, size, pin, options)


@contextmanager
def hanging(folder: Path, store: Path, stage: str) -> Iterator[DaemonProcess]:
    """Without copies in the background, which protect what is small: they have tests of their own."""
    daemon = DaemonProcess(folder, Folder(store), settings="[spool]\ncopy_below = 0\n")
    try:
        daemon.start(faults=f"{stage}=hang@*")
        yield daemon
    finally:
        daemon.kill()


CASES = [(pin, stage) for pin, stages in STAGES.items() for stage in stages]


@pytest.mark.parametrize(("pin", "stage"), CASES, ids=lambda value: value)
def test_whatever_happens_to_a_source(tmp_path: Path, pin: str, stage: str) -> None:
    """A change that came before the whole was read fails the file; nothing else does, and no object is a mixture."""
    may_fail = pin in ("link", "fd") and stage in UNREAD
    with ground(tmp_path, pin, stage) as here, here.daemon.experiment().run as exp:
        for what, change in (CHANGES | HARMLESS).items():
            record, sha256, ended = here.meddle(exp, what, change)
            if may_fail and what in CHANGES:
                assert ended is Code.SOURCE_CHANGED, what
                assert record["state"] == "FAILED"
            else:
                assert ended is None, what
                assert record["checksum"] == sha256, what
                assert stored(here.daemon, record) == sha256, what
        done = [record for record in exp.files().list() if record["state"] == "DONE"]
        here.daemon.let_go_until(lambda: True)
        assert here.daemon.store.keys() == sorted(here.daemon.store.key_of(record) for record in done)
        assert here.daemon.store.open_uploads() == []


def stored(daemon: DaemonProcess, record: dict[str, Any]) -> str:
    assert isinstance(daemon.store, Folder)
    return file_sha256(daemon.store.root / daemon.store.key_of(record))


@pytest.mark.parametrize("where", [0, -1], ids=["what was read", "the last byte"])
def test_a_write_that_moves_no_time_makes_no_mixture(tmp_path: Path, where: int) -> None:
    """On a file system in memory no write through a mapping ever shows, and this one was made before the hand-off."""
    with tmpfs(tmp_path / "disk", 64 * MIB) as disk, hanging(tmp_path / "daemon", tmp_path / "store", STAGE) as daemon:
        path = disk / "a.bin"
        before = make_file(path, 17 * MIB)
        with (
            path.open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as mapping,
            daemon.experiment().run as exp,
            ThreadPoolExecutor(1) as trainer,
        ):
            result = exp.files.upload(path)
            assert result["pin"] == "fd"
            daemon.wait_until_hung()
            mapping[where] ^= 1
            after = hashlib.sha256(mapping).hexdigest()
            ended = trainer.submit(attempt_to_wait, result)
            daemon.let_go_until(ended.done)
            if ended.result() is None:
                assert stored(daemon, dict(result)) == result["checksum"]
                assert result["checksum"] in ((after,) if where == 0 else (before, after))
            else:
                assert ended.result() is Code.SOURCE_CHANGED
                assert daemon.store.keys() == []


STAGE = "upload.before_part"


def attempt_to_wait(result: FileResult) -> Code | None:
    """The code of the error that ends it; None where it is stored."""
    try:
        result.wait(60)
    except MLDashError as failure:
        return failure.code
    return None
