"""Which file goes next. Two lanes, so that a large file never starves the small ones, nor they it."""

from __future__ import annotations

from enum import StrEnum


class Lane(StrEnum):
    """Files that go in one request, and files that go in parts."""

    SMALL = "small"
    LARGE = "large"


WIDTH = {Lane.SMALL: 16, Lane.LARGE: 4}
"""Files of a lane that are under way at once; the memory and the connections they share have their own bounds."""

LINGER_S = 0.02
"""Hand-offs come in bursts (a checkpoint, its config, its metrics). An idle daemon lets them come for this long before
it begins to sync and send what came first: each of them blocks the trainer for half the time then."""


def lane(size_bytes: int, single_bytes: int) -> Lane:
    """The lane of a file; `single_bytes` is the largest that the store takes in one request."""
    return Lane.SMALL if size_bytes <= single_bytes else Lane.LARGE
