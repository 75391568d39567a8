"""Health, readiness and metrics of a daemon that runs, and what they say while something is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from resource import RLIMIT_FSIZE, prlimit
from typing import TypeVar

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.doubles.disks import tmpfs
from tests.doubles.http_client import HttpClient
from tests.doubles.raw_client import RawClient
from tests.harness import PREFIX, DaemonProcess, Folder, StoreUnderTest, assert_whole, eventually, make_file

pytestmark = pytest.mark.slow

T = TypeVar("T")

MIB = 1 << 20
ON_ITS_WAY = ("QUEUED", "SENDING", "COMPLETING", "VERIFIED")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    # Sources stay linked, so that what is overwritten fails.
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), "[spool]\ncopy_below = 0") as process:
        yield process


def asking(daemon: DaemonProcess) -> HttpClient:
    return HttpClient(daemon.folder / "http.sock")


def gate_of(daemon: DaemonProcess) -> Path:
    """A plain file there keeps the store from making its folder: files are blocked until it is gone."""
    assert isinstance(daemon.store, Folder)
    return daemon.store.root / PREFIX.partition("/")[0]


@contextmanager
def locked(daemon: DaemonProcess) -> Iterator[None]:
    """Another program has the journal locked, as a backup does."""
    with closing(sqlite3.connect(daemon.state / "journal.sqlite", isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        yield
        busy.execute("ROLLBACK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


# ---- where it is served


def test_a_service_answers_at_a_private_socket_beside_its_own(daemon: DaemonProcess) -> None:
    client = asking(daemon)
    assert client.reasons("/healthz") == client.reasons("/readyz") == {}
    assert stat.S_IMODE((daemon.folder / "http.sock").stat().st_mode) == 0o600
    assert f"http=unix:{daemon.folder}/http.sock" in daemon.log()
    assert daemon.stop() == 0
    assert not (daemon.folder / "http.sock").exists()


def test_what_kill_9_left_is_replaced_and_what_another_daemon_uses_is_not(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    daemon.kill()
    daemon.start()
    assert asking(daemon).reasons() == {}
    settings = f'[http]\nlisten = "unix:{daemon.folder}/http.sock"'
    second = DaemonProcess(tmp_path / "second", Folder(tmp_path / "store"), settings)
    with pytest.raises(RuntimeError, match=r"another daemon listens at .*http\.sock: give http\.listen another path"):
        second.start()
    assert not second.socket.exists()
    assert asking(daemon).reasons() == {}


def test_a_port_of_loopback_answers_by_config(tmp_path: Path) -> None:
    port = free_port()
    settings = f'[http]\nlisten = "127.0.0.1:{port}"'
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
        client = HttpClient(("127.0.0.1", port))
        assert client.reasons("/healthz") == client.reasons() == {}
        assert client.metrics()["ml_dashd_check_ok[journal]"] == 1
        assert not (daemon.folder / "http.sock").exists()
        second = DaemonProcess(tmp_path / "second", Folder(tmp_path / "store"), settings)
        with pytest.raises(
            RuntimeError, match=f"127.0.0.1 port {port} can't be listened on: .*give http.listen another"
        ):
            second.start()


def test_it_can_be_turned_off_and_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    for listen in ("", f"unix:{tmp_path / ('deep' * 30) / 'http.sock'}"):
        with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), f'[http]\nlisten = "{listen}"') as daemon:
            assert not (daemon.folder / "http.sock").exists()
            with daemon.experiment().run as exp:
                exp.files.save_text("x", to="a.txt").wait(30)
            if listen:
                client = HttpClient(Path(listen.removeprefix("unix:")))
                assert client.metrics()["ml_dashd_stored_files_total"] == 1
            assert daemon.stop() == 0


# ---- reasons


def test_files_that_are_blocked_are_a_reason_until_it_is_mended(daemon: DaemonProcess) -> None:
    gate = gate_of(daemon)
    gate.touch()
    client = asking(daemon)
    with daemon.experiment().run as exp:
        exp.files.save_text("x", to="secret-plan.txt")
        reason = eventually(lambda: client.reasons().get("store"))
        assert reason["code"] == Code.STORE_NO_BUCKET
        assert "create the bucket" in reason["hint"]
        assert "secret-plan" not in client.get("/readyz")[1]
        assert eventually(lambda: client.metrics().get("ml_dashd_blocked_files[STORE_NO_BUCKET]")) == 1
        assert client.reasons("/healthz") == {}, "there is nothing that another start would mend"
        gate.unlink()
        exp.files.flush(timeout=30)
    eventually(lambda: client.reasons() == {})
    assert eventually(lambda: client.metrics()["ml_dashd_check_ok[store]"]) == 1


def test_a_journal_that_can_not_be_written_is_a_reason_and_nothing_is_taken(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    client = asking(daemon)
    with daemon.experiment().run as exp:
        _, most = prlimit(daemon.process.pid, RLIMIT_FSIZE)
        # Writes beyond two pages of a file fail, as on a disk that is full. (What the fault points note is shorter.)
        prlimit(daemon.process.pid, RLIMIT_FSIZE, (8192, most))
        reason = eventually(lambda: client.reasons().get("journal"))
        assert reason["code"] == Code.DISK_FULL
        assert client.metrics()["ml_dashd_check_ok[journal]"] == 0
        for take in (lambda: exp.files.save_text("x", to="a.txt"), lambda: exp.metrics.log(loss=1)):
            with pytest.raises(MLDashError) as refused:
                take()
            assert refused.value.code is Code.DISK_FULL
        prlimit(daemon.process.pid, RLIMIT_FSIZE, (most, most))
        eventually(lambda: client.reasons() == {})
        exp.files.save_text("x", to="a.txt").wait(30)
        exp.metrics.log(loss=2).flush()
        assert [row["loss"] for row in exp.metrics()] == [2]


def test_a_journal_that_does_not_answer_is_unhealthy_and_the_counters_can_still_be_read(daemon: DaemonProcess) -> None:
    client = asking(daemon)
    with daemon.experiment().run as exp:
        exp.files.save_text("x", to="a.txt").wait(30)
    with locked(daemon):
        reasons = eventually(lambda: client.reasons("/healthz"))
        assert reasons["journal"]["code"] == Code.TIMEOUT
        seen = client.metrics()
        assert seen["ml_dashd_stored_files_total"] == 1
        assert seen["ml_dashd_check_ok[journal]"] == 0
        assert seen["ml_dashd_queue_age_seconds"] != 0  # NaN
    eventually(lambda: client.reasons("/healthz") == {} and client.reasons() == {})


def test_while_it_starts_it_is_not_ready(tmp_path: Path) -> None:
    """It is held where it has opened the journal, and then has to wait for it."""
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    starting = threading.Thread(target=daemon.start, args=("journal.after_commit=hang",))
    starting.start()
    try:
        eventually(lambda: daemon.process is not None)
        daemon.wait_until_hung()
        with locked(daemon):
            daemon.resume()
            client = asking(daemon)
            reasons = eventually(lambda: answered(client.reasons))
            assert reasons["daemon"]["code"] == Code.RETRY_LATER
            assert not daemon.socket.exists()
        starting.join(30)
        eventually(lambda: client.reasons() == {})
    finally:
        daemon.kill()
        starting.join()


def answered(ask: Callable[[], T]) -> T | None:
    with suppress(OSError):
        return ask()
    return None


class Silent(StoreUnderTest):
    """An S3 server that takes connections and says nothing."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = "s3://bucket/x"
        self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


