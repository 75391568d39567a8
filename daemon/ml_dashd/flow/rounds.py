"""A turn at a chore that one node of a fleet does for all: taken where it is due, kept while it goes on, and ended."""

from __future__ import annotations

from ml_dashd.core.rounds import Round, claimed, ended, gone_on
from ml_dashd.ports import Clock, Rounds


class Alone:
    """The rounds of a daemon that shares its catalog with nobody: each look is its turn."""

    async def round(self) -> Round:
        return Round()

    async def turn(self, was: Round, now: Round) -> bool:
        return True


class Turn:
    """One that was taken. Each call raises JournalError where the catalog does not answer."""

    def __init__(self, rounds: Rounds, mine: Round, clock: Clock, lease_ms: int) -> None:
        self._rounds = rounds
        self._mine = mine
        self._clock = clock
        self._lease_ms = lease_ms

    @property
    def after(self) -> str:
        """Where whoever had it before has stopped; "" for the beginning."""
        return self._mine.after

    async def go_on(self, after: str) -> bool:
        """Notes how far it is; False where another has it by now, who goes on with it."""
        now = gone_on(self._mine, after, self._clock.now_ms(), self._lease_ms)
        kept = await self._rounds.turn(self._mine, now)
        self._mine = now
        return kept

    async def keep(self, after: str) -> bool:
        """As `go_on`, but that it says so only once a third of the lease is gone: for steps that take moments."""
        if self._clock.now_ms() < self._mine.until_ms - self._lease_ms * 2 // 3:
            return True
        return await self.go_on(after)

    async def end(self) -> None:
        """The next one is due in its time. One that another has by now is left to it."""
        await self._rounds.turn(self._mine, ended(self._clock.now_ms()))


async def take(rounds: Rounds, holder: str, clock: Clock, *, every_ms: int, lease_ms: int) -> Turn | None:
    """The turn, for this holder; None where it is not due, or another's. Raises JournalError.

    A holder that is not heard of for `lease_ms` has lost it.
    """
    was = await rounds.round()
    mine = claimed(was, holder, clock.now_ms(), every_ms, lease_ms)
    if mine is None or not await rounds.turn(was, mine):
        return None
    return Turn(rounds, mine, clock, lease_ms)
