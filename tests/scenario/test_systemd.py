"""What systemd is told, what it keeps, and what it passes: a service of Type=notify, with a double of PID 1."""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ml_dash import messages as m
from tests.doubles.raw_client import RawClient
from tests.doubles.systemd import ServiceManager, SupervisedDaemon
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, eventually, make_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 3 * MIB


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@ml-dash-{secrets.token_hex(8)}"
    with ServiceManager(address) as double:
        yield double


one_address = pytest.mark.parametrize("systemd", ["path"], indirect=True)


@pytest.fixture
def service(systemd: ServiceManager, tmp_path: Path) -> Iterator[SupervisedDaemon]:
    """Not started yet."""
    uncopied = "[spool]\ncopy_below = 0\ncopy_after = 3600.0\n"
    daemon = SupervisedDaemon(systemd, tmp_path / "daemon", Folder(tmp_path / "store"), uncopied)
    yield daemon
    daemon.__exit__()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While it is there the store can't make the experiment's folder: files stay on their way."""
    path = tmp_path / "store" / PREFIX.partition("/")[0]
    path.parent.mkdir()
    path.touch()
    return path


# ---- what it is told


def test_ready_comes_when_it_has_recovered_and_listens(systemd: ServiceManager, service: SupervisedDaemon) -> None:
    """Its journal is locked by another program: it has not recovered, and does not say that it has."""
    service.start()
    service.stop()
    seen = len(systemd.lines())
    with closing(sqlite3.connect(service.state / "journal.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        process = service.spawn()
        eventually(lambda: (service.state / "lock").exists() and "journal.sqlite" in _open_files(process.pid))
        assert systemd.lines()[seen:] == []
        other.execute("ROLLBACK")
    systemd.wait_for("READY=1", seen)
    with RawClient(service.socket).greet():
        assert "recovered" not in service.log()


def test_it_says_that_it_stops_and_how_long_that_may_take(systemd: ServiceManager, service: SupervisedDaemon) -> None:
    service.daemon_settings = "drain_timeout = 200.0"
    service.start()
    assert service.stop() == 0
    (message,) = [message for message in systemd.messages if "STOPPING=1" in message]
    allowed = next(int(line.partition("=")[2]) for line in message if line.startswith("EXTEND_TIMEOUT_USEC="))
    assert allowed > 200_000_000
    assert systemd.lines().index("READY=1") < systemd.lines().index("STOPPING=1")
    assert systemd.lines()[-1].startswith(("STATUS=", "EXTEND_TIMEOUT"))


@one_address
def test_its_status_says_what_is_on_its_way_and_what_holds_it_up(
    systemd: ServiceManager, service: SupervisedDaemon, tmp_path: Path
) -> None:
    """A bucket's endpoint where nobody listens, and whose address is in the message."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service.store.url, service.store.endpoint = "s3://bucket", f"http://127.0.0.1:{port}"
    service.environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "WATCHDOG_USEC": "500000"}
    service.start()
    systemd.wait_for("STATUS=nothing on its way")
    with service.experiment(wait=False).run as exp:
        for number in range(3):
            make_file(tmp_path / f"{number}.bin", SIZE, number)
            exp.files.upload(tmp_path / f"{number}.bin")
        said = systemd.wait_for("STATUS=3 files on their way, 9.4 MB; ")
        eventually(lambda: len(service.status().blocked) == 3)
        said = systemd.wait_for("STATUS=3 files on their way, 9.4 MB; 3 blocked: ")
        assert str(port) in said


