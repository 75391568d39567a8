"""save_torch(background=True), with a real torch and a double of a GPU: what is acknowledged when, and by whom."""

from __future__ import annotations

import ast
import json
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.harness import DaemonProcess, Folder, assert_whole, eventually
from tests.scenario.conftest import path_in_store
from tests.scenario.test_torch import run, start

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("background_checks.py")
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
PREFIX = "alice/background/killed"


@pytest.fixture(scope="module")
def said(torch: Path, service: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check of the program has to say: nothing, if it holds."""
    folder = tmp_path_factory.mktemp("checks")
    out = run(torch, folder, service.socket, str(PROGRAM), "checks", str(folder))
    eventually(lambda: all(count.state in ("DONE", "CANCELLED") for count in service.status().counts))
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_a_save_in_the_background(said: dict[str, str], check: str) -> None:
    assert said[check] == "", said[check]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as process:
        yield process


def test_a_script_that_ends_hands_over_and_tells_what_it_could_not(
    torch: Path, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with start(torch, tmp_path, daemon.socket, str(PROGRAM), "ends", PREFIX) as process:
        _, err = process.communicate(timeout=60)
    (line,) = err.splitlines()
    assert line.startswith("ml-dash: here/lost.pt was not handed over: no (")
    assert_one_whole_file(daemon)


def test_kill_9_of_the_daemon_in_between(torch: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    """The slot is gone with it: what the trainer still has goes into another one, and is whole."""
    with start(torch, tmp_path, daemon.socket, str(PROGRAM), "held_up", PREFIX) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        daemon.kill()
        daemon.start()
        _, err = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0, err
    assert_one_whole_file(daemon)


def test_kill_9_of_the_trainer_in_between(torch: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    """It is not acknowledged, so it is gone, whole; nothing of it stays in the spool."""
    with start(torch, tmp_path, daemon.socket, str(PROGRAM), "held_up", PREFIX) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        assert daemon.spool() != []
        process.send_signal(signal.SIGKILL)
    eventually(lambda: daemon.spool() == [])
    with daemon.experiment(PREFIX).run as exp:
        assert_whole(daemon, exp, {})


def assert_one_whole_file(daemon: DaemonProcess) -> None:
    with daemon.experiment(PREFIX).run as exp:
        exp.files.flush(60)
        (result,) = exp.files().list()
    with zipfile.ZipFile(path_in_store(daemon, result)) as archive:
        assert archive.testzip() is None
        (tensor,) = (name for name in archive.namelist() if name.endswith("/data/0"))
        assert archive.read(tensor) == np.arange(3_000_000).tobytes()
    eventually(lambda: daemon.spool() == [])