def test_while_it_drains_it_is_healthy_and_not_ready(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        DaemonProcess(tmp_path / "daemon", Silent(listener), daemon_settings="drain_timeout = 3") as daemon,
    ):
        with daemon.experiment().run as exp:
            exp.files.save_text("x", to="a.txt")
        listener.settimeout(30)
        with listener.accept()[0]:
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            client = asking(daemon)
            reasons = eventually(client.reasons)
            assert reasons["daemon"]["code"] == Code.SHUTTING_DOWN
            assert client.reasons("/healthz") == {}
            assert client.metrics()["ml_dashd_check_ok[daemon]"] == 0
            assert daemon.process.wait(60) == 0
        assert not (daemon.folder / "http.sock").exists()


def test_a_spool_that_is_read_only_is_a_reason(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 16 * MIB) as disk:
        settings = f'[spool]\npools = ["{disk}"]'
        with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
            client = asking(daemon)
            assert client.reasons() == {}
            assert 0 < max(value for name, value in client.metrics().items() if f"[{disk}/" in name) <= 16 * MIB
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            reason = eventually(lambda: client.reasons().get("spool"))
            assert reason["code"] == Code.DISK_FAILED
            assert str(disk) in reason["message"]
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            eventually(lambda: client.reasons() == {})


def test_a_sync_that_the_disk_refused_is_a_reason_until_the_next_start(daemon: DaemonProcess, tmp_path: Path) -> None:
    daemon.kill()
    daemon.start("settle.before_sync=error")
    client = asking(daemon)
    assert client.reasons() == {}
    make_file(tmp_path / "a.bin", MIB)
    with daemon.experiment().run as exp, suppress(MLDashError):
        exp.files.upload(tmp_path / "a.bin", durability="disk")
    reason = eventually(lambda: client.reasons().get("spool"))
    assert reason["code"] == Code.DISK_FAILED
    assert "restarted" in reason["hint"]
    assert client.reasons("/healthz") == {}
    assert daemon.stop() == 0
    daemon.start()
    assert client.reasons() == {}


