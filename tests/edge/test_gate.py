"""Turns at sending and at memory: who is let in, what is given back when somebody goes away, what sets the pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ml_dashd.core.fair import Claim, Shares
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.pace import DEADLINE_S, START
from ml_dashd.core.plan import MIB
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.schedule import Lane
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.gate import Gate
from ml_dashd.flow.pace import SMALL_BYTES, FairBuffers, Pace

SMALL, LARGE = Claim(Lane.SMALL), Claim(Lane.LARGE)


def job(number: int = 1, experiment: str = "c", priority: int = 0) -> Job:
    record = FileRecord(number, 0, "a", "b", experiment, "", "d", 5, "text/plain", 0, 0)
    return Job(record, Pin(PinKind.LINK), priority=priority)


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def entering(gate: Gate, *claims: Claim) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(gate.enter(claim, 1, 1)) for claim in claims]
    await settle()
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_is_let_in_by_who_leaves() -> None:
    gate = Gate(Shares(1, 0, 0, each=False))
    await gate.enter(LARGE, 1, 1)
    async with entering(gate, LARGE, Claim(Lane.LARGE, priority=1)) as (first, urgent):
        assert gate.crowded
        gate.leave(Lane.LARGE, 1)
        await settle()
        assert (urgent.done(), first.done()) == (True, False)
        gate.leave(Lane.LARGE, 1)
        await first
        assert not gate.crowded


async def test_who_goes_away_while_it_waits_leaves_nothing_behind() -> None:
    gate = Gate(Shares(1, 0, 0, each=False))
    await gate.enter(LARGE, 1, 1)
    async with entering(gate, LARGE, LARGE) as (first, second):
        first.cancel()
        await settle()
        gate.leave(Lane.LARGE, 1)
        await second
    assert gate.inside[Lane.LARGE] == 1
    gate.leave(Lane.LARGE, 1)
    assert sum(gate.inside.values()) == 0


async def test_who_is_cancelled_in_the_moment_in_which_it_is_let_in_gives_its_place_on() -> None:
    gate = Gate(Shares(1, 0, 0, each=False))
    await gate.enter(LARGE, 1, 1)
    async with entering(gate, LARGE, LARGE) as (first, second):
        gate.leave(Lane.LARGE, 1)
        first.cancel()  # it was let in, and has not run yet
        await settle()
        assert first.cancelled()
        assert second.done()
    async with entering(gate, LARGE, LARGE) as (first, second):
        first.cancel()  # the place is given back before it has heard of it
        gate.leave(Lane.LARGE, 1)
        await settle()
        assert first.cancelled()
        assert second.done()
    assert gate.inside[Lane.LARGE] == 1


async def test_more_places_let_more_in() -> None:
    gate = Gate(Shares(1, 0, 0, each=False))
    async with entering(gate, LARGE, LARGE, LARGE) as tasks:
        assert [task.done() for task in tasks] == [True, False, False]
        gate.resize(2, 0)
        await settle()
        assert [task.done() for task in tasks] == [True, True, False]
        assert gate.total == 2


# ---- the pace


class Sender:
    """Requests through a Pace, each of which ends as the test says."""

    def __init__(self, connections: int = 16, bandwidth: int = 0) -> None:
        self.answered: list[int] = []
        self.pace = Pace(SystemClock(), connections, bandwidth, lambda job: self.answered.append(job.id))
        self.sending: dict[int, asyncio.Future[None]] = {}

    def send(self, number: int, lane: Lane, experiment: str = "c") -> asyncio.Task[None]:
        async def request() -> None:
            async with self.pace.turn(job(number, experiment), lane, MIB, f"part {number}"):
                self.sending[number] = asyncio.get_running_loop().create_future()
                await self.sending[number]

        return asyncio.create_task(request())

    def end(self, number: int, failure: Exception | None = None) -> None:
        future = self.sending.pop(number)
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


async def test_large_files_leave_places_to_small_ones_and_the_other_way_round() -> None:
    sender = Sender()
    large = [sender.send(number, Lane.LARGE) for number in range(20)]
    await settle()
    assert sorted(sender.sending) == list(range(START - START // 4))
    small = [sender.send(number, Lane.SMALL) for number in range(100, 120)]
    await settle()
    assert sum(number >= 100 for number in sender.sending) == START // 4
    for _ in range(4):  # what ends is given to the small ones, up to what is the large ones' own
        sender.end(min(sender.sending))
        await settle()
    assert sum(number < 100 for number in sender.sending) >= START // 4
    assert sum(number >= 100 for number in sender.sending) > START // 4
    assert sender.pace.sending().requests == {
        "small": sum(number >= 100 for number in sender.sending),
        "large": sum(number < 100 for number in sender.sending),
    }
    for task in large + small:
        task.cancel()
    await asyncio.gather(*large, *small, return_exceptions=True)
    assert sender.pace.sending().requests == {"small": 0, "large": 0}


async def test_experiments_take_turns_at_the_requests() -> None:
    sender = Sender()
    tasks = [sender.send(number, Lane.LARGE, "many") for number in range(20)]
    await settle()
    tasks.append(sender.send(100, Lane.LARGE, "single"))
    await settle()
    sender.end(0)
    await settle()
    assert 100 in sender.sending
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("failure", "fewer"),
    [
        (StoreError(Fault.THROTTLED, "slow down"), True),
        (StoreError(Fault.TRANSIENT, "reset"), True),
        (StoreError(Fault.DENIED, "no"), False),
        (None, False),
    ],
)
async def test_what_a_store_says_sets_the_pace(failure: Exception | None, fewer: bool) -> None:
    sender = Sender()
    task = sender.send(1, Lane.SMALL)
    await settle()
    sender.end(1, failure)
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert ended is failure
    assert sender.pace.sending().places == (START // 2 if fewer else START)
    assert sender.answered == ([1] if failure is None else [])


async def test_a_cap_gives_a_request_more_time() -> None:
    for bandwidth, least in ((0, DEADLINE_S), (100_000, 64 * MIB / 100_000)):
        assert Sender(bandwidth=bandwidth).pace.deadline_s(MIB) > least


@pytest.mark.parametrize("itself", [False, True])
async def test_a_request_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch, itself: bool) -> None:
    """By the turn, or by what sends it."""
    sender = Sender()
    if not itself:
        monkeypatch.setattr(sender.pace, "deadline_s", lambda _: 0.0)
    task = sender.send(7, Lane.LARGE)
    if itself:
        await settle()
        sender.end(7, TimeoutError())
    with pytest.raises(StoreError, match="part 7 took too long") as refused:
        await task
    assert refused.value.fault is Fault.TRANSIENT
    assert sender.pace.sending().places == START // 2
    assert sender.pace.sending().requests[Lane.LARGE] == 0


async def test_who_is_cancelled_in_a_turn_gives_its_place_back() -> None:
    sender = Sender()
    task = sender.send(7, Lane.LARGE)
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sender.pace.sending().requests[Lane.LARGE] == 0
    assert sender.pace.sending().places == START


# ---- memory


async def test_small_files_find_memory_while_large_ones_have_all_that_is_theirs() -> None:
    budget, part = 48 * MIB, 16 * MIB
    buffers = FairBuffers(BufferPool(budget, part), budget, part)
    held = [await buffers.take(part, LARGE) for _ in range(2)]
    third = asyncio.create_task(buffers.take(part, LARGE))
    await settle()
    assert not third.done()
    small = [await buffers.take(MIB, SMALL) for _ in range(SMALL_BYTES // MIB)]
    buffers.give_back(held.pop(), clean=True)
    held.append(await third)
    for buffer in held + small:
        buffers.give_back(buffer, clean=False)
    whole = await buffers.take(budget + 1, LARGE)  # larger than all there is: alone
    buffers.give_back(whole, clean=True)


async def test_small_files_leave_memory_to_a_large_one_that_waits() -> None:
    budget, part = 40 * MIB, 16 * MIB
    buffers = FairBuffers(BufferPool(budget, part), budget, part)
    small = [await buffers.take(4 * MIB, SMALL) for _ in range(10)]
    large = asyncio.create_task(buffers.take(part, LARGE))
    more = asyncio.create_task(buffers.take(4 * MIB, SMALL))
    for _ in range(4):
        await settle()
        assert not large.done()
        assert not more.done()
        buffers.give_back(small.pop(), clean=True)
    buffers.give_back(await large, clean=True)
    for buffer in [*small, await more]:
        buffers.give_back(buffer, clean=True)
