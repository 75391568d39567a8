"""The line that says how the daemon does."""

from __future__ import annotations

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import Backlog, Trouble
from ml_dashd.flow.heartbeat import summary

FULL = Trouble(Code.DISK_FULL, "full", "make room")


@pytest.mark.parametrize(
    ("backlog", "trouble", "said"),
    [
        (Backlog(0, 0), None, "nothing on its way"),
        (Backlog(1, 999), None, "1 file on its way, 999 bytes"),
        (Backlog(2, 1_000), None, "2 files on their way, 1.0 kB"),
        (Backlog(2, 9_437_184), None, "2 files on their way, 9.4 MB"),
        (Backlog(3, 100_000_000_000), None, "3 files on their way, 100.0 GB"),
        (Backlog(3, 5, 2, "no such bucket"), None, "3 files on their way, 5 bytes; 2 blocked: no such bucket"),
        (Backlog(0, 0), FULL, "nothing on its way; nothing is taken in: full"),
        (Backlog(1, 5, 1, "denied"), FULL, "1 file on its way, 5 bytes; 1 blocked: denied; nothing is taken in: full"),
    ],
)
def test_what_is_on_its_way_and_what_holds_it_up(backlog: Backlog, trouble: Trouble | None, said: str) -> None:
    assert summary(backlog, trouble) == said
