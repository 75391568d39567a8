"""A daemon that is there and says nothing (SIGSTOP): hand-offs wait and say so once, questions end with a hint."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError, silence
from ml_dash.errors import Code
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, file_sha256, make_file

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest times that a socket can be given, and a clock on which they are the real ones."""
    monkeypatch.setattr(silence, "LOOK_S", 1)
    monkeypatch.setattr(silence, "PROBE_S", 1)
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: 12 * time.monotonic()))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as process:
        yield process


@pytest.fixture
def warned() -> Iterator[Callable[[], str]]:
    """Waits for a warning; `all` of them are kept."""
    lines: list[str] = []
    news = threading.Condition()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with news:
                lines.append(record.getMessage())
                news.notify_all()

    def wait() -> str:
        with news:
            assert news.wait_for(lambda: lines, 60), "nothing was said"
        return "\n".join(lines)

    handler = Keep()
    logging.getLogger("ml_dash").addHandler(handler)
    yield wait
    logging.getLogger("ml_dash").removeHandler(handler)
    assert len(lines) <= 1


@contextmanager
def stopped(daemon: DaemonProcess) -> Iterator[None]:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.resume()


@pytest.mark.parametrize("how", ["upload", "json", "blob"])
def test_a_hand_off_waits_and_says_for_whom(
    daemon: DaemonProcess, tmp_path: Path, how: str, warned: Callable[[], str]
) -> None:
    make_file(tmp_path / "a.bin", 300_000)
    with daemon.experiment(wait=False).run as exp, ThreadPoolExecutor(1) as pool:
        calls: dict[str, Callable[[], Any]] = {
            "upload": lambda: exp.files.upload(tmp_path / "a.bin"),
            # More than a socket holds: it is the sending that waits.
            "json": lambda: exp.files.save_json({}, to="a.bin", metadata={"long": "x" * 250_000}),
            "blob": lambda: exp.files.save_blob((tmp_path / "a.bin").read_bytes(), to="a.bin"),
        }
        with stopped(daemon):
            handed_over = pool.submit(calls[how])
            said = warned()
            assert not handed_over.done()
        assert f"the daemon at {daemon.socket} has not answered anybody" in said
        result = handed_over.result(60)
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, {"a.bin": result["checksum"]})


def test_the_word_goes_to_stderr_where_nothing_else_is_set_up(
    daemon: DaemonProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a trainer that never heard of logging; pytest has its own handlers on the root."""
    quiet = logging.getLogger("ml_dash")
    quiet.propagate = False
    try:
        silent = silence.Silence(lambda: daemon.socket, None)
        with stopped(daemon):
            silent.look()
            silent.look()
    finally:
        quiet.propagate = True
    assert capfd.readouterr().err.count("has not answered anybody") == 1


@pytest.mark.parametrize("what", ["list", "state", "flush", "wait", "status", "open"])
def test_a_question_ends_with_a_hint(daemon: DaemonProcess, what: str) -> None:
    with daemon.experiment(wait=False).run as exp:
        result = exp.files.save_json({}, to="a.json").wait(60)
        calls: dict[str, Callable[[], Any]] = {
            "list": exp.files().list,
            "state": lambda: result.state,
            "flush": lambda: exp.files.flush(timeout=0.5),
            "wait": lambda: result.wait(timeout=0.5),
            "status": daemon.status,
            "open": Experiment("alice/cv/other", socket=daemon.socket).run.start,
        }
        with stopped(daemon), pytest.raises(MLDashError) as silent:
            calls[what]()
        assert silent.value.code is Code.DAEMON_UNAVAILABLE
        assert f"the daemon at {daemon.socket} has not answered anybody" in silent.value.message
        assert "SIGCONT" in (silent.value.hint or "")
        assert [one["filename"] for one in exp.files().list()] == ["a.json"]  # it goes on afterwards


def test_a_daemon_that_is_only_busy_is_waited_for(
    daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It greets whoever looks; so a wait is no silence, however long it takes."""
    looks = threading.Semaphore(0)
    greets = silence._greets

    def look(path: Path) -> bool:
        answered = greets(path)
        looks.release()
        return answered

    monkeypatch.setattr(silence, "_greets", look)
    assert isinstance(daemon.store, Folder)
    gate = daemon.store.root / PREFIX.partition("/")[0]
    gate.touch()
    expected = make_file(tmp_path / "a.bin", 70_000)
    with daemon.experiment(wait=False).run as exp, ThreadPoolExecutor(1) as pool:
        exp.files.upload(tmp_path / "a.bin")
        waiting = pool.submit(exp.files.flush, 600)
        for _ in range(4):
            assert looks.acquire(timeout=60)
        gate.unlink()
        waiting.result(60)
        assert exp.files("a.bin").download(to=tmp_path / "b.bin")
        assert file_sha256(tmp_path / "b.bin") == expected
    assert caplog.text == ""
