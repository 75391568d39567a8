"""How long a writer would be kept waiting for a copy of what it is about to overwrite."""

from __future__ import annotations

from ml_dashd.core.plan import MIB

ASSUMED_BYTES_PER_SECOND = 200 * MIB
"""Until a copy was measured: half of what a fresh file on ext4 took on a small virtual machine."""
_LEAST_BYTES = MIB
"""What is copied of a smaller file says more of the calls than of the disk."""
_FADES = 0.5
"""What was measured before counts half as much with each new copy: a disk that others use slows down."""


class CopySpeed:
    """What the spool's disk was found to take, of the copies that were made."""

    def __init__(self) -> None:
        self._size_bytes, self._seconds = 0.0, 0.0

    def note(self, size_bytes: int, seconds: float) -> None:
        """A copy of so many bytes took so long."""
        if size_bytes >= _LEAST_BYTES:
            self._size_bytes = self._size_bytes * _FADES + size_bytes
            self._seconds = self._seconds * _FADES + max(seconds, 1e-6)

    def seconds_of(self, size_bytes: int) -> float:
        """How long a copy of so many bytes is going to take."""
        if not self._seconds:
            return size_bytes / ASSUMED_BYTES_PER_SECOND
        return size_bytes * self._seconds / self._size_bytes


def longest_wait_s(configured_s: float, break_time_s: float) -> float:
    """How long a writer is kept waiting at most, in seconds; 0 for not at all.

    The kernel takes a lease away after `break_time_s` (0: never), whatever is being done: half of that is used.
    """
    return min(configured_s, break_time_s / 2) if break_time_s else configured_s
