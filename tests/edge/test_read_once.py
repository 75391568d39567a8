"""How much of an object in a folder is read to compare it with the catalog, to audit it, or to see that it is there.

The kernel counts what this process reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.states import State
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.audit import Audit, Audited
from ml_dashd.ports import Session
from tests.edge.test_reconcile import MIB, OLD_MS, World, world

__all__ = ["world"]
SIZE = 40 * MIB


@pytest.fixture
def read() -> Callable[[], float]:
    """How many times the object's bytes were read since it was asked last."""

    def counted() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = counted()

    def times() -> float:
        nonlocal before
        was, before = before, counted()
        return (before - was) / SIZE

    return times


async def large(world: World) -> FileRecord:
    """An object of several ranges, which says of itself whose it is and nothing of its content."""
    record = await world.put(replace(world.record(7), sha256=None))
    path = world.root / (record.key or "")
    path.write_bytes(os.urandom(SIZE))
    os.utime(path, (OLD_MS / 1000, OLD_MS / 1000))
    return replace(record, size_bytes=SIZE)


async def test_what_is_recorded_is_read_once_and_what_is_tried_not_at_all(world: World, read) -> None:
    record = await large(world)
    read()
    tried = await world.all_of_it(mend=False)
    assert [finding.outcome for finding in tried.findings] == ["recorded"]
    assert read() < 0.1
    await world.all_of_it()
    assert (await world.catalog.get([record.id]))[0].size_bytes == SIZE
    assert 1 <= read() < 1.1


async def test_what_has_another_size_or_is_there_again_is_not_read(world: World, read) -> None:
    record = await large(world)
    await world.catalog.commit([replace(record, sha256="0" * 64, size_bytes=SIZE + 1)])
    read()
    step = await world.all_of_it()
    assert [finding.kind for finding in step.findings] == ["resized"]
    assert read() < 0.1


async def test_an_audit_reads_once(world: World, read) -> None:
    record = await large(world)

    class Browse:
        async def get(self, *_: Any) -> list[Job]:
            return [Job(replace(record, sha256="0" * 64), Pin(PinKind.NONE), state=State.DONE)]

    browse: Any = Browse()
    buffers = BufferPool(16 * MIB, 16 * MIB)
    audit = Audit(browse=browse, store=world.store, threads=world.threads, buffers=buffers, clock=SystemClock())

    async def report(_: Audited) -> None:
        return

    read()
    seen = await audit.run(Session(1, 0, 1), [7], report)
    assert len(seen.damaged) == 1
    assert 2 <= read() < 2.1, "once, and once more what is not as recorded"
