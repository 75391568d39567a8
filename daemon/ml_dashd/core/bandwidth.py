"""A cap on bytes a second: a token bucket. Time is an argument, in seconds that never step."""

from __future__ import annotations

from ml_dashd.core.plan import MIB

SLICE_S = 0.05
"""A slice takes this much of a second's tokens: who comes with little waits for a few slices, not for a part."""
MIN_SLICE = 16 * 1024
MAX_SLICE = MIB
"""The least keeps the cost a byte low; the most is what measured best without a cap (edge/s3_send.py)."""


def slice_bytes(bandwidth: int) -> int:
    """How much is given to the network at a time under this cap; 0 is none."""
    return max(MIN_SLICE, min(MAX_SLICE, int(bandwidth * SLICE_S))) if bandwidth else MAX_SLICE


class Bucket:
    """Lets `bandwidth` bytes a second through, in the order in which they are asked for.

    After a pause, one slice goes at once: nothing is saved up beyond it, so no second brings more than the cap and one
    slice.
    """

    def __init__(self, bandwidth: int, now_s: float) -> None:
        self._bandwidth = bandwidth
        self._free_s = now_s
        """When everything that was asked for is through."""

    def take(self, size_bytes: int, now_s: float) -> float:
        """Asks for so many bytes; returns how many seconds to wait before they are sent."""
        start = max(self._free_s, now_s)
        self._free_s = start + size_bytes / self._bandwidth
        return start - now_s
