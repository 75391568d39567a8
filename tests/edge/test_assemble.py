"""A download's destination: in whatever order its ranges come, the file and its SHA-256 are those of the whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.plan import MIB, Part, parts
from ml_dashd.edge.threads import Pool
from ml_dashd.flow import assemble
from ml_dashd.flow.assemble import Assembly, Spans, resize

EACH = MIB + 5
SIZE = 9 * EACH + 77
CONTENT = random.Random(0).randbytes(SIZE)
PLAN = [*parts(SIZE, EACH)]
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(4, "test")
    yield pool
    pool.close()


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "back", os.O_RDWR | os.O_CREAT)
    resize(descriptor, SIZE, keep=False)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def assemble_from(destination: int, threads: Pool) -> Callable[[Spans], Assembly]:
    return lambda have: Assembly(destination, SIZE, EACH, have, threads)


def bytes_of(part: Part) -> memoryview:
    return memoryview(bytearray(CONTENT[part.offset : part.offset + part.size_bytes]))


async def put(assembly: Assembly, part: Part) -> None:
    content = bytes_of(part)
    await assembly.put(part, content)
    content[:] = bytes(len(content))  # the memory is another's now


def written(descriptor: int) -> bytes:
    return os.pread(descriptor, SIZE + 1, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_ranges_in_any_order(assemble_from: Callable[[Spans], Assembly], destination: int, seed: int) -> None:
    chance = random.Random(seed)
    assembly = assemble_from(())
    order = [*PLAN]
    chance.shuffle(order)
    on_their_way: set[asyncio.Task[None]] = set()
    for part in order:
        on_their_way.add(asyncio.create_task(put(assembly, part)))
        if len(on_their_way) >= chance.choice((1, 4, 8)):
            # The one before may have to wait for one that has not come.
            _, on_their_way = await asyncio.wait(on_their_way, timeout=0.001)
    await asyncio.gather(*on_their_way)
    assert assembly.digest == DIGEST
    assert written(destination) == CONTENT
    assert assembly.spans() == [(0, SIZE)]
    assert [*assembly.missing()] == []
    assert assembly.done_bytes == SIZE


async def test_a_range_that_comes_early_is_let_go_at_once(assemble_from: Callable[[Spans], Assembly]) -> None:
    """Its memory waits for nothing while one before it has not come."""
    assembly = assemble_from(())
    for part in PLAN[1:]:
        await put(assembly, part)
    assert assembly.spans() == [(EACH, SIZE)]
    assert [*assembly.missing()] == PLAN[:1]
    await put(assembly, PLAN[0])
    assert assembly.digest == DIGEST


async def test_what_comes_in_order_is_not_read_again(
    assemble_from: Callable[[Spans], Assembly], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "_hash", None)
    assembly = assemble_from(())
    await asyncio.gather(*(put(assembly, part) for part in PLAN[:4]))
    for part in PLAN[4:]:
        await put(assembly, part)
    assert assembly.digest == DIGEST


async def test_it_goes_on_from_what_is_there(assemble_from: Callable[[Spans], Assembly], destination: int) -> None:
    """What an earlier one has written is read; a range that is there in part comes again."""
    first = assemble_from(())
    for part in (PLAN[0], PLAN[1], PLAN[4], PLAN[9]):
        await put(first, part)
    assert first.spans() == [(0, 2 * EACH), (4 * EACH, 5 * EACH), (9 * EACH, SIZE)]
    second = assemble_from([(0, 2 * EACH), (4 * EACH + 1, 5 * EACH), (9 * EACH, SIZE)])
    assert [part.number for part in second.missing()] == [3, 4, 5, 6, 7, 8, 9]
    await asyncio.gather(second.catch_up(), *(put(second, part) for part in second.missing()))
    assert second.digest == DIGEST
    assert written(destination) == CONTENT


async def test_what_is_on_its_way_counts(assemble_from: Callable[[Spans], Assembly]) -> None:
    assembly = assemble_from(())
    assembly.note(PLAN[0], 10)
    assembly.note(PLAN[1], 5)
    assembly.note(PLAN[0], 7)
    assert assembly.done_bytes == 22
    assembly.forget(PLAN[0])
    assert assembly.done_bytes == 5
    await put(assembly, PLAN[0])
    assert assembly.done_bytes == EACH + 5
    assert assembly.spans() == [(0, EACH)]


async def test_a_destination_that_is_cut_short_meanwhile(
    assemble_from: Callable[[Spans], Assembly], destination: int
) -> None:
    assembly = assemble_from([(0, SIZE)])
    os.ftruncate(destination, SIZE - 1)
    with pytest.raises(MLDashError) as raised:
        await assembly.catch_up()
    assert raised.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("there", [0, 3, SIZE - 1, SIZE, SIZE + 9])
def test_a_destination_gets_its_blocks(tmp_path: Path, there: int) -> None:
    """What is kept is what has the right size; anything else begins anew, with nothing of the old in it."""
    (tmp_path / "back").write_bytes(b"x" * there)
    descriptor = os.open(tmp_path / "back", os.O_RDWR)
    assert resize(descriptor, SIZE, keep=True) is (there == SIZE)
    content: Any = written(descriptor)
    assert content == (b"x" if there == SIZE else b"\0") * SIZE
    assert resize(descriptor, SIZE, keep=False) is False
    assert written(descriptor) == bytes(SIZE)
    assert os.fstat(descriptor).st_blocks * 512 >= SIZE
    os.close(descriptor)
