"""Which file goes next. Lanes, so that a large file never starves the small ones, nor they it.

Within a lane a higher priority goes first; of one priority experiments take turns, each with what was handed over first
(edge/due.py). A drain has its own order (`foremost`).
"""

from __future__ import annotations

from enum import StrEnum

from ml_dashd.core.figures import Unsent
from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.plan import LEAST_AT_ONCE
from ml_dashd.core.states import State


class Lane(StrEnum):
    """Files whose bytes the journal holds, others that go in one request, and files that go in parts."""

    INLINE = "inline"
    SMALL = "small"
    LARGE = "large"


WIDTH = {Lane.INLINE: 512, Lane.SMALL: 48, Lane.LARGE: LEAST_AT_ONCE}
"""Files of a lane that are under way at once; the memory and the connections they share have their own bounds.

Of large ones there are more where there are cores to hash more (`limits.threads`)."""

SPARE = {Lane.INLINE: 0, Lane.SMALL: 0, Lane.LARGE: 4}
"""Places beyond WIDTH for what would wait too long for one to become free: a file of an experiment that has none under
way, or one of a higher priority than all that are. A large file holds its place for as long as it takes."""

DRAIN_WIDTH = {Lane.INLINE: 256, Lane.SMALL: 16, Lane.LARGE: LEAST_AT_ONCE // 2}
"""As WIDTH, during a drain. Of two large files that share the line one is stored in the time in which of four none is;
one alone does not always fill the line, since the SHA-256 of a file is one thread's work."""

LINGER_S = 0.02
"""Hand-offs come in bursts (a checkpoint, its config, its metrics). An idle daemon lets them come for this long before
it begins to sync and send what came first: each of them blocks the trainer for half the time then."""


def width(lane: Lane, large: int, *, drain: bool = False) -> int:
    """How many files of a lane are under way at once, on a machine that hashes `large` files at once."""
    usual = (DRAIN_WIDTH if drain else WIDTH)[lane]
    return max(usual, large * usual // LEAST_AT_ONCE) if lane is Lane.LARGE else usual


def lane(kind: PinKind, size_bytes: int, single_bytes: int) -> Lane:
    """The lane of a file; `single_bytes` is the largest that the store takes in one request."""
    if size_bytes > single_bytes:
        return Lane.LARGE
    return Lane.INLINE if kind is PinKind.INLINE else Lane.SMALL


COPY_DELAY_S = 0.5
"""A file that the sender reads at once is stored before that, and needs no copy."""


def copy_delay_s(job: Job, below_bytes: int, after_s: float) -> float | None:
    """How long after its hand-off a file is copied into the spool, if it is not stored by then; None for never.

    What is only linked or held can be overwritten, so small files get a copy soon. A large one is copied where it would
    be lost with the daemon.
    """
    if job.pin.kind not in (PinKind.LINK, PinKind.FD):
        return None
    if job.record.size_bytes <= below_bytes:
        return COPY_DELAY_S
    return after_s if job.pin.kind is PinKind.FD else None


def foremost(file: Unsent) -> tuple[bool, int, int, int]:
    """The order of a drain, least first: what brings the most before a deadline.

    What only has to be completed or listed; then the higher priority; then what has the fewest bytes left to send, be
    it small or nearly done; then the newest, since of two checkpoints the later one is worth more.
    """
    job = file.job
    return job.state not in (State.COMPLETING, State.VERIFIED), -job.priority, file.left_bytes, -job.id
