"""One daemon for the tests of a module, each of which has an experiment of its own there."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, NetworkError
from tests.harness import DaemonProcess, Folder
from tests.scenario.embedded import Root


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
