"""What happens to a source, at every stage of its way, for every pin: right bytes or SOURCE_CHANGED, never a mixture.

At each stage the daemon is stopped, so that what is done to the file is done just there.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
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
from tests.doubles.meddling import BY_COMMAND, CHANGES, HARMLESS, Meddling
from tests.edge.pin_rig import leases
from tests.harness import PREFIX, DaemonProcess, Folder, away, eventually, file_sha256, make_file

MIB = 1 << 20
KIB = 1 << 10

pytestmark = pytest.mark.slow

READING = "upload.before_part"
"""Where the first of three parts is read, and the last is not."""
UNREAD = ("accept.journaled", "upload.before_begin", "upload.after_part")
"""Where the daemon has yet to read the source, or to look whether what it read was one content."""
READ = ("upload.before_completing", "upload.before_complete", "upload.after_complete", "finish.before_release")
"""From the last but one on the journal says COMPLETING, then VERIFIED and DONE."""
COPYING = ("copies.copied", "copies.before_repin", "copies.after_repin")
"""Before and after its copy takes its place."""
OF_ITS_OWN = ("accept.journaled", "upload.after_part", "finish.before_release")
"""Enough for pins that nobody else can reach."""
PART = 5 * MIB
"""S3's smallest: the stages are the same, and the disk has a third to do."""
LEASED = "[spool]\ncopy_below = 0\n"
"""Copies in the background protect what is small: without them the pins show what they are worth. What is not copied is
leased until it is read."""
NO_COPIES = f"{LEASED}touch_leases = 0\n"
"""Nor are there leases: a stopped daemon would keep a writer waiting, and what he does would come at no known stage."""
STAGES = {
    "link": UNREAD + READ,
    "fd": UNREAD + READ,
    "reflink": OF_ITS_OWN,
    "copy": ("accept.journaled", "local.adopted", "finish.before_release"),  # the store takes it as it is
    "inline": ("accept.journaled", "single.before_put", "finish.before_catalog"),
}


