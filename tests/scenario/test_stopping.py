"""SIGTERM: nothing is lost, it takes no longer than drain_timeout, and what was under way goes on at the next start."""

from __future__ import annotations

import os
import secrets
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from ml_dash import messages as m
from tests.doubles.counting_proxy import CountingProxy
from tests.doubles.raw_client import RawClient
from tests.harness import PREFIX, Bucket, DaemonProcess, Folder, assert_whole, eventually, make_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 40 * MIB + 5


def daemon_at(tmp_path: Path, store: Folder | Bucket, drain_timeout: float) -> DaemonProcess:
    return DaemonProcess(tmp_path / "daemon", store, daemon_settings=f"drain_timeout = {drain_timeout}")


def assert_ended_well(daemon: DaemonProcess) -> None:
    """Journal and catalog are whole and closed, the socket is gone, and the log tells of no defect."""
    assert not daemon.socket.exists()
    for name in ("journal", "catalog"):
        with closing(sqlite3.connect(daemon.state / f"{name}.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert sorted(path.name for path in daemon.state.glob("*.sqlite-*")) == []
    assert "Traceback" not in daemon.log()
    assert "never retrieved" not in daemon.log()
    assert daemon.log().rstrip().endswith("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_has_nothing_to_do_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with (
        daemon_at(tmp_path, Folder(tmp_path / "store"), 30) as daemon,
        RawClient(daemon.socket).greet() as idle,
        RawClient(daemon.socket) as silent,
    ):
        assert daemon.process is not None
        began = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert idle.replies() == silent.replies() == []
        assert_ended_well(daemon)
        daemon.start()
        with RawClient(daemon.socket).greet():
            assert daemon.stop() == 0


def test_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    with daemon_at(tmp_path, Folder(tmp_path / "store"), 30) as daemon:
        assert daemon.process is not None
        for _ in range(5):
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(20) == 0
        assert_ended_well(daemon)


def test_every_acknowledged_file_of_a_burst_is_stored_by_the_next_daemon(tmp_path: Path) -> None:
    """SIGTERM in the middle of a burst of hand-offs, with no time to drain."""
    expected = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", 70_000 + number, number) for number in range(60)}
    with daemon_at(tmp_path, Folder(tmp_path / "store"), 0) as daemon:
        with daemon.experiment().run as exp:
            for name in expected:
                exp.files.upload(tmp_path / name, to=name)
        assert daemon.stop() == 0
        assert_ended_well(daemon)
        assert len(daemon.rows("SELECT id FROM files")) == len(expected)
        daemon.start()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=30)
            assert_whole(daemon, exp, expected)


def test_who_waits_for_a_file_does_not_hold_the_stop_up(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    gate = store.root / PREFIX.partition("/")[0]
    expected = make_file(tmp_path / "best.pt", 70_000)
    with daemon_at(tmp_path, store, 1) as daemon:
        gate.touch()  # the store can make no folder there: the file stays on its way
        with daemon.experiment(exit_wait=0).run as exp, RawClient(daemon.socket).greet() as waiting:
            exp.files.upload(tmp_path / "best.pt")
            wait = m.Wait(request=5, until="stored", timeout_ms=60_000, place=place_of(PREFIX))
            waiting.send(m.encode(wait))
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 10
            assert not any(isinstance(reply, m.Waited) and not reply.pending for reply in waiting.replies())
        assert_ended_well(daemon)
        gate.unlink()
        daemon.start()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=30)
            assert_whole(daemon, exp, {"best.pt": expected})


def test_an_upload_to_a_server_that_hangs_is_broken_off_after_drain_timeout_and_resumed(swift, tmp_path: Path) -> None:
    expected = make_file(tmp_path / "best.pt", SIZE)
    with CountingProxy(swift.endpoint) as proxy, daemon_at(tmp_path, Bucket(swift, proxy.endpoint), 1.5) as daemon:
        with daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "best.pt")
            assert proxy.wait_for_bytes(20 * MIB, 30)
            proxy.stall()
        began = time.monotonic()
        assert daemon.stop() == 0
        assert 1.5 <= time.monotonic() - began < 10
        assert_ended_well(daemon)
        ((state, upload),) = daemon.rows("SELECT state, upload_id FROM files")
        assert state == "SENDING"
        assert daemon.store.open_uploads() == [upload]
        assert daemon.store.keys() == []
        proxy.go_on()
        daemon.start()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"best.pt": expected})