# ---- metrics


def test_metrics_and_status_agree_with_the_journal(daemon: DaemonProcess, tmp_path: Path) -> None:
    client = asking(daemon)
    before = client.metrics()
    with daemon.experiment().run as exp, RawClient(daemon.socket).greet():
        make_file(tmp_path / "large.bin", 20 * MIB + 5)
        exp.files.upload(tmp_path / "large.bin")
        for number in range(3):
            exp.files.save_text("x" * 100, to=f"{number}.txt")
        exp.files.flush(timeout=30)
        hold_one_fail_one_and_take_one_back(daemon, tmp_path)
        assert agrees(daemon, client)
        eventually(lambda: status_agrees(client))
        seen = client.metrics()
        assert seen["ml_dashd_connections"] == daemon.status().connections - 1  # its own
    assert seen["ml_dashd_stored_files_total"] == 4
    assert seen["ml_dashd_stored_bytes_total"] == seen["ml_dashd_sent_bytes_total"] == 20 * MIB + 5 + 300
    assert seen["ml_dashd_failures_total[SOURCE_CHANGED]"] == 1
    assert seen["ml_dashd_cancelled_files_total"] == 1
    assert seen["ml_dashd_blocked_files[STORE_NO_BUCKET]"] == 1
    assert seen["ml_dashd_retries_total[no_bucket]"] >= 3
    assert seen["ml_dashd_queue_age_seconds"] > 0
    assert seen["ml_dashd_journal_commit_seconds_count"] > before["ml_dashd_journal_commit_seconds_count"]
    assert seen["ml_dashd_loop_lag_seconds_count"] > before["ml_dashd_loop_lag_seconds_count"]
    assert seen["process_resident_memory_bytes"] > MIB


def hold_one_fail_one_and_take_one_back(daemon: DaemonProcess, folder: Path) -> None:
    """Three files that the store can't take: one stays so, one is overwritten meanwhile, and one is deleted."""
    assert isinstance(daemon.store, Folder)
    for name in ("stays", "held"):
        (daemon.store.root / name).touch()
    with daemon.experiment("stays/cv/x").run as exp:
        exp.files.save_text("x", to="stays.txt")
    with daemon.experiment("held/cv/x").run as exp:
        taken_back = exp.files.save_text("x", to="deleted.txt")
        make_file(folder / "changed.bin", MIB)
        changed = exp.files.upload(folder / "changed.bin")
        eventually(lambda: len(daemon.status().blocked) == 3)
        with (folder / "changed.bin").open("r+b") as file:
            file.write(b"another")
        exp.files("deleted.txt").delete()
        (daemon.store.root / "held").unlink()
        with pytest.raises(MLDashError) as failed:
            changed.wait(30)
        assert failed.value.code is Code.SOURCE_CHANGED
        with pytest.raises(MLDashError):
            taken_back.wait(30)
        eventually(lambda: daemon.rows("SELECT id FROM files WHERE state = 'CANCELLED'"))


