"""One daemon for the tests of a module, each of which has an experiment of its own there."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, NetworkError
from tests.harness import DaemonProcess, Folder, StoreUnderTest
from tests.scenario.embedded import Root
from tests.scenario.shell import Shell, closing_descriptor


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon as a service, whose store is a folder."""
    folder = tmp_path_factory.mktemp("service")
    with DaemonProcess(folder / "daemon", Folder(folder / "store")) as daemon:
        yield daemon


def path_in_store(daemon: DaemonProcess, record: dict[str, Any]) -> Path:
    """Where a file lies once it is stored."""
    assert isinstance(daemon.store, Folder)
    return daemon.store.root / daemon.store.key_of(record)


@pytest.fixture
def exp(service: DaemonProcess) -> Iterator[Experiment]:
    """An open run of an experiment that no other test uses."""
    with service.experiment(f"alice/cv/{secrets.token_hex(4)}").run as run:
        yield run


@dataclass
class Held:
    """An experiment whose files stay on their way: a plain file stands where the store has to make its folder."""

    exp: Experiment
    gate: Path

    def let_go(self) -> None:
        """Idempotent: once it is gone, the store makes its folder there."""
        if self.gate.is_file():
            self.gate.unlink()


@pytest.fixture
def held(service: DaemonProcess) -> Iterator[Held]:
    """An open run of an experiment whose files are stored only once they are let go."""
    assert isinstance(service.store, Folder)
    namespace = secrets.token_hex(4)
    gate = service.store.root / namespace / "cv/held/files"
    gate.parent.mkdir(parents=True)
    gate.touch()
    with service.experiment(f"{namespace}/cv/held").run as run:
        holding = Held(run, gate)
        yield holding
        holding.let_go()


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[Callable[..., Root]]:
    """Roots by their paths below a folder; their daemons are ended with the test."""
    made: list[Root] = []

    def make(name: str = "root") -> Root:
        made.append(Root(tmp_path / name))
        return made[-1]

    yield make
    for root in made:
        with suppress(NetworkError):
            root.end()


@pytest.fixture
def root(make_root: Callable[..., Root]) -> Root:
    return make_root()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The command, for a root whose daemon it starts by itself; that daemon is ended with the test."""
    root = tmp_path / "root"
    folder = tmp_path / "work"
    folder.mkdir()
    shell = Shell(folder, ["--root", str(root)])
    yield shell
    if not root.exists():
        return
    pid = shell.json("status")["pid"]
    with closing_descriptor(os.pidfd_open(pid)) as process:
        os.kill(pid, signal.SIGTERM)
        if not select.select([process], [], [], 60)[0]:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the daemon did not end after SIGTERM")
    with (root / ".ml-dashd" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Shell]:
    """The command, for a daemon whose store does not answer: files stay on their way."""
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))  # it does not listen
        store = StoreUnderTest()
        store.url, store.endpoint = "s3://bucket/there", f"http://127.0.0.1:{deaf.getsockname()[1]}"
        store.credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        folder = tmp_path / "work"
        folder.mkdir()
        # Without copies in the background, so that a source that is overwritten fails its file.
        with DaemonProcess(tmp_path / "daemon", store, settings="[spool]\ncopy_below = 0\n") as daemon:
            yield Shell(folder, ["--socket", str(daemon.socket)])
