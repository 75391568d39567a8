"""Downloads: a file's bytes into a descriptor that the client has opened, verified on the way.

What is stored comes in ranges, several at once; a file that is still on its way is served from its pin, so a node
reads what it has just written.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count, pairwise

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.plan import MIB, PART_BYTES, Part, parts
from ml_dashd.core.retry import Fault, StoreError, decide
from ml_dashd.core.states import State
from ml_dashd.flow.assemble import Assembly, Spans, resize, unwritable, write
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.sources import open_source
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Buffers, Clock, Journal, Pins, Session, Source, Store, Threads

READ_STEP = MIB
"""Of a pinned file; the memory is beside the parts' budget, which a store that hangs may hold."""
PROGRESS_S = 0.2
"""Seconds between reports of progress: what came since the last one is fetched again when the daemon dies."""
RANGES_AT_ONCE = 4
"""Of one file. More measured no faster, and leave uploads no buffer."""
ATTEMPTS = 5
"""At a file whose pin was let go meanwhile; the least at a range."""
PATIENCE_S = 60.0
"""A store that has answered is waited for so long, once it sends nothing any more."""
FETCHES = (8, 32)
"""Downloads at once, of one user and of all; each holds two descriptors and a read step."""

Report = Callable[[int, int, Spans], Awaitable[None]]
"""Takes the bytes that are there, of how many, and where they are."""


class Fetch:
    """Writes files out."""

    def __init__(
        self,
        *,
        browse: Browse,
        journal: Journal,
        store: Store,
        pins: Pins,
        threads: Threads,
        buffers: Buffers,
        clock: Clock,
        part_bytes: int,
    ) -> None:
        self._browse = browse
        self._journal = journal
        self._store = store
        self._pins = pins
        self._threads = threads
        self._buffers = buffers
        self._clock = clock
        self._range_bytes = min(part_bytes, PART_BYTES)
        self._turns = Turns(*FETCHES)

    async def run(
        self, session: Session, file_id: int, descriptor: int, have: Sequence[int], report: Report
    ) -> tuple[int, str]:
        """Fills the descriptor from offset 0; returns the size and the SHA-256, which is the recorded one.

        `have` are offsets, start and end in turn, between which an earlier call has filled it: those are read there,
        and not fetched. Raises CHECKSUM_MISMATCH when the stored bytes are not the recorded ones, twice. Idempotent.
        """
        _check_writable(descriptor)
        spans = _spans(have)
        async with self._turns.of(session.uid):
            return await self._try(session, file_id, descriptor, spans, report)

    async def _try(
        self, session: Session, file_id: int, descriptor: int, spans: Spans, report: Report
    ) -> tuple[int, str]:
        damaged = 0
        for attempt in range(1, ATTEMPTS + 1):
            job = await self._find(session, file_id)
            try:
                return await self._write(session, job, descriptor, spans, report)
            except MLDashError as failed:
                damaged += failed.code is Code.CHECKSUM_MISMATCH
                if failed.code not in (Code.SOURCE_LOST, Code.CHECKSUM_MISMATCH) or damaged > 1 or attempt == ATTEMPTS:
                    raise  # else its pin was let go in this moment, or the bytes were damaged on the way
            spans = ()
        raise AssertionError("the last attempt returns or raises")

    async def _find(self, session: Session, file_id: int) -> Job:
        found = await self._browse.get(session, [file_id])
        if not found or found[0].record.deleted_ms is not None or found[0].cancel_requested:
            raise error(Code.UNKNOWN_FILE, f"no file has the id {file_id}")
        job = found[0]
        if job.trouble is not None and job.trouble.code in (Code.SOURCE_CHANGED, Code.SOURCE_LOST):
            raise error(job.trouble.code, job.trouble.message)
        return job

    async def _still_pinned(self, session: Session, job: Job, digest: str) -> Job:
        """What was read from a pin counts only if the pin was kept meanwhile: a slot is written to again afterwards."""
        now = await self._find(session, job.id)
        if now.state is State.DONE and now.record.sha256 != digest:
            raise error(Code.SOURCE_LOST, f"{job.record.path} (file {job.id}) was stored while it was read")
        return now

    async def _write(
        self, session: Session, job: Job, descriptor: int, spans: Spans, report: Report
    ) -> tuple[int, str]:
        size, stored = job.record.size_bytes, job.state is State.DONE or job.pin.kind is PinKind.OBJECT
        if stored and not spans and size > self._range_bytes:
            shared = await self._store.share(_key_of(job), descriptor)
            spans = ((0, size),) if shared else ()  # the bytes are there, and only read
        kept = await self._threads.run(partial(resize, descriptor, size, keep=stored and bool(spans)))
        if stored:
            digest = await self._from_store(job, descriptor, spans if kept else (), report)
        else:
            digest = await self._from_pin(job, descriptor, report)
            job = await self._still_pinned(session, job, digest)
        if job.record.sha256 not in (None, digest):
            raise error(
                Code.CHECKSUM_MISMATCH,
                f"{_name(job)} came back as {size} bytes with SHA-256 {digest}, recorded is {job.record.sha256}",
            )
        return size, digest

    # ---- from the store

    async def _from_store(self, job: Job, descriptor: int, spans: Spans, report: Report) -> str:
        """All ranges; the bytes that come, and what is read again, are hashed in their order."""
        size = job.record.size_bytes
        assembly = Assembly(descriptor, size, self._range_bytes, spans, self._threads)
        source = _Stream(job, assembly, last_s=self._clock.monotonic() if spans else None)
        missing, reported = assembly.missing(), self._clock.monotonic()
        running, ended = {asyncio.create_task(assembly.catch_up())}, set[asyncio.Task[None]]()
        try:
            while running:
                while len(running) < RANGES_AT_ONCE and (part := next(missing, None)) is not None:
                    running.add(asyncio.create_task(self._fetch(source, part)))
                ended, running = await asyncio.wait(running, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
                if running and self._clock.monotonic() - reported >= PROGRESS_S:
                    reported = self._clock.monotonic()
                    await report(assembly.done_bytes, size, assembly.spans())
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, *ended, return_exceptions=True)
        return assembly.digest

    async def _fetch(self, source: _Stream, part: Part) -> None:
        buffer = await self._buffers.take(part.size_bytes)
        try:
            await self._read(source, part, buffer)
            await source.assembly.put(part, buffer)
        finally:
            self._buffers.give_back(buffer)

    async def _read(self, source: _Stream, part: Part, buffer: memoryview) -> None:
        """One range, as often as it takes: a connection that breaks costs no other."""

        def arrived(size_bytes: int) -> None:
            source.last_s = self._clock.monotonic()
            source.assembly.note(part, size_bytes)

        for attempt in count(1):
            try:
                await self._store.read(_key_of(source.job), part.offset, buffer, arrived)
            except StoreError as failure:
                source.assembly.forget(part)
                await self._wait_or_raise(source, failure, attempt)
            else:
                return

    async def _wait_or_raise(self, source: _Stream, failure: StoreError, attempt: int) -> None:
        if failure.fault is Fault.CORRUPT:
            raise error(Code.CHECKSUM_MISMATCH, f"{_name(source.job)}: {failure.message}") from None
        decision = decide(failure.fault, failure.message, attempt, self._clock.jitter())
        answered = source.last_s is not None
        passes = failure.fault in (Fault.TRANSIENT, Fault.THROTTLED) or (
            answered and failure.fault is Fault.UNREACHABLE
        )
        silent = source.last_s is None or self._clock.monotonic() - source.last_s >= PATIENCE_S
        if not passes or (attempt >= ATTEMPTS and silent):
            raise error(decision.trouble.code, decision.trouble.message) from None
        await self._clock.sleep(decision.delay_ms / 1000)

    # ---- from the pin

    async def _from_pin(self, job: Job, descriptor: int, report: Report) -> str:
        source = await open_source(job, self._journal, self._pins, self._threads)
        try:
            sha256, reported = hashlib.sha256(), self._clock.monotonic()
            buffer = memoryview(bytearray(min(source.size_bytes, READ_STEP)))
            for part in parts(source.size_bytes, READ_STEP):
                await self._threads.run(_copy, source, part, buffer, descriptor, sha256)
                if self._clock.monotonic() - reported >= PROGRESS_S:
                    reported = self._clock.monotonic()
                    await report(part.offset + part.size_bytes, source.size_bytes, ())
        finally:
            source.close()
        return sha256.hexdigest()