def test_what_is_under_way_may_end_within_drain_timeout(swift, tmp_path: Path) -> None:
    """And the last checkpoint of a node that is taken away is still taken, and sent."""
    expected = make_file(tmp_path / "best.pt", SIZE)
    last = make_file(tmp_path / "last.pt", 70_000, seed=1)
    with CountingProxy(swift.endpoint) as proxy, daemon_at(tmp_path, Bucket(swift, proxy.endpoint), 60) as daemon:
        with daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "best.pt")
            assert proxy.wait_for_bytes(20 * MIB, 30)
            proxy.stall()
        assert daemon.process is not None
        began = time.monotonic()
        daemon.process.terminate()
        eventually(lambda: " stopping " in daemon.log())
        with daemon.experiment().run as exp:
            exp.files.upload(tmp_path / "last.pt")
        proxy.go_on()
        assert daemon.process.wait(50) == 0
        assert time.monotonic() - began < 50
        assert_ended_well(daemon)
        assert daemon.rows("SELECT state FROM files") == [("DONE",), ("DONE",)]
        assert not (daemon.state / "drain.json").exists()
        daemon.start()
        with daemon.experiment().run as exp:
            assert_whole(daemon, exp, {"best.pt": expected, "last.pt": last})


def test_nothing_new_is_begun_while_it_ends(swift, tmp_path: Path) -> None:
    """A hand-off that comes too late is refused or never answered; one that was answered is there."""
    make_file(tmp_path / "best.pt", SIZE)
    with CountingProxy(swift.endpoint) as proxy, daemon_at(tmp_path, Bucket(swift, proxy.endpoint), 1) as daemon:
        with daemon.experiment(exit_wait=0).run as exp, RawClient(daemon.socket).greet() as late:
            exp.files.upload(tmp_path / "best.pt")
            assert proxy.wait_for_bytes(20 * MIB, 30)
            proxy.stall()
            assert daemon.process is not None
            daemon.process.terminate()
            eventually(lambda: not daemon.socket.exists())
            place = place_of("alice/cv/late")
            late.send(
                m.encode(
                    m.Put(
                        request=9,
                        key=secrets.token_bytes(16),
                        file=m.Described(place=place, to="late.txt"),
                        content=b"",
                        sha256=bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
                    )
                )
            )
            answers = late.replies()
            assert daemon.process.wait(20) == 0
        accepted = sum(isinstance(answer, m.Accepted) for answer in answers)
        assert daemon.rows("SELECT count(*) FROM files WHERE experiment = 'late'") == [(accepted,)]


@pytest.mark.parametrize("how", ["upload", "save"])
def test_a_hand_off_that_the_stop_cuts_off_is_whole_when_it_is_asked_for_again(tmp_path: Path, how: str) -> None:
    """The journal is slow, as on a disk that is busy, and the daemon is stopped before it answers."""
    expected = make_file(tmp_path / "best.pt", 3 * MIB)
    file = m.Described(place=place_of(PREFIX), to="best.pt")
    key = secrets.token_bytes(16)

    def hand_over(client: RawClient) -> None:
        if how == "upload":
            message = m.Upload(request=2, key=key, file=file, source=str(tmp_path / "best.pt"))
            with (tmp_path / "best.pt").open("rb") as opened:
                client.send(m.encode(message, 1), [opened.fileno()])
            return
        slot = client.ask(m.SlotGranted, m.RequestSlot(request=1, size_bytes=3 * MIB)).slot
        os.pwrite(client.received[-1], (tmp_path / "best.pt").read_bytes(), 0)
        client.send(m.encode(m.CommitSlot(request=2, key=key, slot=slot, file=file, size_bytes=3 * MIB)))

    with daemon_at(tmp_path, Folder(tmp_path / "store"), 10) as daemon:
        with (
            RawClient(daemon.socket).greet() as client,
            closing(sqlite3.connect(daemon.state / "journal.sqlite", isolation_level=None)) as busy,
        ):
            busy.execute("BEGIN IMMEDIATE")
            hand_over(client)
            eventually(lambda: "accept.pinned" in daemon.faults_met())
            assert daemon.process is not None
            daemon.process.terminate()
            assert client.replies() == []
            busy.execute("ROLLBACK")
        assert daemon.process.wait(20) == 0
        daemon.start()
        with RawClient(daemon.socket).greet() as client:
            hand_over(client)
            assert isinstance(client.reply(), m.Accepted)
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=30)
            assert_whole(daemon, exp, {"best.pt": expected})


def place_of(prefix: str) -> m.Place:
    namespace, project, experiment = prefix.split("/")
    return m.Place(namespace=namespace, project=project, experiment=experiment)
