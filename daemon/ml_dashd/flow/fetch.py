"""Downloads: a file's bytes into a descriptor that the client has opened, verified on the way.

A file that is still on its way is served from its pin, so a node reads what it has just written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job
from ml_dashd.core.plan import MIB, parts
from ml_dashd.core.retry import Fault, StoreError, decide
from ml_dashd.core.states import State
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.sources import open_source
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Clock, Journal, Pins, Session, Store, Threads

READ_STEP = 4 * MIB
PROGRESS_S = 0.2
"""Seconds between reports of progress."""
ATTEMPTS = 5
FETCHES = (8, 32)
"""Downloads at once, of one user and of all; each holds two descriptors and a read step."""

Report = Callable[[int, int], Awaitable[None]]


class Fetch:
    """Writes files out."""

    def __init__(
        self, *, browse: Browse, journal: Journal, store: Store, pins: Pins, threads: Threads, clock: Clock
    ) -> None:
        self._browse = browse
        self._journal = journal
        self._store = store
        self._pins = pins
        self._threads = threads
        self._clock = clock
        self._turns = Turns(*FETCHES)

    async def run(self, session: Session, file_id: int, descriptor: int, report: Report) -> tuple[int, str]:
        """Fills the descriptor from offset 0; returns the size and the SHA-256, which is the recorded one.

        Raises CHECKSUM_MISMATCH when the stored bytes are not the recorded ones. Idempotent.
        """
        _check_writable(descriptor)
        async with self._turns.of(session.uid):
            return await self._try(session, file_id, descriptor, report)

    async def _try(self, session: Session, file_id: int, descriptor: int, report: Report) -> tuple[int, str]:
        for attempt in range(1, ATTEMPTS + 1):
            job = await self._find(session, file_id)
            try:
                return await self._write(session, job, descriptor, report)
            except StoreError as failure:
                decision = decide(failure.fault, failure.message, attempt, self._clock.jitter())
                if failure.fault not in (Fault.TRANSIENT, Fault.THROTTLED) or attempt == ATTEMPTS:
                    raise error(decision.trouble.code, decision.trouble.message) from None
                await self._clock.sleep(decision.delay_ms / 1000)
            except OSError as failure:
                if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                what = f"there is no room for {job.record.size_bytes} bytes where {job.record.path} was to go"
                raise error(Code.DISK_FULL, what, "free space there, or download it to another disk") from None
            except MLDashError as lost:
                if lost.code is not Code.SOURCE_LOST or attempt == ATTEMPTS:
                    raise  # else it was stored in this moment, and its pin let go
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

    async def _write(self, session: Session, job: Job, descriptor: int, report: Report) -> tuple[int, str]:
        size, done, sha256 = job.record.size_bytes, 0, hashlib.sha256()
        last_report = self._clock.monotonic()
        await self._threads.run(_resize, descriptor, size)
        async with aclosing(self._from_store(job) if job.state is State.DONE else self._from_pin(job)) as pieces:
            async for piece in pieces:
                await self._threads.run(_put, descriptor, piece, done, sha256)
                done += len(piece)
                if self._clock.monotonic() - last_report >= PROGRESS_S:
                    last_report = self._clock.monotonic()
                    await report(done, size)
        digest = sha256.hexdigest()
        if job.state is not State.DONE:
            job = await self._still_pinned(session, job, digest)
        recorded = job.record.sha256
        if done != size or recorded not in (None, digest):
            raise error(
                Code.CHECKSUM_MISMATCH,
                f"{job.record.path} (file {job.id}) came back as {done} bytes with SHA-256 {digest}, "
                f"recorded are {size} bytes with {recorded}",
            )
        return size, digest

    def _from_store(self, job: Job) -> AsyncGenerator[bytes | memoryview]:
        return self._store.get(job.record.key or "", 0, job.record.size_bytes)

    async def _from_pin(self, job: Job) -> AsyncGenerator[bytes | memoryview]:
        source = await open_source(job, self._journal, self._pins, self._threads)
        try:
            for part in parts(source.size_bytes, READ_STEP):
                piece = memoryview(bytearray(part.size_bytes))
                await self._threads.run(source.read, part.offset, piece, ())
                yield piece
        finally:
            source.close()


def _check_writable(descriptor: int) -> None:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as failure:
        raise _unwritable(failure) from None
    if not stat.S_ISREG(mode):
        raise error(Code.INVALID_ARGUMENT, "the destination is not a regular file")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND:  # which writes at the end, whatever the offset
        raise error(Code.INVALID_ARGUMENT, "the destination was not opened for writing, or only for appending")


def _resize(descriptor: int, size_bytes: int) -> None:
    """The destination at its full size from the start: a full disk is an error before anything is fetched."""
    try:
        os.ftruncate(descriptor, 0)
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as failure:
        raise _unwritable(failure) from None


def _put(descriptor: int, piece: bytes | memoryview, offset: int, sha256: hashlib._Hash) -> None:
    sha256.update(piece)
    view = memoryview(piece)
    while view:
        try:
            count = os.pwrite(descriptor, view, offset)
        except OSError as failure:
            raise _unwritable(failure) from None
        view, offset = view[count:], offset + count


def _unwritable(failure: OSError) -> MLDashError:
    """The destination is the caller's: its trouble is no defect of the daemon's."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.DISK_FULL, "there is no room for the file at its destination", "free space there")
    return error(Code.INVALID_ARGUMENT, f"the destination can't be written: {failure.strerror}", "pass a plain file")