class _Stream:
    """A stored file that is being fetched. `last_s` is when the last of its bytes came, None before the first."""

    def __init__(self, job: Job, assembly: Assembly, last_s: float | None) -> None:
        self.job = job
        self.assembly = assembly
        self.last_s = last_s


def _key_of(job: Job) -> str:
    """Where a file's bytes are in the store: of a duplicate that is on its way, its source's."""
    return job.pin.source if job.pin.kind is PinKind.OBJECT else job.record.key or ""


def _name(job: Job) -> str:
    return f"{job.record.path} (file {job.id})"


def _copy(source: Source, part: Part, buffer: memoryview, descriptor: int, sha256: hashlib._Hash) -> None:
    piece = buffer[: part.size_bytes]
    source.read(part.offset, piece, (sha256,))
    write(descriptor, part.offset, piece, None)


def _spans(have: Sequence[int]) -> Spans:
    """Offsets, start and end in turn, as the client sends them."""
    if len(have) % 2 or any(before >= after for before, after in pairwise(have)):
        raise error(Code.INVALID_ARGUMENT, "what is there already is no list of ranges", "pass what Progress said")
    return list(zip(have[::2], have[1::2], strict=True))


def _check_writable(descriptor: int) -> None:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as failure:
        raise unwritable(failure) from None
    if not stat.S_ISREG(mode):
        raise error(Code.INVALID_ARGUMENT, "the destination is not a regular file")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND:  # which writes at the end, whatever the offset
        what = "the destination was not opened for reading and writing, or only for appending"
        raise error(Code.INVALID_ARGUMENT, what)
