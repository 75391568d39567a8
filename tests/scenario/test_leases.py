"""`protect="lease"`: whoever opens a file to write that is on its way waits until the old bytes are copied."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.disks import ext4, tmpfs
from tests.doubles.meddling import CHANGES, HARMLESS
from tests.doubles.raw_client import RawClient
from tests.edge.pin_rig import leases
from tests.harness import (
    PREFIX,
    Bucket,
    DaemonProcess,
    Folder,
    StoreUnderTest,
    assert_whole,
    away,
    eventually,
    make_file,
)
from tests.scenario.shell import Shell

MIB = 1 << 20
SIZE = 17 * MIB
"""Two parts."""
NO_COPIES = "copy_below = 0\n"
"""Copies in the background would protect it, too, half a second later."""
F_SETSIG = 10

pytestmark = pytest.mark.slow


@contextmanager
def writing(path: Path, content: bytes = b"the next epoch") -> Iterator[Future[int]]:
    """Somebody who writes the file anew, from its first byte."""
    with ThreadPoolExecutor(1) as trainer:
        yield trainer.submit(path.write_bytes, content)


@pytest.mark.parametrize("disk", ["the spool's", "ext4", "tmpfs"])
def test_whatever_a_writer_does_the_old_bytes_are_stored(tmp_path: Path, disk: str) -> None:
    made = {"ext4": lambda: ext4(tmp_path / "disk"), "tmpfs": lambda: tmpfs(tmp_path / "disk", 300 * MIB)}
    events = CHANGES | HARMLESS
    with made.get(disk, lambda: nullcontext(tmp_path))() as folder, away(tmp_path, NO_COPIES) as (daemon, gate):
        expected = {what: make_file(folder / what, SIZE, seed) for seed, what in enumerate(events)}
        with daemon.experiment().run as exp:
            results = {what: exp.files.upload(folder / what, to=what, protect="lease") for what in events}
            for what, change in events.items():
                assert results[what]["pin"] == "lease", what
                change(folder / what)  # returns once it may go on
                held = "link" if disk == "the spool's" else "fd"
                now = results[what].refresh()["pin"]
                assert now == ("copy" if what in CHANGES else "lease" if what != "linked elsewhere" else now), what
                assert now in ("copy", "lease", held)
            gate.unlink()
            for what in events:
                results[what].wait(60)
            assert_whole(daemon, exp, expected)
        assert not [row for path in folder.iterdir() if path.is_file() for row in leases(path)]


STAGES = [
    ("local", "upload.before_begin"),
    ("local", "upload.after_part"),
    ("double", "upload.after_part"),
    ("local", "upload.before_completing"),
]


@pytest.mark.parametrize(("store", "stage"), STAGES)
def test_a_writer_waits_at_every_stage(tmp_path: Path, stage: str, store: str, request: pytest.FixtureRequest) -> None:
    """The daemon is stopped there, so the order is known: the writer first, then what the daemon does about it."""
    target: StoreUnderTest = Folder(tmp_path / "store")
    if store == "double":
        target = Bucket(request.getfixturevalue("s3_double"))
    path = tmp_path / "a.bin"
    sha256 = make_file(path, SIZE)
    daemon = DaemonProcess(tmp_path / "daemon", target, settings=f"[spool]\n{NO_COPIES}")
    try:
        daemon.start(faults=f"{stage}=hang")
        with daemon.experiment().run as exp:
            result = exp.files.upload(path, protect="lease")
            assert result["pin"] == "lease"
            daemon.wait_until_hung()
            with writing(path) as written:
                eventually(lambda: leases(path) == ["BREAKING"])
                assert not written.done()
                daemon.resume()
                written.result(30)
            result.wait(60)
            assert_whole(daemon, exp, {"a.bin": sha256})
            assert path.read_bytes() == b"the next epoch"
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_a_writer_goes_on_once_the_journal_has_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    sha256 = make_file(path, SIZE)
    with away(tmp_path, NO_COPIES) as (daemon, gate):
        daemon.kill()
        daemon.start(faults="lease.copied=hang,lease.repinned=hang")
        with daemon.experiment().run as exp, writing_later(path) as write:
            result = exp.files.upload(path, protect="lease")
            written = write()
            for _ in range(2):
                daemon.wait_until_hung()
                assert leases(path) == ["BREAKING"]
                assert not written.done()
                daemon.resume()
            written.result(30)
            assert result.refresh()["pin"] == "copy"
            result = eventually(lambda: result if result.refresh()["ack"] == "disk" else None)
            gate.unlink()
            result.wait(60)
            assert_whole(daemon, exp, {"a.bin": sha256})


@contextmanager
def writing_later(path: Path) -> Iterator[Callable[[], Future[int]]]:
    with ThreadPoolExecutor(1) as trainer:
        yield lambda: trainer.submit(path.write_bytes, b"the next epoch")


def test_where_no_lease_is_to_be_had_the_pin_says_so(tmp_path: Path) -> None:
    """And what is not stored, cancelled or given up keeps none: nobody waits for it."""
    with away(tmp_path, NO_COPIES + "lease_max_delay = 0.2\n") as (daemon, gate):
        for name in ("open", "mapped", "cancelled", "older", "newer"):
            make_file(tmp_path / name, MIB, seed=len(name))
        make_file(tmp_path / "large", 60 * MIB)
        make_file(tmp_path / "small", 1000)
        with daemon.experiment().run as exp:
            with (tmp_path / "open").open("ab"):
                assert exp.files.upload(tmp_path / "open", protect="lease")["pin"] == "link"
            with (tmp_path / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0):
                file.close()
                assert exp.files.upload(tmp_path / "mapped", protect="lease")["pin"] == "link"
            assert exp.files.upload(tmp_path / "large", protect="lease")["pin"] == "link"
            assert exp.files.upload(tmp_path / "small", protect="lease")["pin"] == "inline"
            assert exp.files.upload(tmp_path / "newer")["pin"] == "link"
            assert daemon.log().count("lease_not_taken") == 3
            assert daemon.log().count("somebody has it open to write") == 2
            with pytest.raises(MLDashError) as refused:
                exp.files.upload(tmp_path / "newer", protect="please")
            assert refused.value.code is Code.INVALID_ARGUMENT

            exp.files.upload(tmp_path / "cancelled", protect="lease")
            exp.files.upload(tmp_path / "older", to="last.pt", protect="lease")
            assert leases(tmp_path / "cancelled") == leases(tmp_path / "older") == ["ACTIVE"]
            exp.files("cancelled").delete()
            exp.files.upload(tmp_path / "newer", to="last.pt", supersede=True)
            gate.unlink()
            exp.files.flush(timeout=60)
            eventually(lambda: leases(tmp_path / "cancelled") == leases(tmp_path / "older") == [])


def test_without_room_for_a_copy_there_is_no_lease(tmp_path: Path) -> None:
    with away(tmp_path, NO_COPIES + f"quota = {30 * MIB}\n") as (daemon, _), daemon.experiment().run as exp:
        make_file(tmp_path / "a.bin", SIZE)
        assert exp.files.upload(tmp_path / "a.bin", protect="lease")["pin"] == "link"
        make_file(tmp_path / "b.bin", 10 * MIB)
        make_file(tmp_path / "c.bin", 10 * MIB)
        both = [exp.files.upload(tmp_path / name, protect="lease") for name in ("b.bin", "c.bin")]
        assert [each["pin"] for each in both] == ["lease", "lease"]
        for name in ("b.bin", "c.bin"):
            (tmp_path / name).write_bytes(b"the next epoch")
        assert [each.refresh()["pin"] for each in both] == ["copy", "link"], "half of the quota is left to savers"
        assert "lease_given_up" in daemon.log()


def test_a_client_has_no_signal_sent_to_the_daemon(tmp_path: Path) -> None:
    """The description that it passes is its own, too, with the signal that a broken lease sends."""
    with (
        tmpfs(tmp_path / "disk", 64 * MIB) as disk,  # a link would be opened by the daemon itself
        away(tmp_path, NO_COPIES) as (daemon, _),
        RawClient(daemon.socket).greet() as client,
    ):
        make_file(disk / "a.bin", SIZE)
        descriptor = os.open(disk / "a.bin", os.O_RDONLY)
        try:
            fcntl.fcntl(descriptor, F_SETSIG, signal.SIGKILL)
            place = m.Place(namespace="vision", project="cv", experiment="resnet")
            message = m.Upload(
                request=3,
                key=secrets.token_bytes(16),
                file=m.Described(place=place, to="a.bin"),
                source="/a.bin",
                protect="lease",
            )
            assert client.ask(m.Accepted, message, [descriptor]).record.pin == "lease"
            (disk / "a.bin").write_bytes(b"the next epoch")
            assert client.ask(m.Page, m.Get(request=4, ids=())).records == ()
        finally:
            os.close(descriptor)


def test_a_file_put_from_the_shell(tmp_path: Path) -> None:
    make_file(tmp_path / "a.bin", MIB)
    with away(tmp_path, NO_COPIES) as (daemon, _):
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        assert shell.json("put", "a.bin", "--prefix", PREFIX, "--protect", "lease")["pin"] == "lease"
