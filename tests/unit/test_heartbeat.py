"""The line that says how the daemon does."""

from __future__ import annotations

import pytest

from ml_dash.errors import Code
from ml_dashd.core.figures import Backlog, Blocked, StateCount
from ml_dashd.core.model import Trouble
from ml_dashd.core.states import State
from ml_dashd.flow.heartbeat import summary

FULL = Trouble(Code.DISK_FULL, "full", "make room")


def backlog(files: int, size_bytes: int, **blocked: int) -> Backlog:
    """So many files in two states, others that were given up, and how many are blocked by what."""
    counts = (
        StateCount(State.QUEUED, files - files // 2, size_bytes - size_bytes // 2),
        StateCount(State.SENDING, files // 2, size_bytes // 2),
        StateCount(State.FAILED, 7, 700),
    )
    return Backlog(
        counts,
        blocked=tuple(Blocked(Trouble(Code.STORE_DENIED, why, "ask"), files) for why, files in blocked.items()),
    )


@pytest.mark.parametrize(
    ("queue", "trouble", "said"),
    [
        (Backlog(()), None, "nothing on its way"),
        (backlog(0, 0), None, "nothing on its way"),
        (backlog(1, 999), None, "1 file on its way, 999 bytes"),
        (backlog(2, 1_000), None, "2 files on their way, 1.0 kB"),
        (backlog(2, 9_437_184), None, "2 files on their way, 9.4 MB"),
        (backlog(3, 100_000_000_000), None, "3 files on their way, 100.0 GB"),
        (backlog(3, 5, gone=1, denied=2), None, "3 files on their way, 5 bytes; 3 blocked: denied"),
        (backlog(0, 0), FULL, "nothing on its way; nothing is taken in: full"),
        (backlog(1, 5, denied=1), FULL, "1 file on its way, 5 bytes; 1 blocked: denied; nothing is taken in: full"),
    ],
)
def test_what_is_on_its_way_and_what_holds_it_up(queue: Backlog, trouble: Trouble | None, said: str) -> None:
    assert summary(queue, trouble) == said