def agrees(daemon: DaemonProcess, client: HttpClient) -> bool:
    """Once nothing moves for the moment that an answer holds, counters and gauges say what the journal has."""

    def of(where: str) -> tuple[int, int]:
        ((files, size),) = daemon.rows(f"SELECT count(*), coalesce(sum(size_bytes), 0) FROM files WHERE {where}")
        return files, size

    def look() -> bool:
        seen = client.metrics()
        counted = [
            (seen["ml_dashd_accepted_files_total"], seen["ml_dashd_accepted_bytes_total"]) == of("true"),
            (seen["ml_dashd_stored_files_total"], seen["ml_dashd_stored_bytes_total"]) == of("state = 'DONE'"),
            seen["ml_dashd_cancelled_files_total"] == of("state = 'CANCELLED'")[0],
            seen["ml_dashd_retries_total[no_bucket]"] >= daemon.rows("SELECT sum(attempt) FROM files")[0][0],
        ]
        measured = [
            (seen[f"ml_dashd_files[{state}]"], seen[f"ml_dashd_bytes[{state}]"]) == of(f"state = '{state}'")
            for state in (*ON_ITS_WAY, "FAILED")
        ]
        return all(counted) and all(measured)

    return eventually(look)


def status_agrees(client: HttpClient) -> bool:
    """The page names what is wrong, how many wait for it, and what to do; neither file nor user."""
    (_, page), (_, body) = client.get("/"), client.get("/status.json")
    seen = json.loads(body)
    assert "changed.bin" not in page + body
    assert "stays.txt" not in page + body
    assert "not ready" in page
    assert seen["ready"] is False
    assert [reason["check"] for reason in seen["reasons"]] == ["store"]
    return (
        [(each["code"], each["files"], bool(each["hint"])) for each in seen["blocked"]]
        == [("STORE_NO_BUCKET", 1, True)]
        and [(each["code"], each["id"] in page) for each in seen["failed"]] == [("SOURCE_CHANGED", True)]
        and seen["files"]["DONE"] == {"files": 4, "bytes": 20 * MIB + 5 + 300}
        and seen["queue"]["files"] == 1
        and seen["retries"]["no_bucket"] >= 3
        and seen["failures"] == {"SOURCE_CHANGED": 1}
    )


# ---- clients that mean no good


def test_slow_and_broken_clients_harm_nobody(daemon: DaemonProcess, tmp_path: Path) -> None:
    """All connections of HTTP are taken by clients that say nothing or nonsense, while files are handed over."""
    client = asking(daemon)
    expected = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", 100_000, number) for number in range(20)}
    with ExitStack() as open_ones, daemon.experiment().run as exp:
        for number in range(100):
            with suppress(OSError):  # it may be one too many
                wire = open_ones.enter_context(client.connect())
                wire.sendall((b"", b"GET /metrics HTTP/1.1\r\nX:", b"\x00" * 100, b"a" * 100_000)[number % 4])
        for name in expected:
            exp.files.upload(tmp_path / name, to=name)
        exp.files.flush(timeout=30)
        assert_whole(daemon, exp, expected)
    eventually(lambda: answered(lambda: client.get("/healthz")[0]) == 200)
    assert eventually(lambda: client.metrics()["ml_dashd_stored_files_total"]) == 20
    assert "Traceback" not in daemon.log()
    assert "ERROR" not in daemon.log()


def test_an_embedded_daemon_has_no_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "runs" / ".ml-dashd"
    with Experiment(PREFIX, dash_root=tmp_path / "runs").run as exp:
        exp.files.save_text("x", to="a.txt").wait(30)
        assert (home / "socket").is_socket()
        assert [entry.name for entry in home.iterdir() if "http" in entry.name] == []
    os.kill(json.loads((home / "daemon.json").read_text())["pid"], signal.SIGTERM)
    eventually(lambda: "stopped" in (home / "log").read_text())
    assert 'http=""' in (home / "log").read_text()
