"""Work in order on a pool: one thing after the other, beside what else there is, and no thread kept for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Event, current_thread

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.edge.threads import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(3, "test")
    yield pool
    pool.close()


async def test_what_is_submitted_is_done_in_order(pool: Pool) -> None:
    done: list[list[int]] = [[], [], [], []]
    strands = [pool.strand() for _ in done]
    futures = [strands[n % 4].submit(done[n % 4].append, n) for n in range(400)]
    await asyncio.gather(*futures)
    assert done == [list(range(first, 400, 4)) for first in range(4)]


async def test_the_next_begins_although_the_loop_is_busy(pool: Pool) -> None:
    strand, second = pool.strand(), Event()
    strand.submit(int)
    strand.submit(second.set)
    assert second.wait(10), "the second waits for the loop, which waits for it"


async def test_a_strand_without_work_keeps_no_thread(pool: Pool) -> None:
    for strand in [pool.strand() for _ in range(10)]:
        await strand.submit(int)
    threads = {await pool.run(current_thread) for _ in range(50)}
    assert threads  # three threads, ten strands: one that kept its thread would leave none to answer


async def test_one_that_is_at_work_leaves_the_other_threads_alone(pool: Pool) -> None:
    strand, held = pool.strand(), Event()
    futures = [strand.submit(held.wait, 10), strand.submit(held.wait, 10), strand.submit(held.wait, 10)]
    await pool.run(held.set)
    assert await asyncio.gather(*futures) == [True] * 3


async def test_a_failure_is_its_own_callers_alone(pool: Pool) -> None:
    strand = pool.strand()
    failed, after = strand.submit(int, "x"), strand.submit(int, "7")
    with pytest.raises(ValueError, match="'x'"):
        await failed
    assert await after == 7


async def test_what_is_cancelled_is_done_all_the_same_and_in_its_turn(pool: Pool) -> None:
    done: list[int] = []
    strand, held = pool.strand(), Event()
    strand.submit(held.wait, 10)
    strand.submit(done.append, 1).cancel()
    last = strand.submit(done.append, 2)
    held.set()
    await last
    assert done == [1, 2]


async def test_a_pool_that_is_closed_takes_nothing_and_finishes_what_it_took() -> None:
    done: list[int] = []
    pool = Pool(1, "test")
    strand = pool.strand()
    last = [strand.submit(done.append, n) for n in range(50)][-1]
    await asyncio.to_thread(pool.close)
    await last
    assert done == list(range(50))
    with pytest.raises(MLDashError) as refused:
        strand.submit(int)
    assert refused.value.code is Code.SHUTTING_DOWN
