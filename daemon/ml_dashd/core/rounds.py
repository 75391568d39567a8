"""Chores that one daemon at a time does for all that share a catalog: whose turn it is.

A chore is done in rounds, one each `every_ms`, by whoever looks first once one is due. Two may be at it at once, for a
moment, after the one was away for longer than its lease: what they do can be done twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Round:
    """Whose turn it is, in the catalog.

    `after` is where it goes on, `ended_ms` when one came to its end last.
    """

    holder: str = ""
    until_ms: int = 0
    after: str = ""
    ended_ms: int = 0


def claimed(now: Round, holder: str, now_ms: int, every_ms: int, lease_ms: int) -> Round | None:
    """The round with this holder, who goes on where the last one stopped; None where it is not due, or another's.

    What lies further ahead than a lease can be was noted by a clock that was wrong, and counts for nothing.
    """
    if now_ms < now.until_ms <= now_ms + 2 * lease_ms and now.holder != holder:
        return None
    if not now.holder and now_ms - every_ms < now.ended_ms <= now_ms + lease_ms:
        return None
    return replace(now, holder=holder, until_ms=now_ms + lease_ms)


def gone_on(mine: Round, after: str, now_ms: int, lease_ms: int) -> Round:
    """The round a step further."""
    return replace(mine, after=after, until_ms=now_ms + lease_ms)


def ended(now_ms: int) -> Round:
    """There is nothing more to do."""
    return Round(ended_ms=now_ms)
