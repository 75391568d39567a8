"""How long a copy is going to take, and how long somebody may wait for it."""

from __future__ import annotations

import pytest

from ml_dashd.core.overwrite import ASSUMED_BYTES_PER_SECOND, CopySpeed, longest_wait_s

MIB = 1 << 20


def test_a_disk_that_nobody_measured_is_taken_for_a_slow_one() -> None:
    assert CopySpeed().seconds_of(2 * ASSUMED_BYTES_PER_SECOND) == 2
    small = CopySpeed()
    small.note(MIB - 1, 1e-9)  # says nothing of the disk
    assert small.seconds_of(ASSUMED_BYTES_PER_SECOND) == 1


def test_what_was_measured_last_counts_most() -> None:
    speed = CopySpeed()
    speed.note(100 * MIB, 1.0)
    assert speed.seconds_of(50 * MIB) == 0.5
    for _ in range(10):
        speed.note(100 * MIB, 10.0)
    assert speed.seconds_of(100 * MIB) == pytest.approx(10, rel=0.01)


def test_a_clock_that_stands_still_makes_no_disk_endless() -> None:
    speed = CopySpeed()
    speed.note(100 * MIB, 0.0)
    assert speed.seconds_of(100 * MIB) > 0


@pytest.mark.parametrize(("configured", "break_time", "longest"), [(2, 45, 2), (2, 1, 0.5), (2, 0, 2), (0, 45, 0)])
def test_the_kernels_patience_bounds_it(configured: float, break_time: float, longest: float) -> None:
    assert longest_wait_s(configured, break_time) == longest
