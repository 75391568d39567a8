"""What every suite shares: isolation from the user's own settings, real servers, and a daemon to talk to."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Bucket, DaemonProcess, Folder, StoreUnderTest
from tests.prefork import LAUNCHING

pytest_plugins = ["tests.servers.fixtures"]

# A shell starts what runs in the background with SIGINT ignored, and so would be what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

IN_MEMORY = Path("/dev/shm")  # noqa: S108 a file system of its own, nearly everywhere
ISOLATED = ("AWS_", "ML_DASH", "DASH_", "XDG_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


SERVERS = ("ceph", "localstack", "mongodb", "swift")
"""The longest to start first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a server come one after the other, before all others: most of the four at a time start none of it."""
    items.sort(key=server_of)


def server_of(item: pytest.Item) -> int:
    """Where in SERVERS that is which a test asks for; of several the first, and behind them all where it is none."""
    chosen = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    asked = {*getattr(item, "fixturenames", ()), *(value for value in chosen if isinstance(value, str))}
    return next((at for at, name in enumerate(SERVERS) if asked & {name, f"{name}_url"}), len(SERVERS))


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No credentials, proxies, daemons or folders of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(ISOLATED):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session", autouse=True)
def forked() -> Iterator[None]:
    """The daemon of a root that is started in this process is forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ml_dash.reach.subprocess", LAUNCHING)
        yield


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether the suites run at full size (`make long`)."""
    return "ML_DASH_TEST_LONG" in LONG


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the spool: files there can only be held open, or copied."""
    if not os.access(IN_MEMORY, os.W_OK) or IN_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{IN_MEMORY} is no other file system")
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        yield Path(folder)


LONG = frozenset(name for name in os.environ if name == "ML_DASH_TEST_LONG")


@pytest.fixture(params=["local", "swift", "localstack"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    """Each of the stores that a user can have, empty."""
    if request.param == "local":
        return Folder(tmp_path / "store")
    return Bucket(request.getfixturevalue(request.param))


@pytest.fixture
def daemon(store: StoreUnderTest, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon of its own, serving the store."""
    with DaemonProcess(tmp_path / "daemon", store) as process:
        yield process
