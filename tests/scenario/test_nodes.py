"""Daemons that share a catalog in MongoDB: their numbers, and what a user sees of them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.harness import DaemonProcess
from tests.scenario.shell import Shell

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(service: DaemonProcess, tmp_path: Path) -> Shell:
    """The command, for a daemon that has its catalog for itself."""
    return Shell(tmp_path, ["--socket", str(service.socket)])


def test_a_daemon_that_has_its_catalog_for_itself_says_so(alone: Shell) -> None:
    host = socket.gethostname()
    assert alone("nodes").out == (
        f"the daemon on {host} has its catalog for itself: no other node shares it, and its number is 0\n"
    )
    (node,) = alone.json("nodes", "--all")
    assert node == {
        "number": 0,
        "host": host,
        "leaseEndsAt": None,
        "lastSeenAt": None,
        "held": True,
        "thisDaemon": True,
    }
