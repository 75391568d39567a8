"""The line that says how the daemon does."""

from __future__ import annotations

import pytest

from ml_dashd.core.model import Backlog
from ml_dashd.flow.heartbeat import summary


@pytest.mark.parametrize(
    ("backlog", "said"),
    [
        (Backlog(0, 0), "nothing on its way"),
        (Backlog(1, 999), "1 file on its way, 999 bytes"),
        (Backlog(2, 1_000), "2 files on their way, 1.0 kB"),
        (Backlog(2, 9_437_184), "2 files on their way, 9.4 MB"),
        (Backlog(3, 100_000_000_000), "3 files on their way, 100.0 GB"),
        (Backlog(3, 5, 2, "no such bucket"), "3 files on their way, 5 bytes; 2 blocked: no such bucket"),
    ],
)
def test_what_is_on_its_way_and_what_holds_it_up(backlog: Backlog, said: str) -> None:
    assert summary(backlog) == said
