"""What is said to systemd, and what is taken from it, where no process is needed to see it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd import install
from ml_dashd.app import CLOSING_S
from ml_dashd.config import DaemonConfig
from ml_dashd.edge import systemd
from ml_dashd.edge.opening import LOCKED_S
from ml_dashd.edge.systemd import STORE_MAX, Systemd

LONGEST_VARIABLE = 128 * 1024
"""MAX_ARG_STRLEN of linux/binfmts.h."""


@pytest.fixture
def deaf() -> Iterator[tuple[socket.socket, str]]:
    """A systemd that reads nothing by itself."""
    name = f"ml-dash-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(10)
        yield listening, f"@{name}"


def unit(kind: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", install.units(kind)["ml-dashd.service"], re.MULTILINE))


@pytest.mark.parametrize("kind", ["system", "user"])
def test_the_units_allow_what_the_daemon_counts_on(kind: str) -> None:
    settings = unit(kind)
    assert int(settings["FileDescriptorStoreMax"]) == STORE_MAX
    assert int(settings["WatchdogSec"]) >= 3 * LOCKED_S
    assert int(settings["TimeoutStopSec"]) >= DaemonConfig().drain_timeout + CLOSING_S
    assert int(settings["LimitNOFILE"]) >= 65536


def test_the_names_of_a_full_store_fit_into_one_variable() -> None:
    name = f"pin-{2**63 - 1}:"
    assert len("LISTEN_FDNAMES=") + STORE_MAX * len(name) + 1 < LONGEST_VARIABLE


def test_no_more_is_kept_than_comes_back(
    deaf: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listening, address = deaf
    monkeypatch.setattr(systemd, "STORE_MAX", 2)
    told = Systemd({"NOTIFY_SOCKET": address})
    for file_id in (1, 2, 3, 33):
        told.keep(file_id, listening.fileno())
    told.drop(3)
    told.drop(1)
    told.keep(4, listening.fileno())
    names = [listening.recv(1000).decode().split("\n")[:2] for _ in range(4)]
    assert names == [
        ["FDSTORE=1", "FDNAME=pin-1"],
        ["FDSTORE=1", "FDNAME=pin-2"],
        ["FDSTOREREMOVE=1", "FDNAME=pin-1"],
        ["FDSTORE=1", "FDNAME=pin-4"],
    ]
    assert [(each.getMessage(), vars(each)["id"]) for each in caplog.records] == [("descriptor_not_kept", 3)]


def test_a_systemd_that_reads_nothing_holds_nobody_up(
    deaf: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reports are dropped; a descriptor is given up after a while; and it is logged once, until it is mended."""
    listening, address = deaf
    monkeypatch.setattr(systemd, "PATIENCE_S", 0.05)
    told = Systemd({"NOTIFY_SOCKET": address})
    caplog.set_level(logging.WARNING)
    while "notify_failed" not in caplog.text:
        told.report("well")
    told.keep(1, listening.fileno())
    told.report("well")
    assert caplog.text.count("notify_failed") == 1
    listening.recv(1000)
    told.report("better")
    listening.close()
    told.report("alone")
    assert caplog.text.count("notify_failed") == 2


def test_without_systemd_nothing_is_sent_and_nothing_fails() -> None:
    told = Systemd({})
    told.ready()
    told.report("well")
    told.keep(1, 0)
    told.drop(1)
    told.stopping(10)
    assert (told.present, told.listener(), told.kept()) == (False, None, {})


def test_a_message_can_not_say_anything_else_to_systemd(deaf: tuple[socket.socket, str]) -> None:
    listening, address = deaf
    Systemd({"NOTIFY_SOCKET": address}).report("one\nMAINPID=1\n\u2028\x00two \ud800" + "x" * 5000)
    (line,) = listening.recv(1 << 16).decode().split("\n")
    assert line.startswith("STATUS=one?MAINPID=1???two ?x")
    assert len(line) < 1100


def test_a_descriptor_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    monkeypatch.setattr(systemd, "FIRST_PASSED", free)
    with pytest.raises(MLDashError, match=f"descriptor {free} of LISTEN_FDS") as refused:
        Systemd({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert refused.value.code is Code.CONFIG


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/opt/ml-dash/bin/python", "/opt/ml-dash/bin/python"),
        ("/home/a b/100%/$HOME/bin/python", '"/home/a b/100%%/$$HOME/bin/python"'),
        ('/x"y\\z/python', '"/x\\"y\\\\z/python"'),
    ],
)
def test_a_unit_names_this_installation(path: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", path)
    for kind in ("system", "user"):
        written = install.write_units(kind, tmp_path / kind)
        assert [each.name for each in written] == ["ml-dashd.service", "ml-dashd.socket"]
        starts = re.findall(r"^ExecStart=(.*)$", written[0].read_text(), re.MULTILINE)
        assert starts == [f"{words} -m ml_dashd run"]
