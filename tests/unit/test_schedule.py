from __future__ import annotations

import pytest

from ml_dashd.core.schedule import WIDTH, Lane, lane


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, Lane.SMALL), (99, Lane.SMALL), (100, Lane.SMALL), (101, Lane.LARGE), (10**11, Lane.LARGE)],
)
def test_a_files_lane(size: int, expected: Lane):
    assert lane(size, single_bytes=100) is expected


def test_every_lane_moves():
    assert set(WIDTH) == set(Lane)
    assert all(width > 0 for width in WIDTH.values())
