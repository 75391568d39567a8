"""Whether a source is what was handed over: what fstat says of it, and what the kernel has told of it since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ml_dashd.core.model import Fingerprint


class Verdict(StrEnum):
    """What is thought of a source."""

    SAME = "same"
    """Nothing moved."""
    MOVED = "moved"
    """Its times did, and as far as is known its content did not: what is read is read once more, and compared."""
    CHANGED = "changed"
    """It was written to, or may have been."""


@dataclass(frozen=True, slots=True)
class Account:
    """What happened to a file since before its fingerprint was taken."""

    written: bool
    """Somebody wrote to it by a call, or truncated it."""
    opened: bool
    """Somebody opened it to write: a write through a mapping is told by nothing else."""
    touched: bool
    """Its times, or others of its attributes, were set."""
    sure: bool = True
    """Nobody had it open to write at first: who had may have a mapping, and what he writes through it shows nowhere."""


def judge(was: Fingerprint, now: Fingerprint, told: Account | None) -> Verdict:
    """What became of a source. `told` is asked for after `now` was taken; None where there is no witness.

    Who had it open to write may have written through a mapping, and have set its times afterwards, as they were or to
    others. Times that moved though nobody set them tell of a write that the kernel did not.
    """
    if now == was:
        return Verdict.SAME
    if told is not None and (told.written or (told.sure and told.touched and told.opened)):
        return Verdict.CHANGED
    if told is not None and told.sure and told.touched:
        now = replace(now, mtime_ns=was.mtime_ns)
    return Verdict.MOVED if now.same_content(was) else Verdict.CHANGED
