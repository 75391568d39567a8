from __future__ import annotations

import pytest

from ml_dashd.core.figures import Unsent
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.schedule import COPY_DELAY_S, DRAIN_WIDTH, SPARE, WIDTH, Lane, copy_delay_s, foremost, lane, width
from ml_dashd.core.states import State


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, Lane.SMALL), (99, Lane.SMALL), (100, Lane.SMALL), (101, Lane.LARGE), (10**11, Lane.LARGE)],
)
def test_a_files_lane(size: int, expected: Lane):
    assert lane(PinKind.LINK, size, single_bytes=100) is expected


def test_what_the_journal_holds_has_a_lane_of_its_own():
    assert lane(PinKind.INLINE, 100, single_bytes=100) is Lane.INLINE
    assert lane(PinKind.INLINE, 101, single_bytes=100) is Lane.LARGE


def test_every_lane_moves():
    assert set(WIDTH) == set(DRAIN_WIDTH) == set(SPARE) == set(Lane)
    assert all(width > 0 for width in (*WIDTH.values(), *DRAIN_WIDTH.values()))


@pytest.mark.parametrize(("large", "usual", "draining"), [(1, 4, 2), (4, 4, 2), (7, 7, 3), (8, 8, 4), (64, 64, 32)])
def test_more_large_files_are_under_way_where_more_can_be_hashed(large: int, usual: int, draining: int):
    assert (width(Lane.LARGE, large), width(Lane.LARGE, large, drain=True)) == (usual, draining)
    assert width(Lane.SMALL, large) == WIDTH[Lane.SMALL]
    assert width(Lane.INLINE, large, drain=True) == DRAIN_WIDTH[Lane.INLINE]


@pytest.mark.parametrize("kind", PinKind)
@pytest.mark.parametrize("size", [1, 100, 101])
def test_what_is_copied_and_when(kind: PinKind, size: int):
    """Only what its owner may overwrite, or a kill of the daemon would lose."""
    job = Job(FileRecord(1, 0, "a", "b", "c", "", "d", size, "text/plain", 0, 0), Pin(kind))
    delay = copy_delay_s(job, below_bytes=100, after_s=30.0)
    if kind not in (PinKind.LINK, PinKind.FD):
        assert delay is None
    elif size <= 100:
        assert delay == COPY_DELAY_S
    else:
        assert delay == (30.0 if kind is PinKind.FD else None)


def unsent(number: int, size: int, sent: int = 0, priority: int = 0, state: State = State.QUEUED) -> Unsent:
    record = FileRecord(number, 0, "a", "b", "c", "", "d", size, "text/plain", 0, 0)
    return Unsent(Job(record, Pin(PinKind.LINK), state, priority=priority), sent)


def test_a_drain_sends_what_brings_the_most():
    in_order = [
        unsent(1, 900, sent=900, priority=-9, state=State.VERIFIED),
        unsent(2, 900, priority=5),
        unsent(3, 10),
        unsent(4, 900, sent=880, state=State.SENDING),  # nearly done, though large
        unsent(6, 50),
        unsent(5, 50),  # of two alike the newer one first
        unsent(7, 1, priority=-1),
    ]
    shuffled = in_order[::-1]
    assert sorted(shuffled, key=foremost) == in_order
