"""Stored bytes read again, and compared with what was recorded when they were stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeVar

from ml_dash.errors import Code, error
from ml_dashd.core.model import Job, Trouble, missing
from ml_dashd.core.plan import PART_BYTES, parts
from ml_dashd.core.retry import Fault, StoreError, decide
from ml_dashd.core.states import State
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Buffers, Clock, Session, Store, Threads

FILES_AT_ONCE = 4
"""Of one request. Each holds one buffer of the parts' budget at a time, so that none waits for another's."""
AUDITS = (2, 4)
"""Requests at once, of one user and of all."""
PROGRESS_S = 0.5
ATTEMPTS = 5
"""At a request that the store does not answer."""
READINGS = 2
"""Of a file whose bytes are wrong: what was damaged on the way is right the second time."""
RESTORE = "its bytes are damaged in the store: restore them there, or delete this version"

T = TypeVar("T")
Report = Callable[["Audited"], Awaitable[None]]


@dataclass
class Audited:
    """What has come out so far. The totals are of what is to be read."""

    total_files: int = 0
    total_bytes: int = 0
    files: int = 0
    read: dict[int, int] = field(default_factory=dict)
    """How much of each file, by its id."""
    damaged: list[tuple[Job, Trouble]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(self.read.values())


class Audit:
    """Verifies what is stored, whatever the store says of it."""

    def __init__(self, *, browse: Browse, store: Store, threads: Threads, buffers: Buffers, clock: Clock) -> None:
        self._browse = browse
        self._store = store
        self._threads = threads
        self._buffers = buffers
        self._clock = clock
        self._turns = Turns(*AUDITS)

    async def run(self, session: Session, ids: Sequence[int], report: Report) -> Audited:
        """Reads those of these files that are stored; raises UNKNOWN_FILE, or why the store can't be asked."""
        found = await self._browse.get(session, ids)
        known = {seen.id for seen in found}
        if missing := [one for one in ids if one not in known]:
            raise error(Code.UNKNOWN_FILE, f"no file has the id {missing[0]}")
        stored = [seen for seen in found if seen.state is State.DONE and seen.record.deleted_ms is None]
        seen = Audited(len(stored), sum(job.record.size_bytes for job in stored))
        async with self._turns.of(session.uid):
            await self._read_all(session, stored, seen, report)
        return seen

    async def _read_all(self, session: Session, jobs: Sequence[Job], seen: Audited, report: Report) -> None:
        waiting, running, ended = iter(jobs), set[asyncio.Task[None]](), set[asyncio.Task[None]]()
        try:
            while True:
                while len(running) < FILES_AT_ONCE and (job := next(waiting, None)) is not None:
                    running.add(asyncio.create_task(self._check(session, job, seen), name=f"verify {job.id}"))
                if not running:
                    return
                ended, running = await asyncio.wait(running, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
                await report(seen)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, *ended, return_exceptions=True)

    async def _check(self, session: Session, job: Job, seen: Audited) -> None:
        trouble: Trouble | None = None
        for _ in range(READINGS):
            trouble = await self._compare(job, seen)
            if trouble is None or trouble.code is Code.OBJECT_MISSING:
                break
        if trouble is not None and not await self._is_there(session, job):
            return
        seen.files += 1
        if trouble is not None:
            seen.damaged.append((job, trouble))

    async def _is_there(self, session: Session, job: Job) -> bool:
        """Bytes that were deleted meanwhile may be gone by now."""
        return any(now.record.deleted_ms is None for now in await self._browse.get(session, [job.id]))

    async def _compare(self, job: Job, seen: Audited) -> Trouble | None:
        """What is wrong with its bytes."""
        try:
            digest = await self._sha256(job, seen)
        except StoreError as failure:
            if failure.fault is Fault.MISSING:
                return missing(job.record)
            if failure.fault is Fault.CORRUPT:
                return Trouble(Code.CHECKSUM_MISMATCH, failure.message, RESTORE)
            trouble = decide(failure.fault, failure.message, ATTEMPTS, 0.0).trouble
            raise error(trouble.code, trouble.message) from None
        if digest == job.record.sha256:
            return None
        what = f"its SHA-256 in the store is {digest}, recorded is {job.record.sha256}"
        return Trouble(Code.CHECKSUM_MISMATCH, what, RESTORE)

    async def _sha256(self, job: Job, seen: Audited) -> str:
        sha256, size = hashlib.sha256(), job.record.size_bytes
        seen.read[job.id] = 0
        stated = await self._again(partial(self._store.head, job.record.key or "", glance=True))
        if stated is None:
            raise StoreError(Fault.MISSING, "there is no such object")
        if stated.size_bytes != size:
            raise StoreError(Fault.CORRUPT, f"it has {stated.size_bytes} bytes in the store, recorded are {size}")
        for part in parts(size, PART_BYTES):
            buffer = await self._buffers.take(part.size_bytes)
            try:
                read = partial(self._store.read, job.record.key or "", part.offset, buffer, _unwatched)
                await self._again(read)
                await self._threads.run(sha256.update, buffer)
            finally:
                self._buffers.give_back(buffer)
            seen.read[job.id] += part.size_bytes
        return sha256.hexdigest()

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """As often as it takes, where the store is only busy."""
        for attempt in count(1):
            try:
                return await ask()
            except StoreError as failure:
                if failure.fault not in (Fault.TRANSIENT, Fault.THROTTLED) or attempt == ATTEMPTS:
                    raise
                decision = decide(failure.fault, failure.message, attempt, self._clock.jitter())
                await self._clock.sleep(decision.delay_ms / 1000)
        raise AssertionError("the last attempt returns or raises")


def _unwatched(size_bytes: int) -> None:
    """Progress is by ranges."""
