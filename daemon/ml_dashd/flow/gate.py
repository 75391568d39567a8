"""A gate before something scarce, such as places or bytes: it lets in who fits, fairly (core/fair.py)."""

from __future__ import annotations

import asyncio

from ml_dashd.core.fair import LANES, Claim, FairQueue, Shares, Waiting
from ml_dashd.core.schedule import Lane


class Gate:
    """Whoever has entered must leave, with the same lane and size."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def crowded(self) -> bool:
        """Whether anybody waits."""
        return any(self._queue.waits(lane) for lane in LANES)

    @property
    def total(self) -> int:
        """How much of it there is."""
        return self._shares.total

    @property
    def inside(self) -> dict[Lane, int]:
        """How much of it is out, by lane."""
        return self._shares.out

    async def enter(self, claim: Claim, size: int, cost: int) -> None:
        """Waits until so much may be had; the experiment is charged `cost`. Nothing is out if it raises."""
        if not self.crowded and self._fits(claim.lane, size):
            self._queue.charge(claim.experiment, cost)
            self._shares.out[claim.lane] += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = Waiting(claim, size, cost, turn)
        self._queue.add(waiting)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.remove(waiting)
                self._admit()  # it may have been in the way of others
            else:
                self.leave(claim.lane, size)
            raise

    def leave(self, lane: Lane, size: int) -> None:
        """Gives it back to those who wait."""
        self._shares.out[lane] -= size
        self._admit()

    def resize(self, total: int, kept: int) -> None:
        """There is so much of it now, of which each lane is left `kept`. What is out beyond it is not taken back."""
        self._shares.total, self._shares.kept_small, self._shares.kept_large = total, kept, kept
        self._admit()

    def _admit(self) -> None:
        while (entry := self._queue.next(self._fits)) is not None:
            if not entry.item.cancelled():
                self._shares.out[entry.claim.lane] += entry.size
                entry.item.set_result(None)

    def _fits(self, lane: Lane, size: int) -> bool:
        return self._shares.fits(lane, size, large_waits=self._queue.waits(Lane.LARGE))
