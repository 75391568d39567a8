"""Roots with daemons of their own, and scripts that use them, as processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash.connection import Connection
from ml_dash.messages import Status, StatusReport
from ml_dash.reach import Endpoint, endpoint_of
from tests.harness import PREFIX, is_object


@dataclass
class Root:
    """A folder that has, once it is used, a daemon of its own."""

    path: Path

    @property
    def socket(self) -> Path:
        return endpoint_of(self.path).socket

    @property
    def state(self) -> Path:
        """Where journal, spool and lock lie."""
        return self.socket.parent

    def experiment(self, prefix: str = PREFIX, **options: Any) -> Experiment:
        return Experiment(prefix, dash_root=self.path, **options)

    def status(self) -> StatusReport:
        """What the daemon says; asking starts none."""
        connection = Connection(Endpoint(self.socket))
        try:
            return connection.call(StatusReport, lambda number: Status(request=number))
        finally:
            connection.close()

    def files(self) -> list[str]:
        """Every file that was handed over and that a user finds there."""
        found = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if not str(path).startswith(".ml-dash") and is_object(str(path)))

    def log(self) -> str:
        return (self.state / "log").read_text()

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends the daemon, and returns when it is gone."""
        end_process(self.status().pid, number)


def end_process(pid: int, number: int = signal.SIGTERM) -> None:
    """Sends a signal, and returns when the process is gone."""
    with opened(os.pidfd_open(pid)) as process:
        os.kill(pid, number)
        if not gone(process):
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the daemon did not end")


def gone(process: int, timeout: float = 60) -> bool:
    """Whether the process of a pidfd ends within that time."""
    return bool(select.select([process], [], [], timeout)[0])


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def held(root: Root, prefix: str = PREFIX) -> Iterator[Callable[[], None]]:
    """Files stay on their way until what this yields is called: a plain file stands where their folder has to be."""
    gate = root.path / prefix / "files"
    gate.parent.mkdir(parents=True, exist_ok=True)
    gate.touch()

    def let_go() -> None:
        if gate.is_file():
            gate.unlink()

    try:
        yield let_go
    finally:
        let_go()


def trainer(script: str | Path, *arguments: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """A script, or one in a file, as a process; `before` are the words that run it, such as ("unshare", "--net")."""
    code = [str(script)] if isinstance(script, Path) else ["-c", textwrap.dedent(script)]
    return subprocess.Popen(
        [*before, sys.executable, "-W", "error", *code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def run_trainer(script: str | Path, *arguments: str, **options: Any) -> tuple[str, str, int]:
    """What a script says, and its exit status."""
    process = trainer(script, *arguments, **options)
    try:
        out, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("the script hangs")
    return out, err, process.returncode
