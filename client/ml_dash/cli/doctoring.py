"""The examination: what can be seen from here, then what the daemon sees of itself, its disks and its store."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.errors import TABLE, Code, MLDashError
from ml_dash.reach import Endpoint, missing_packages, socket_of
from ml_dash.release import release

OK, BAD, NONE = "ok", "bad", "none"
MARKS = {OK: "✓", BAD: "✗", NONE: "–"}  # noqa: RUF001 a dash is meant
PLAIN_MARKS = {OK: "+", BAD: "x", NONE: "-"}
"""For a terminal that has no such letters."""
FAILED, NO_DAEMON = 1, 3
NAME_WIDTH = 24
AWAY = (Code.DAEMON_UNAVAILABLE, Code.DAEMON_NOT_INSTALLED, Code.CONNECTION_LOST)
SILENT_S = 60.0
"""A daemon that answers nobody for so long is not waited for; one that examines answers others meanwhile."""


class Checks:
    """What was found so far; shown line by line unless it is for a program."""

    def __init__(self, *, show_as_they_come: bool) -> None:
        self._shown = show_as_they_come
        self.found: list[m.Check] = []

    def add(self, name: str, verdict: str, found: str, hint: str = "") -> None:
        """Another line."""
        self.take(m.Check(name=name, verdict=verdict, found=found, hint=hint))

    def take(self, check: m.Check) -> None:
        """Another line, the daemon's."""
        self.found.append(check)
        if self._shown:
            print(f"{_marks().get(check.verdict, check.verdict)} {check.name:<{NAME_WIDTH}} {check.found}")
            if check.hint:
                print(f"  {'':<{NAME_WIDTH}} hint: {check.hint}", flush=True)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(check.verdict == BAD for check in self.found)

    def as_object(self, endpoint: Endpoint) -> dict[str, Any]:
        """All of it, for programs."""
        lines = [
            {"name": each.name, "verdict": each.verdict, "found": each.found, "hint": each.hint or None}
            for each in self.found
        ]
        return {"ok": not self.failed, "socket": str(endpoint.socket), "checks": lines}


def examine(
    checks: Checks, endpoint: Endpoint, why: str, running: Callable[[], AbstractContextManager[Connection]]
) -> int:
    """Looks at everything; returns the exit status. No daemon is started for it."""
    _look_from_here(checks, endpoint, why)
    try:
        with running() as connection:
            _ask(checks, connection)
    except MLDashError as failure:
        checks.add("daemon", BAD, failure.message, failure.hint or TABLE[failure.code].hint)
        return NO_DAEMON if failure.code in AWAY else FAILED
    except (EOFError, ConnectionError) as lost:
        checks.add("daemon", BAD, f"it went away: {lost}", TABLE[Code.CONNECTION_LOST].hint)
        return NO_DAEMON
    return FAILED if checks.failed else 0


def _look_from_here(checks: Checks, endpoint: Endpoint, why: str) -> None:
    checks.add("client", OK, f"ml-dash {release()}, Python {sys.version.split()[0]}, uid {os.geteuid()}")
    whose = f"the one of the root {endpoint.root}" if endpoint.root else "the one at that socket"
    checks.add("which daemon", OK, f"{whose}: {why}")
    if endpoint.root is not None:
        _look_for_packages(checks)
    _look_at_socket(checks, endpoint)


def _look_for_packages(checks: Checks) -> None:
    if missing := missing_packages():
        hint = TABLE[Code.DAEMON_NOT_INSTALLED].hint
        checks.add("installed", BAD, f"the daemon can't be started here without {', '.join(missing)}", hint)
    else:
        checks.add("installed", OK, "the daemon can be started here")


def _look_at_socket(checks: Checks, endpoint: Endpoint) -> None:
    path = socket_of(endpoint)
    try:
        status = path.stat()
    except FileNotFoundError:
        checks.add("socket", NONE, f"{path} is not there")
        return
    except OSError as failure:
        checks.add("socket", BAD, f"{path}: {failure.strerror}", "let this user through its folders")
        return
    found = f"{path}, of uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
    if not stat.S_ISSOCK(status.st_mode):
        checks.add("socket", BAD, f"{found}: no socket", "name the daemon's socket, or remove what is there")
    elif not os.access(path, os.W_OK):
        hint = "see access.socket_mode and the group of the socket"
        checks.add("socket", BAD, f"{found}: this user may not write to it", hint)
    else:
        checks.add("socket", OK, found)


def _ask(checks: Checks, connection: Connection) -> None:
    status = connection.call(m.StatusReport, lambda number: m.Status(request=number))
    kind = "embedded" if status.embedded else "a service"
    about = f"ml-dashd {status.version}, {kind}, pid {status.pid}, store {status.store}"
    if status.version == release():
        checks.add("daemon", OK, about)
    else:
        checks.add("daemon", BAD, f"{about}; another release than this", "install the same release on both sides")
    answer = connection.call_aside(m.Examined, lambda number: m.Examine(request=number), silent_s=SILENT_S)
    for check in answer.checks:
        checks.take(check)


def _marks() -> dict[str, str]:
    try:
        "".join(MARKS.values()).encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return PLAIN_MARKS
    return MARKS
