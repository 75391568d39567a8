"""Buffers: under one budget, each at its turn, and their pages used again."""

from __future__ import annotations

import asyncio

import pytest

from ml_dashd.edge.buffers import BufferPool

KIB, MIB = 1 << 10, 1 << 20


async def soon(task: asyncio.Task[memoryview]) -> bool:
    """Whether it has its buffer once everybody has had a turn."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task.done()


@pytest.mark.parametrize("size", [0, 1, 100 * KIB, 128 * KIB, MIB, 9 * MIB, 16 * MIB, 20 * MIB])
async def test_a_buffer_has_the_size_that_was_asked_for_and_can_be_written(size: int) -> None:
    buffer = await BufferPool(64 * MIB).take(size)
    buffer[:] = b"x" * size
    assert bytes(buffer[-1:]) == b"x"[:size]


@pytest.mark.parametrize(
    ("size", "next_size"), [(MIB, MIB), (700 * KIB, MIB), (16 * MIB, 16 * MIB), (16 * MIB, 7 * MIB)]
)
async def test_pages_are_used_again(size: int, next_size: int) -> None:
    pool = BufferPool(64 * MIB)
    first = await pool.take(size)
    first[:1] = b"1"
    pool.give_back(first)
    assert bytes((await pool.take(next_size))[:1]) == b"1", "its pages are fresh"


async def test_a_little_one_leaves_the_large_ones_alone() -> None:
    """Who asks for one of those next would have to wait for fresh pages."""
    pool = BufferPool(64 * MIB)
    first = await pool.take(16 * MIB)
    first[:1] = b"1"
    pool.give_back(first)
    assert bytes((await pool.take(MIB))[:1]) == b"\0"
    assert bytes((await pool.take(16 * MIB))[:1]) == b"1"


async def test_what_may_still_be_on_the_line_is_not_used_again() -> None:
    """After a request that broke off, its transport may hold slices of the buffer."""
    pool = BufferPool(64 * MIB)
    first = await pool.take(MIB)
    first[:1] = b"1"
    pool.discard(first)
    assert bytes((await pool.take(MIB))[:1]) == b"\0"


async def test_nobody_gets_more_than_the_budget_and_who_came_first_goes_first() -> None:
    pool = BufferPool(32 * MIB)
    held = [await pool.take(16 * MIB), await pool.take(15 * MIB)]
    large = asyncio.create_task(pool.take(8 * MIB))
    small = asyncio.create_task(pool.take(MIB))
    assert not await soon(large)
    assert not small.done(), "it has overtaken the one before it"
    pool.give_back(held.pop())
    assert await soon(large)
    assert small.done()


async def test_who_is_cancelled_leaves_the_queue() -> None:
    pool = BufferPool(16 * MIB)
    held = await pool.take(16 * MIB)
    waiting = asyncio.create_task(pool.take(16 * MIB))
    after = asyncio.create_task(pool.take(MIB))
    assert not await soon(waiting)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    pool.give_back(held)
    assert await soon(after)


async def test_one_who_is_cancelled_with_a_turn_gives_it_on() -> None:
    pool = BufferPool(16 * MIB)
    held = await pool.take(16 * MIB)
    waiting = asyncio.create_task(pool.take(16 * MIB))
    after = asyncio.create_task(pool.take(16 * MIB))
    assert not await soon(waiting)
    pool.give_back(held)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await soon(after)


async def test_more_than_the_whole_budget_is_granted_alone() -> None:
    pool = BufferPool(MIB)
    held = await pool.take(16 * MIB)
    waiting = asyncio.create_task(pool.take(1))
    assert not await soon(waiting)
    pool.give_back(held)
    assert await soon(waiting)


async def test_what_is_idle_makes_room_for_another_size() -> None:
    """Else each size would keep a budget of its own."""
    pool = BufferPool(32 * MIB)
    ones = [await pool.take(MIB) for _ in range(32)]
    ones[0][:1] = b"1"
    for one in ones:
        pool.give_back(one)
    large = [await pool.take(16 * MIB), await pool.take(16 * MIB)]
    for one in large:
        pool.give_back(one)
    assert bytes((await pool.take(MIB))[:1]) == b"\0", "the small ones are still mapped"
