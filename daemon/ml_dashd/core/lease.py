"""Node numbers on loan: who may have one, for how long, and which ids may be made with it.

A number is leased from the catalog, never made of a host's name. A holder owns an interval of time with it, from
`floor_ms` to `ceiling_ms`, in which its ids lie; whoever takes the number later begins above that ceiling. So two
holders never make the same id, whatever their clocks, or the catalog's, have done. That the lease also ends by
CLOCK_BOOTTIME, before it ends in the catalog, keeps ids near their time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from ml_dashd.core.ids import MAX_NODE, IdSource, last_of, time_of

LEASE_MS = 7 * 24 * 3_600_000
"""How long a number is kept without being renewed: the catalog may be away for so long."""
MARGIN_MS = 15 * 60_000
"""A holder stops so much earlier: a clock that is 0.1 % slow loses ten minutes in seven days."""
BEAT_S = 60.0
"""Between renewals."""
ALIVE_MS = 180_000
"""A holder that was heard of so lately may be alive: three renewals."""


class LapsedError(Exception):
    """No id may be made now: no number is held, or its time may be over."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon runs, and where its state folder lies: a copy of the folder is in another place."""

    machine: str
    """/etc/machine-id"""
    boot: str
    """/proc/sys/kernel/random/boot_id: a machine that was restored from a snapshot has another one."""
    folder: str
    """Device and inode of the state folder."""

    def may_have_been(self, earlier: Place) -> bool:
        """Whether this is that place after another boot, or a snapshot of it."""
        return (self.machine, self.folder) == (earlier.machine, earlier.folder)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a daemon says when it asks for a number, or for more time with the one that it has."""

    token: str
    """Random, and another one each time: who does not know the last one was overtaken by a copy of its state folder."""
    place: Place
    now_ms: int
    """By its own clock."""
    host: str = ""
    """What people call the machine: shown, and nothing is decided by it."""

    @property
    def ceiling_ms(self) -> int:
        return self.now_ms + LEASE_MS


@dataclass(frozen=True, slots=True)
class Node:
    """A number as the catalog has it; `until_ms` and `seen_ms` are by the catalog's clock."""

    number: int
    token: str
    place: Place
    floor_ms: int
    ceiling_ms: int
    until_ms: int
    seen_ms: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A number as its holder has it, and keeps it in its state folder. `fence_ms` is by CLOCK_BOOTTIME."""

    number: int
    place: Place
    floor_ms: int
    ceiling_ms: int
    fence_ms: int

    def holds(self, place: Place, boottime_ms: int) -> bool:
        """Whether it may be used by a daemon that starts there and has not asked the catalog.

        Only in the very place, since the same boot: a copy of the state folder would say the same of itself.
        """
        return self.place == place and boottime_ms < self.fence_ms


class Answer(StrEnum):
    """What becomes of a holder's claim for more time."""

    KEPT = "kept"
    OVERTAKEN = "overtaken"
    """Another daemon has the number: take one of your own."""
    UNSURE = "unsure"
    """The machine was booted again, or this is a snapshot of one that lives: ask again once that would have shown."""


# ---- what the catalog decides, in one step, with the number as it has it


def may_take(node: Node | None, claim: Claim, now_ms: int) -> bool:
    """Whether a number is free for this claim: its time is over, and by the claimant's clock its interval, too."""
    return node is None or (node.until_ms < now_ms and node.ceiling_ms < claim.now_ms)


def take(node: Node | None, number: int, claim: Claim, now_ms: int) -> Node:
    """The number, taken; the interval begins where the last holder's ends."""
    floor_ms = 0 if node is None else node.ceiling_ms
    until_ms = now_ms + LEASE_MS
    return Node(number, claim.token, claim.place, floor_ms, claim.ceiling_ms, until_ms, now_ms, claim.host)


def answer(node: Node | None, known: Collection[str], claim: Claim, now_ms: int) -> Answer:
    """What to say to a claim for more time by one that knows these tokens.

    The last but one is known, too: the answer to a claim may have been lost.
    """
    if node is None or node.token not in known:
        return Answer.OVERTAKEN
    if node.place == claim.place:
        return Answer.KEPT
    if not claim.place.may_have_been(node.place):
        return Answer.OVERTAKEN
    return Answer.UNSURE if now_ms - node.seen_ms < ALIVE_MS else Answer.KEPT


def renew(node: Node, claim: Claim, now_ms: int) -> Node:
    """The number with more time. Neither its interval nor its time ever gets shorter."""
    return replace(
        node,
        token=claim.token,
        place=claim.place,
        ceiling_ms=max(node.ceiling_ms, claim.ceiling_ms),
        until_ms=max(node.until_ms, now_ms + LEASE_MS),
        seen_ms=now_ms,
        host=claim.host,
    )


# ---- what the holder decides


def held(node: Node, asked_ms: int) -> Lease:
    """The lease that an answer brings, for who asked at that CLOCK_BOOTTIME: before the catalog began to count."""
    return Lease(node.number, node.place, node.floor_ms, node.ceiling_ms, asked_ms + LEASE_MS - MARGIN_MS)


def choose(taken: Collection[int], chance: float) -> int | None:
    """A number that nobody has, by a random number in [0, 1); None where all are taken. 0 is for embedded daemons."""
    free = sorted(set(range(1, MAX_NODE + 1)).difference(taken))
    return free[int(chance * len(free))] if free else None


class LeasedIds:
    """Hands out ids with whichever number is held; they increase over changes of the number.

    `high_water` is the largest id that the state folder has ever accepted, 0 for none.
    """

    def __init__(self, high_water: int = 0) -> None:
        self._source = IdSource(0, high_water)
        self._lease: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        return self._lease

    def hold(self, lease: Lease) -> None:
        """From now on with this number, or with more time for it."""
        high_water = self._source.latest
        if lease.number != self._source.node:  # within a millisecond a lower number's ids would be lower
            high_water = last_of(time_of(high_water))
        self._source = IdSource(lease.number, max(high_water, last_of(lease.floor_ms)))
        self._lease = lease

    def drop(self) -> None:
        """The number is another's. Idempotent."""
        self._lease = None

    def check(self, now_ms: int, boottime_ms: int) -> None:
        """Raises LapsedError where no id may be made now."""
        lease = self._lease
        if lease is None:
            raise LapsedError("no node number is held")
        if boottime_ms >= lease.fence_ms:
            raise LapsedError(f"node number {lease.number} was not renewed in time")
        # A full millisecond borrows one at most from what follows.
        if max(now_ms, time_of(self._source.latest) + 1) > lease.ceiling_ms:
            raise LapsedError(f"the clock is past the time for which node number {lease.number} is held")

    def next(self, now_ms: int, boottime_ms: int) -> int:
        """An id above all earlier ones. Raises LapsedError."""
        self.check(now_ms, boottime_ms)
        return self._source.next(now_ms)
