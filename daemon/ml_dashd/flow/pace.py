"""The pace of sending: how many requests are under way at once, whose turn it is, and how much memory each lane has.

async with pace.turn(job, Lane.SMALL, size_bytes, "put a/b/c"):
    await store.put(…)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from ml_dashd.core.fair import Claim, Shares
from ml_dashd.core.figures import Sending
from ml_dashd.core.model import Job
from ml_dashd.core.pace import REQUEST_BYTES, Limit, deadline_s
from ml_dashd.core.plan import SMALL_BYTES
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.schedule import Lane
from ml_dashd.flow.gate import Gate
from ml_dashd.ports import Buffers, Clock

TOO_MUCH = (Fault.THROTTLED, Fault.TRANSIENT)
"""A store says that it is too much with SlowDown, 503 or 429, by hanging up, or by not answering."""
KEPT_SHARE = 4
"""A lane's own: one place of four."""


class Pace:
    """Gives turns at sending. `answered` is told of each job of which the store has taken something."""

    def __init__(self, clock: Clock, connections: int, bandwidth: int, answered: Callable[[Job], None]) -> None:
        self._clock = clock
        self._connections = connections
        self._bandwidth = bandwidth
        self._answered = answered
        self._limit = Limit(connections, clock.monotonic())
        self._gate = Gate(Shares(connections, 1, 1, each=True))
        self._resize()

    def turn(self, job: Job, lane: Lane, size_bytes: int, what: str) -> Turn:
        """Waits for a place among the requests, and keeps it while one with so many bytes in its body is sent.

        One that takes too long is broken off, with StoreError and `what` it was. How it ended, by what the block
        raises, sets the pace of those to come.
        """
        return Turn(self, job, lane, size_bytes, what)

    async def enter(self, job: Job, lane: Lane, size_bytes: int) -> None:
        """For a Turn: waits for a place."""
        await self._gate.enter(Claim.of(lane, job), 1, size_bytes + REQUEST_BYTES)

    def now(self) -> float:
        """The clock by which turns are measured."""
        return self._clock.monotonic()

    def deadline_s(self, size_bytes: int) -> float:
        """How long a request with so many bytes in its body may take, in seconds."""
        return deadline_s(size_bytes, self._bandwidth, self._connections)

    def leave(self, turn: Turn, failure: BaseException | None) -> None:
        """For a Turn: gives the place back; how the request ended sets the pace."""
        now = self._clock.monotonic()
        if failure is None:
            self._limit.ended(turn.size_bytes, now, scarce=self._gate.crowded)
            self._answered(turn.job)
        elif isinstance(failure, StoreError) and failure.fault in TOO_MUCH:
            self._limit.slowed(turn.began, now)
        self._gate.leave(turn.lane, 1)
        if self._limit.places != self._gate.total:
            self._resize()

    def answered(self, job: Job) -> None:
        """The store has done something else for this job."""
        self._answered(job)

    def sending(self) -> Sending:
        """What is under way now."""
        return Sending(
            {str(lane): requests for lane, requests in self._gate.inside.items()},
            self._limit.places,
            self._limit.rate(self._clock.monotonic()),
        )

    def _resize(self) -> None:
        self._gate.resize(self._limit.places, max(1, self._limit.places // KEPT_SHARE))


class Turn:
    """A place among the requests; see Pace.turn. No generator: each small file takes one."""

    __slots__ = ("_pace", "_timeout", "_what", "began", "job", "lane", "size_bytes")

    def __init__(self, pace: Pace, job: Job, lane: Lane, size_bytes: int, what: str) -> None:
        self._pace = pace
        self._what = what
        self.job = job
        self.lane = lane
        self.size_bytes = size_bytes
        self.began = 0.0

    async def __aenter__(self) -> None:
        await self._pace.enter(self.job, self.lane, self.size_bytes)
        self.began = self._pace.now()
        self._timeout = asyncio.timeout(self._pace.deadline_s(self.size_bytes))
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, raised, trace)
        except TimeoutError as late:
            raised = late
        if isinstance(raised, TimeoutError):
            too_long = StoreError(Fault.TRANSIENT, f"{self._what} took too long")
            self._pace.leave(self, too_long)
            raise too_long from None
        self._pace.leave(self, raised)


class FairBuffers:
    """Buffers under one budget in bytes, of which each lane has its share and each experiment its turn.

    `buffers` has the same budget; downloads take theirs from it, too, in the order in which they ask.
    """

    def __init__(self, buffers: Buffers, budget_bytes: int, part_bytes: int) -> None:
        self._buffers = buffers
        kept_small = max(0, min(SMALL_BYTES, budget_bytes - 2 * part_bytes))  # one part is read, another is sent
        self._gate = Gate(Shares(budget_bytes, kept_small, budget_bytes - budget_bytes // KEPT_SHARE, each=False))
        self._lanes: dict[int, Lane] = {}

    async def take(self, size_bytes: int, claim: Claim) -> memoryview:
        """A buffer of that size, as soon as the budget allows; give it back, or discard it."""
        await self._gate.enter(claim, size_bytes, size_bytes)
        try:
            buffer = await self._buffers.take(size_bytes)
        except BaseException:
            self._gate.leave(claim.lane, size_bytes)
            raise
        self._lanes[id(buffer)] = claim.lane
        return buffer

    def give_back(self, buffer: memoryview, *, clean: bool) -> None:
        """The buffer is not needed any more. Unless `clean`, a dead connection may still hold it (rule C1)."""
        lane = self._lanes.pop(id(buffer))
        if clean:
            self._buffers.give_back(buffer)
        else:
            self._buffers.discard(buffer)
        self._gate.leave(lane, len(buffer))