@one_address
def test_the_watchdog_hears_nothing_while_the_journal_hangs(systemd: ServiceManager, service: SupervisedDaemon) -> None:
    """Another connection has the journal locked; the daemon's thread waits for it, its loop goes on."""
    service.environment = {"WATCHDOG_USEC": "200000"}
    service.start()
    eventually(lambda: systemd.count("WATCHDOG=1") > 3)
    with closing(sqlite3.connect(service.state / "journal.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with RawClient(service.socket).greet() as first:  # its loop lives
            before = systemd.count("WATCHDOG=1")
            first.send(m.encode(m.Status(request=2)))  # behind whatever the thread still does
            for _ in range(20):
                with RawClient(service.socket).greet():
                    threading.Event().wait(0.05)
            assert systemd.count("WATCHDOG=1") <= before + 1
        other.execute("ROLLBACK")
    stuck = systemd.count("WATCHDOG=1")
    eventually(lambda: systemd.count("WATCHDOG=1") > stuck + 3)


@one_address
def test_what_was_meant_for_another_process_is_left_alone(systemd: ServiceManager, tmp_path: Path) -> None:
    """The daemon is started by something that systemd has started: watchdog and sockets are that one's."""
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    daemon.environment = {
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": "100000",
        "WATCHDOG_PID": str(os.getpid()),
        "LISTEN_FDS": "2",
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": "ml-dashd.socket:pin-17",
    }
    with daemon, RawClient(daemon.socket).greet():
        systemd.wait_for("STATUS=nothing on its way")
        assert daemon.stop() == 0
    assert systemd.count("WATCHDOG=1") == 0
    assert not daemon.socket.exists()


@one_address
def test_an_embedded_daemon_does_not_speak_for_the_trainer(systemd: ServiceManager, tmp_path: Path) -> None:
    """A trainer that is a service itself: READY=1 and STOPPING=1 would be taken for its own."""
    script = (
        "from ml_dash import Experiment\n"
        "with Experiment('alice/cv/x', dash_root='root').run as exp:\n"
        "    exp.files.save_text('x' * 100_000, to='a.txt').wait(30)\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NOTIFY_SOCKET": systemd.address}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment, timeout=60)
    with RawClient(tmp_path / "root" / ".ml-dashd" / "socket").greet() as client:
        pid = client.ask(m.StatusReport, m.Status(request=2)).pid
    os.kill(pid, 15)
    eventually(lambda: not (tmp_path / "root" / ".ml-dashd" / "socket").exists())
    assert systemd.messages == []


@one_address
def test_a_systemd_that_is_gone_is_logged_once_and_is_no_loss(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path
) -> None:
    service.start()
    gone = str(service.folder / "gone")
    service.stop()
    service.environment = {"NOTIFY_SOCKET": gone}
    process = service.spawn()
    eventually(lambda: " ready " in service.log().rpartition("stopped")[2])
    expected = {f"{number}.bin": make_file(elsewhere / f"{number}.bin", SIZE, number) for number in range(3)}
    with service.experiment().run as exp:
        for name in expected:
            assert exp.files.upload(elsewhere / name, to=name)["pin"] == "fd"
        exp.files.flush(timeout=30)
        assert_whole(service, exp, expected)
    process.terminate()
    assert process.wait(30) == 0
    assert service.log().count("notify_failed") == 1


# ---- what it keeps


@one_address
def test_a_descriptor_outlives_kill_9_though_its_file_was_removed(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path, gate: Path
) -> None:
    """Again and again, a stop among them; what is in the store stays a file's own, and is not asked for twice."""
    expected = {f"{number}.bin": make_file(elsewhere / f"{number}.bin", SIZE, number) for number in range(3)}
    service.start()
    with service.experiment(wait=False).run as exp:
        results = [exp.files.upload(elsewhere / name, to=name) for name in expected]
        assert {result["pin"] for result in results} == {"fd"}
    kept = sorted(f"pin-{result['id']}" for result in results)
    assert systemd.kept() == kept
    for name in expected:
        (elsewhere / name).unlink()
    service.kill()
    service.start()
    assert service.stop() == 0
    service.start()
    service.kill()
    assert systemd.kept() == kept
    gate.unlink()
    service.start()
    with service.experiment().run as exp:
        exp.files.flush(timeout=30)
        assert_whole(service, exp, expected)
    eventually(lambda: systemd.kept() == [])


@one_address
def test_a_descriptor_is_kept_before_its_file_is_acknowledged(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path
) -> None:
    """Killed right after the journal's commit: nobody was told, yet the file is taken and can't be lost any more."""
    expected = make_file(elsewhere / "a.bin", SIZE)
    service.listen()
    service.start(faults="accept.journaled=kill")
    with ThreadPoolExecutor(1) as trainer, service.experiment().run as exp:
        result = trainer.submit(exp.files.upload, elsewhere / "a.bin", to="a.bin")
        service.wait_for_death()
        assert len(systemd.kept()) == 1
        (elsewhere / "a.bin").unlink()
        service.start()
        assert result.result(30)["pin"] == "fd"
        exp.files.flush(timeout=30)
        assert_whole(service, exp, {"a.bin": expected})
    eventually(lambda: systemd.kept() == [])


@one_address
def test_a_descriptor_is_let_go_once_its_file_is_copied(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path, gate: Path
) -> None:
    service.settings = ""
    expected = make_file(elsewhere / "a.bin", SIZE)
    service.start()
    with service.experiment(wait=False).run as exp:
        result = exp.files.upload(elsewhere / "a.bin", to="a.bin")
        assert (result["pin"], systemd.kept()) == ("fd", [f"pin-{result['id']}"])
        eventually(lambda: result.refresh()["pin"] == "copy")
    eventually(lambda: systemd.kept() == [])
    (elsewhere / "a.bin").unlink()
    gate.unlink()
    service.kill()
    service.start()
    with service.experiment().run as exp:
        exp.files.flush(timeout=30)
        assert_whole(service, exp, {"a.bin": expected})


@one_address
def test_a_descriptor_that_no_file_needs_is_let_go(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path
) -> None:
    """Killed before the journal had the file; and one of an unknown name, from who knows when."""
    make_file(elsewhere / "a.bin", SIZE)
    service.start(faults="accept.pinned=kill")
    with (elsewhere / "a.bin").open("rb") as opened, RawClient(service.socket).greet() as client:
        place = m.Place(namespace="alice", project="cv", experiment="x")
        file = m.Described(place=place, to="a.bin")
        upload = m.Upload(request=2, key=secrets.token_bytes(16), file=file, source=str(elsewhere / "a.bin"))
        client.send(m.encode(upload, 1), [opened.fileno()])
        service.wait_for_death()
        assert len(systemd.kept()) == 1
        systemd.store.append(("of-an-older-release", os.dup(opened.fileno())))
    service.start()
    eventually(lambda: systemd.kept() == [])
    assert str(elsewhere) not in _open_files(service.process.pid)


@one_address
def test_a_kept_descriptor_of_another_file_is_not_taken_for_this_one(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path, gate: Path
) -> None:
    make_file(elsewhere / "a.bin", SIZE)
    make_file(elsewhere / "b.bin", SIZE, seed=1)
    service.start()
    with service.experiment(wait=False).run as exp:
        exp.files.upload(elsewhere / "a.bin", to="a.bin")
    service.kill()
    ((name, descriptor),) = systemd.store
    os.close(descriptor)
    systemd.store = [(name, os.open(elsewhere / "b.bin", os.O_RDONLY | os.O_CLOEXEC))]
    (elsewhere / "a.bin").unlink()
    gate.unlink()
    service.start()
    with service.experiment(wait=False).run as exp:
        (found,) = exp.files().list()
        with pytest.raises(Exception, match="can't find it again"):
            found.wait(30)
    assert service.store.keys() == []
    eventually(lambda: systemd.kept() == [])


@one_address
def test_a_source_that_was_changed_while_the_daemon_was_away_is_told_so(
    systemd: ServiceManager, service: SupervisedDaemon, elsewhere: Path, gate: Path
) -> None:
    make_file(elsewhere / "a.bin", SIZE)
    service.start()
    with service.experiment(wait=False).run as exp:
        exp.files.upload(elsewhere / "a.bin", to="a.bin")
    service.kill()
    with (elsewhere / "a.bin").open("r+b") as file:
        file.write(b"another head")
    (elsewhere / "a.bin").unlink()
    gate.unlink()
    service.start()
    with service.experiment(wait=False).run as exp:
        (found,) = exp.files().list()
        with pytest.raises(Exception, match="was changed while it was on its way"):
            found.wait(30)
    assert service.store.keys() == []
    eventually(lambda: systemd.kept() == [])


# ---- what it passes


@one_address
def test_clients_wait_at_the_socket_while_the_daemon_is_restarted(
    systemd: ServiceManager, service: SupervisedDaemon, tmp_path: Path
) -> None:
    """In the middle of a run: the hand-offs of three trainers begin while no daemon is there."""
    expected = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", SIZE, number) for number in range(4)}
    service.listen()
    service.start()
    socket_file = service.socket.stat()
    with service.experiment().run as exp:
        exp.files.upload(tmp_path / "0.bin", to="0.bin")
        assert service.stop() == 0
        assert (service.socket.stat().st_ino, service.socket.stat().st_mode) == (
            socket_file.st_ino, socket_file.st_mode,
        )  # fmt: skip
        with ThreadPoolExecutor(4) as trainers, RawClient(service.socket) as waiting:
            # A connection that is not refused, and a request that waits for whoever comes.
            waiting.send(m.encode(m.Hello(request=0, min_version=1, max_version=1, client="test")))
            ends = [trainers.submit(exp.files.upload, tmp_path / "1.bin", to="1.bin")]
            ends += [trainers.submit(_hand_over, service, tmp_path / f"{number}.bin") for number in (2, 3)]
            eventually(lambda: _queued(service.socket) >= 3)
            service.start()
            assert isinstance(waiting.reply(), m.Welcome)
            for end in ends:
                end.result(30)
        exp.files.flush(timeout=30)
        assert_whole(service, exp, expected)
        service.kill()
        assert service.socket.exists()


@one_address
@pytest.mark.parametrize("what", ["datagram", "connected", "inet", "two"])
def test_a_socket_that_can_not_be_served_is_refused(
    systemd: ServiceManager, service: SupervisedDaemon, tmp_path: Path, what: str
) -> None:
    one, other = socket.socketpair()
    wrong = {
        "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "connected": lambda: one,
        "inet": lambda: socket.create_server(("127.0.0.1", 0)),
        "two": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    }[what]()
    service.listener = wrong
    if what == "two":
        service.listener = None
        service.listen()
        systemd.store.append(("other.socket", os.dup(wrong.fileno())))
    process = service.spawn()
    assert process.wait(30) == 2
    assert service.log().count("\n") == 1
    assert "systemd passed" in service.log()
    assert systemd.count("READY=1") == 0
    for each in (one, other, wrong):
        each.close()


def _hand_over(service: SupervisedDaemon, path: Path) -> None:
    with service.experiment().run as exp:
        exp.files.upload(path, to=path.name)


def _queued(path: Path) -> int:
    """Connections at a socket that nobody has accepted yet, as the kernel lists them."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return sum(row[-1] == str(path) and row[5] == "02" for row in rows)


def _open_files(pid: int) -> str:
    """What a process has open; one that is closed meanwhile is left out."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return "\n".join(links)
