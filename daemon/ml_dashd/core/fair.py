"""Who goes next where many wait for something scarce: a request's place, or memory.

A higher priority goes first, then the small lane, then the experiment that had the least, then who came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ml_dashd.core.model import Experiment, Job
from ml_dashd.core.schedule import Lane

T = TypeVar("T")

LANES = (Lane.SMALL, Lane.LARGE)
"""Whoever sends a file in one request is small here, wherever its bytes come from."""
REMEMBERED = 1024
"""Experiments of which is known how much they had: whoever waits is among the latest."""


@dataclass(frozen=True, slots=True)
class Claim:
    """On whose behalf something is asked for."""

    lane: Lane
    experiment: Experiment = ("", "", "")
    priority: int = 0

    @classmethod
    def of(cls, lane: Lane, job: Job) -> Claim:
        """What a file asks for."""
        return cls(lane, job.record.group, job.priority)


@dataclass(frozen=True, slots=True, eq=False)
class Waiting(Generic[T]):
    """One that waits; `size` is how much of the scarce thing it needs, `cost` what its experiment is charged for it."""

    claim: Claim
    size: int
    cost: int
    item: T


class Shares:
    """How much of a scarce thing is out, by lane, and whether more of it may go to a lane.

    Large files leave `kept_small` of it alone, always: what they hold comes back late. Small ones may have all of it
    while no large one waits, and else leave it `kept_large`. With `each`, a lane that has nothing gets some, though it
    be more than there is; without, that goes for when nothing is out at all. So nobody waits for ever.
    """

    def __init__(self, total: int, kept_small: int, kept_large: int, *, each: bool) -> None:
        self.total = total
        self.kept_small = kept_small
        self.kept_large = kept_large
        self._each = each
        self.out = dict.fromkeys(LANES, 0)

    def fits(self, lane: Lane, size: int, *, large_waits: bool) -> bool:
        """Whether a lane may have so much more."""
        out = sum(self.out.values())
        if (self.out[lane] if self._each else out) == 0:
            return True
        kept = self.kept_small if lane is Lane.LARGE else self.kept_large if large_waits else 0
        return out + size <= self.total and self.out[lane] + size <= self.total - kept


class FairQueue(Generic[T]):
    """Those who wait. The cost of a look does not depend on how many of an experiment do.

    Experiments take turns by what they had: start-time fair queuing, so that one that had nothing to ask for a while
    neither saves up nor owes anything.
    """

    def __init__(self) -> None:
        self._lines: dict[Lane, dict[int, dict[Experiment, deque[Waiting[T]]]]] = {lane: {} for lane in LANES}
        self._had: dict[Experiment, int] = {}
        self._now = 0
        """What the latest to be served had before."""

    def __len__(self) -> int:
        lines = (line for by_priority in self._lines.values() for line in by_priority.values())
        return sum(len(each) for line in lines for each in line.values())

    def waits(self, lane: Lane) -> bool:
        """Whether anybody of that lane does."""
        return bool(self._lines[lane])

    def add(self, waiting: Waiting[T]) -> None:
        """Puts somebody at the end of its experiment's line."""
        claim = waiting.claim
        line = self._lines[claim.lane].setdefault(claim.priority, {})
        line.setdefault(claim.experiment, deque()).append(waiting)

    def remove(self, waiting: Waiting[T]) -> None:
        """Takes away one who does not want any more. Idempotent."""
        claim = waiting.claim
        line = self._lines[claim.lane].get(claim.priority, {}).get(claim.experiment, deque())
        if waiting in line:
            line.remove(waiting)
            self._tidy(claim)

    def next(self, fits: Callable[[Lane, int], bool]) -> Waiting[T] | None:
        """Takes out who goes next, and charges its experiment; None where nobody waits, or nobody fits.

        Within a lane nobody overtakes one that does not fit yet.
        """
        heads = [head for lane in LANES if (head := self._head(lane)) is not None and fits(lane, head.size)]
        if not heads:
            return None
        chosen = max(heads, key=lambda head: head.claim.priority)
        self._lines[chosen.claim.lane][chosen.claim.priority][chosen.claim.experiment].popleft()
        self._tidy(chosen.claim)
        self.charge(chosen.claim.experiment, chosen.cost)
        return chosen

    def charge(self, experiment: Experiment, cost: int) -> None:
        """Notes what an experiment got, be it without waiting."""
        self._now = max(self._now, self._had.get(experiment, 0))
        self._had[experiment] = self._now + cost
        if len(self._had) > REMEMBERED:
            self._had = {each: had for each, had in self._had.items() if had > self._now}

    def _head(self, lane: Lane) -> Waiting[T] | None:
        by_priority = self._lines[lane]
        if not by_priority:
            return None
        line = by_priority[max(by_priority)]
        return line[min(line, key=lambda experiment: max(self._now, self._had.get(experiment, 0)))][0]

    def _tidy(self, claim: Claim) -> None:
        """Empty lines are gone: a look goes over those that are there."""
        by_priority = self._lines[claim.lane]
        line = by_priority[claim.priority]
        if not line[claim.experiment]:
            del line[claim.experiment]
        if not line:
            del by_priority[claim.priority]
