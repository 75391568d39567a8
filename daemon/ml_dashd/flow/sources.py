"""A job's source: opened wherever its pin keeps it, and read for its SHA-256 alone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.checksum import Digest, Digester
from ml_dashd.core.model import Algorithm, Job, Pin, PinKind
from ml_dashd.core.plan import MIB, parts
from ml_dashd.ports import Feedable, Journal, NotAnArchiveError, Pins, Source, Threads

log = logging.getLogger("ml_dashd.flow")

STEP = 4 * MIB


async def seal(job: Job, pins: Pins, threads: Threads) -> None:
    """Puts the checksums of an archive right, before anybody reads it, however often it is asked.

    One that is no archive is stored as its client has written it, which is told in the log.
    """
    if not job.seal:
        return
    steps = pins.sealing(job)
    try:
        while await threads.run(next, steps, None) is not None:
            pass
    except NotAnArchiveError as reason:
        log.warning("not_sealed", extra={"id": job.id, "path": job.record.path, "error": reason})


async def open_source(job: Job, journal: Journal, pins: Pins, threads: Threads) -> Source:
    """The pinned source, for the caller to close. Raises SOURCE_LOST or SOURCE_CHANGED when it is not as it was."""
    await seal(job, pins, threads)
    content = await journal.content(job) if job.pin.kind is PinKind.INLINE else b""
    opened: list[Source] = []
    try:
        await threads.run(lambda: opened.append(pins.open(job, content)))
    except asyncio.CancelledError:
        for source in opened:  # it came too late for whoever asked
            source.close()
        raise
    return opened[0]


@asynccontextmanager
async def kept_if_journaled(pin: Pin, file_id: int, journal: Journal, pins: Pins, disk: Threads) -> AsyncIterator[None]:
    """A new pin, which the block journals. Where that fails it is let go.

    What may be in the journal all the same stays, for the next start to decide.
    """
    try:
        yield
    except Exception:  # not CancelledError: the journal goes on, and may name the pin after all
        if not journal.unsure():
            await disk.run(pins.release, pin, file_id)
        raise


async def read_whole(job: Job, pins: Pins, threads: Threads, into: memoryview) -> tuple[Digest, str]:
    """Fills a buffer with a whole source that is not inline: its Digest and its hex SHA-256, in one turn of a thread.

    One that may have been written to unseen is read once more: what is the same both times was the same in between.
    Raises SOURCE_LOST or SOURCE_CHANGED.
    """
    await seal(job, pins, threads)

    def work() -> tuple[Digest, str]:
        source = pins.open(job, b"")
        try:
            sha256, digester = hashlib.sha256(), Digester(job.algorithm)
            source.read(0, into, (sha256, digester))
            read = digester.digest()
            if not source.check() and _crc64_of(source) != read.crc64nvme:
                raise changed(job)
        finally:
            source.close()
        return read, sha256.hexdigest()

    return await threads.run(work)


def changed(job: Job) -> MLDashError:
    """The error of a source that is not what it was."""
    return error(Code.SOURCE_CHANGED, f"{job.pin.source or job.record.path} was changed while it was on its way")


def check_handed(job: Job, sha256: str) -> None:
    """Raises SOURCE_CHANGED where the SHA-256 was known at the hand-off, and what was read has another."""
    if job.record.sha256 not in (None, sha256):
        name = job.pin.source or job.record.path
        raise error(Code.SOURCE_CHANGED, f"{name} is not what was handed over")


def _crc64_of(source: Source) -> int:
    digester = Digester(Algorithm.NONE)
    buffer = memoryview(bytearray(min(MIB, source.size_bytes)))
    for part in parts(source.size_bytes, MIB):
        source.read(part.offset, buffer[: part.size_bytes], (digester,))
    return digester.digest().crc64nvme


async def sha256_of(source: Source, threads: Threads) -> str:
    """The hex SHA-256 of a source as it is now. Raises SOURCE_CHANGED as reading does."""
    sha256 = hashlib.sha256()
    await _feed(source, threads, sha256)
    return sha256.hexdigest()


async def crc64_of(source: Source, threads: Threads) -> int:
    """The CRC64NVME of a source as it is now: a quarter of the work of its SHA-256. Raises SOURCE_CHANGED likewise."""
    digester = Digester(Algorithm.NONE)
    await _feed(source, threads, digester)
    return digester.digest().crc64nvme


async def _feed(source: Source, threads: Threads, digester: Feedable) -> None:
    """The memory is outside the parts' budget: who holds a part and waits for more of it may wait for ever."""
    buffer = memoryview(bytearray(min(STEP, source.size_bytes)))
    for part in parts(source.size_bytes, STEP):
        await threads.run(source.read, part.offset, buffer[: part.size_bytes], (digester,))