@dataclass
class Ground:
    """A daemon that hangs at a stage, and where the files are that it pins in one way."""

    daemon: DaemonProcess
    folder: Path
    size: int
    pin: str
    options: dict[str, Any]
    leased: bool | None = False
    """Whether its files are, at that stage: who opens one to write waits until the daemon goes on. None: it depends."""

    def meddle(self, exp: Experiment, name: str, change: Meddling) -> tuple[dict[str, Any], str, Code | None]:
        """Hands a file over, does that to it at the stage, and returns its record, its first SHA-256, and its end."""
        path = self.folder / name
        sha256 = make_file(path, self.size, seed=len(name))
        with ThreadPoolExecutor(2) as trainer, path.open("rb") as file, self.going_on():
            trained = trainer.submit(self._train, exp, path, name)
            self.daemon.wait_until_hung()
            place = Path(f"/proc/self/fd/{file.fileno()}")
            assert self.leased in (None, leases(place) == ["ACTIVE"])
            changed = trainer.submit(change, path)
            eventually(lambda: changed.done() or leases(place) == ["BREAKING"])
            self.daemon.let_go_until(lambda: trained.done() and changed.done())
            changed.result()
            record, ended = trained.result()
        for left in self.folder.glob(f"{name}*"):
            left.unlink()
        return record, sha256, ended

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Where the test fails in here, nobody waits for a daemon that hangs."""
        try:
            yield
        except BaseException:
            self.daemon.kill()
            raise

    def write_through(
        self, exp: Experiment, name: str, *, dirty: bool
    ) -> tuple[dict[str, Any], list[str], Code | None]:
        """Hands a file over that is mapped already, and writes to two places of it each time that the daemon stops.

        `dirty`: once, to pages that were written to just before, so that it moves no time until they are synced.
        Returns its record, the SHA-256 of every content that it had, and its end.
        """
        path = self.folder / name
        make_file(path, self.size, seed=len(name))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping, ThreadPoolExecutor(1) as trainer:
            contents: list[str] = []

            def write() -> None:
                for place in (min(self.size, PART) - 1, -1):
                    mapping[place] = (mapping[place] + 1) % 256
                contents.append(hashlib.sha256(mapping).hexdigest())

            if dirty:
                write()
            else:
                contents.append(hashlib.sha256(mapping).hexdigest())
            trained = trainer.submit(self._train, exp, path, name)
            self.daemon.wait_until_hung()

            def done() -> bool:
                if self.daemon.hangs() and not (dirty and len(contents) > 1):
                    write()
                return trained.done()

            self.daemon.let_go_until(done)
            record, ended = trained.result()
            write()  # once it is over, it is nobody's business
        path.unlink()
        return record, contents, ended

    def _train(self, exp: Experiment, path: Path, name: str) -> tuple[dict[str, Any], Code | None]:
        result = exp.files.upload(path, to=name, **self.options)
        assert result["pin"] == self.pin
        try:
            result.wait(60)
        except MLDashError as failure:
            return dict(dict.items(result.refresh())), failure.code
        return dict(result), None


@contextmanager
def ground(tmp_path: Path, pin: str, stage: str, settings: str = NO_COPIES) -> Iterator[Ground]:
    size = 40 * KIB if pin == "inline" else 2 * PART + MIB if stage == READING else PART + MIB  # three parts, or two
    options = {"snapshot": "copy"} if pin == "copy" else {}
    if pin == "reflink":
        with (
            with_reflinks(tmp_path / "disk") as disk,
            hanging(disk / "daemon", tmp_path / "store", stage, settings) as daemon,
        ):
            yield Ground(daemon, disk, size, pin, options)
    elif pin == "fd":
        with (
            ext4(tmp_path / "disk") as disk,
            hanging(tmp_path / "daemon", tmp_path / "store", stage, settings) as daemon,
        ):
            yield Ground(daemon, disk, size, pin, options)
    else:
        with hanging(tmp_path / "daemon", tmp_path / "store", stage, settings) as daemon:
            yield Ground(daemon, tmp_path, size, pin, options)


@contextmanager
def hanging(folder: Path, store: Path, stage: str, settings: str = NO_COPIES) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(folder, Folder(store), settings=f"part_size = {PART}\n{settings}")
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


@pytest.mark.parametrize(
    ("pin", "stage"),
    [("link", "accept.journaled"), ("fd", "upload.before_begin"), ("link", "upload.after_part"), ("fd", READ[1])],
)
def test_a_source_that_is_leased_until_it_is_read(tmp_path: Path, pin: str, stage: str) -> None:
    """Then the command touch is harmless, too. Who writes waits until the daemon goes on, and makes no mixture."""
    with ground(tmp_path, pin, stage, LEASED) as here, here.daemon.experiment().run as exp:
        here.leased = stage in UNREAD
        for what, change in (HARMLESS | BY_COMMAND | CHANGES).items():
            record, sha256, ended = here.meddle(exp, what, change)
            if ended is None:
                assert record["checksum"] == sha256, what
                assert stored(here.daemon, record) == sha256, what
            else:
                assert ended is Code.SOURCE_CHANGED, what
                assert what in CHANGES
                assert here.leased
        here.daemon.let_go_until(lambda: True)
        assert here.daemon.store.open_uploads() == []


def test_what_is_read_in_one_request_is_leased_no_more(tmp_path: Path) -> None:
    """However long the catalog takes: whoever opens it to write waits for nobody."""
    with hanging(tmp_path / "daemon", tmp_path / "store", "finish.before_catalog", LEASED) as daemon:
        make_file(tmp_path / "a.bin", MIB)
        with daemon.experiment().run as exp:
            result = exp.files.upload(tmp_path / "a.bin")
            daemon.wait_until_hung()
            assert leases(tmp_path / "a.bin") == []
            (tmp_path / "a.bin").write_bytes(b"the next epoch")
            daemon.resume()
            result.wait(60)


@pytest.mark.parametrize("stage", [*UNREAD, *READ])
@pytest.mark.parametrize("pin", ["link", "fd"])
def test_whatever_happens_to_a_source_by_default(tmp_path: Path, pin: str, stage: str, full_size: bool) -> None:
    """With copies in the background, which come or do not come in time: the right bytes, or SOURCE_CHANGED."""
    short = pin == "link" and stage in ("accept.journaled", "upload.after_part", "upload.before_complete")
    events = CHANGES | HARMLESS if full_size or short else {what: CHANGES[what] for what in ("overwritten",)}
    with ground(tmp_path, pin, stage, settings="") as here, here.daemon.experiment().run as exp:
        here.leased = None
        for what, change in events.items():
            record, sha256, ended = here.meddle(exp, what, change)
            if ended is not None:
                assert ended is Code.SOURCE_CHANGED, what
                assert what in CHANGES
                assert stage in UNREAD
                assert record["pin"] == pin, "a copy is what no write reaches"
            else:
                assert record["checksum"] == sha256, what
                assert stored(here.daemon, record) == sha256, what
        here.daemon.let_go_until(lambda: True)
        assert here.daemon.store.open_uploads() == []


@pytest.mark.parametrize("stage", COPYING)
@pytest.mark.parametrize("pin", ["link", "fd"])
def test_whatever_happens_to_a_source_while_it_is_copied(tmp_path: Path, pin: str, stage: str) -> None:
    """The store is away meanwhile. Once there is a copy, every file is stored as it was handed over."""
    events = CHANGES | HARMLESS
    with ground(tmp_path, pin, stage, "[spool]\ntouch_leases = 0\n") as here, here.daemon.experiment().run as exp:
        assert isinstance(here.daemon.store, Folder)
        gate = here.daemon.store.root / PREFIX.partition("/")[0]
        gate.touch()  # the store can make no folder there
        expected = {what: make_file(here.folder / what, MIB, seed) for seed, what in enumerate(events)}
        with ThreadPoolExecutor(1) as trainer:
            handed = trainer.submit(lambda: [exp.files.upload(here.folder / what, to=what) for what in events])
            for what, change in events.items():  # they are copied in the order in which they came
                here.daemon.wait_until_hung()
                change(here.folder / what)
                here.daemon.resume()
            results = handed.result(60)
        assert {result["pin"] for result in results} == {pin}
        gate.unlink()
        exp.files.save_text("x", to="first.txt").wait(60)  # once it is stored the others are not kept waiting
        for what, result in zip(events, results, strict=True):
            ended = attempt_to_wait(result)
            if ended is None:
                assert result["checksum"] == expected[what]
                assert stored(here.daemon, dict(result)) == expected[what]
            else:
                assert ended is Code.SOURCE_CHANGED, what
                assert what in CHANGES
                assert stage != "copies.after_repin"
        eventually(lambda: here.daemon.spool() == [])


def stored(daemon: DaemonProcess, record: dict[str, Any]) -> str:
    assert isinstance(daemon.store, Folder)
    return file_sha256(daemon.store.root / daemon.store.key_of(record))


@pytest.mark.parametrize("where", [0, -1], ids=["what was read", "the last byte"])
def test_a_write_that_moves_no_time_makes_no_mixture(tmp_path: Path, where: int) -> None:
    """On a file system in memory no write through a mapping ever shows, and this one was made before the hand-off."""
    with (
        tmpfs(tmp_path / "disk", 64 * MIB) as disk,
        hanging(tmp_path / "daemon", tmp_path / "store", READING) as daemon,
    ):
        path = disk / "a.bin"
        before = make_file(path, PART + MIB)
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


@pytest.mark.parametrize(("pin", "stage"), [("link", READING), ("fd", READING), *CASES], ids=lambda value: value)
def test_a_mapping_from_before_the_hand_off(tmp_path: Path, pin: str, stage: str) -> None:
    """What it writes at the stage, and each time after it, is in the object as a whole, or not at all."""
    with ground(tmp_path, pin, stage) as here, here.daemon.experiment().run as exp:
        for dirty in (False, True):
            record, contents, ended = here.write_through(exp, f"dirty-{dirty}.bin", dirty=dirty)
            assert len(contents) > 1
            if ended is not None:
                assert ended is Code.SOURCE_CHANGED
                assert pin in ("link", "fd")
                assert dirty or stage in (READING, *UNREAD)
                continue
            assert stored(here.daemon, record) == record["checksum"]
            unread = pin in ("link", "fd") and stage in (READING, *UNREAD)
            assert record["checksum"] in (contents if unread else contents[:1])
            assert dirty or not unread
        here.daemon.let_go_until(lambda: True)
        assert here.daemon.store.open_uploads() == []


def test_a_file_that_was_touched_is_known_to_the_next_daemon(tmp_path: Path, elsewhere: Path) -> None:
    """The store is away meanwhile; the daemon is killed, and nobody can say any more that nothing was written."""
    path, linked = elsewhere / "a.bin", tmp_path / "b.bin"
    sha256 = make_file(path, MIB)
    make_file(linked, MIB)
    with away(tmp_path, "copy_below = 0\n") as (daemon, gate), daemon.experiment().run as exp:
        later = exp.files.upload(linked)
        result = exp.files.upload(path)
        assert (later["pin"], result["pin"]) == ("link", "fd")
        os.utime(path, ns=(1, 1))
        eventually(lambda: (1,) in daemon.rows("SELECT mtime_ns FROM files"))
        daemon.kill()
        daemon.start()
        eventually(lambda: leases(path) == leases(linked) == ["ACTIVE"])  # they are watched again, beside all else
        for options in ([], [], ["-c"]):  # both are watched by the next one, too
            subprocess.run(["touch", *options, linked, path], check=True)
        path.unlink()
        gate.unlink()
        later.wait(60)
        result.wait(60)
        assert stored(daemon, dict(result)) == sha256


def attempt_to_wait(result: FileResult) -> Code | None:
    """The code of the error that ends it; None where it is stored."""
    try:
        result.wait(60)
    except MLDashError as failure:
        return failure.code
    return None
