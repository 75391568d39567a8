"""The destination of a download: ranges are put in as they come, and hashed in the order of the file.

A range is hashed while it is in memory where all before it are there, else it is written, its memory let go, and read
again, from the page cache, once the gap is closed. So a slow range holds up neither the others nor their memory.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.plan import MIB, Part, parts
from ml_dashd.ports import Threads

STEP = MIB
"""Hashed and written at a time, so that it is written while it is in the cache."""
NEAR = 4
"""So many ranges before it may be hashed while a range waits in memory: some 10 ms each."""

Spans = Sequence[tuple[int, int]]
"""Where a file's bytes are there: from, and up to."""


class Assembly:
    """One destination of `size_bytes`, in ranges of `each`. What `have` covers is there, and is read again."""

    def __init__(self, descriptor: int, size_bytes: int, each: int, have: Spans, threads: Threads) -> None:
        self._descriptor = descriptor
        self._plan = {part.number: part for part in parts(size_bytes, each) if part.size_bytes}
        self._threads = threads
        self._sha256 = hashlib.sha256()
        self._next = 1
        """The range that is hashed next, or now."""
        self._moved = asyncio.Condition()
        self._coming: dict[int, int] = {}
        """How much of a range that is being fetched has come."""
        self._there: set[int] = set()
        self._there_bytes = 0
        self._ends: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        """What is in the file, as spans: the end of each by its start, and the other way round."""
        for part in self._plan.values():
            if any(start <= part.offset and part.offset + part.size_bytes <= end for start, end in have):
                self._settle(part)
        self._written = set(self._there)
        """Ranges that are in the file and not hashed."""
        self._came = set(self._there)

    @property
    def digest(self) -> str:
        """The hex SHA-256 of what was hashed: of the whole, once every range is there."""
        return self._sha256.hexdigest()

    @property
    def done_bytes(self) -> int:
        """What is there or has come."""
        return self._there_bytes + sum(self._coming.values())

    def missing(self) -> Iterator[Part]:
        """The ranges that are not there, in order."""
        return (part for number, part in self._plan.items() if number not in self._there)

    def spans(self) -> list[tuple[int, int]]:
        """What is in the file, in order; what touches is one."""
        return sorted(self._ends.items())

    def note(self, part: Part, count: int) -> None:
        """So many more bytes of a range have come."""
        self._coming[part.number] = self._coming.get(part.number, 0) + count

    def forget(self, part: Part) -> None:
        """What has come of a range is lost: it comes again."""
        self._coming.pop(part.number, None)

    async def put(self, part: Part, content: memoryview) -> None:
        """Puts a range in. Its memory is not used any more when this returns. Raises the destination's trouble."""
        number = part.number
        before = range(self._next, number)
        self._came.add(number)
        if len(before) < NEAR and self._came.issuperset(before):
            async with self._moved:
                await self._moved.wait_for(lambda: self._next == number)
            await self._threads.run(write, self._descriptor, part.offset, content, self._sha256)
            self._settle(part)
            await self._advance()
        else:
            await self._threads.run(write, self._descriptor, part.offset, content, None)
            self._settle(part)
            self._written.add(number)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Hashes what is written and has no gap before it."""
        while self._next in self._written:
            self._written.remove(self._next)  # it is ours: whoever looks now finds nothing to do
            await self._threads.run(_hash, self._descriptor, self._plan[self._next], self._sha256)
            await self._advance()

    def _settle(self, part: Part) -> None:
        self.forget(part)
        self._there.add(part.number)
        self._there_bytes += part.size_bytes
        start = self._starts.pop(part.offset, part.offset)
        end = self._ends.pop(part.offset + part.size_bytes, part.offset + part.size_bytes)
        self._starts[end], self._ends[start] = start, end

    async def _advance(self) -> None:
        async with self._moved:
            self._next += 1
            self._moved.notify_all()


def write(descriptor: int, offset: int, content: memoryview, sha256: hashlib._Hash | None) -> None:
    """Writes bytes at their place, and feeds the hash with them. Blocks."""
    for start in range(0, len(content), STEP):
        piece = content[start : start + STEP]
        if sha256 is not None:
            sha256.update(piece)
        _pwrite(descriptor, offset + start, piece)


def resize(descriptor: int, size_bytes: int, *, keep: bool) -> bool:
    """Gives the destination its blocks: a full disk is an error before anything is fetched. Blocks.

    What is in it is kept on demand, and where it has that size already; returns whether it is.
    """
    try:
        if keep and os.fstat(descriptor).st_size == size_bytes:
            return True
        os.ftruncate(descriptor, 0)
        if size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as failure:
        raise unwritable(failure) from None
    return False


def unwritable(failure: OSError) -> MLDashError:
    """The destination is the caller's: its trouble is no defect of the daemon's."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.DISK_FULL, "there is no room for the file at its destination", "free space there")
    return error(Code.INVALID_ARGUMENT, f"the destination can't be written: {failure.strerror}", "pass a plain file")


def _pwrite(descriptor: int, offset: int, piece: memoryview) -> None:
    while piece:
        try:
            count = os.pwrite(descriptor, piece, offset)
        except OSError as failure:
            raise unwritable(failure) from None
        piece, offset = piece[count:], offset + count


def _hash(descriptor: int, part: Part, sha256: hashlib._Hash) -> None:
    room = memoryview(bytearray(min(STEP, part.size_bytes)))
    done = 0
    while done < part.size_bytes:
        try:
            count = os.preadv(descriptor, [room[: part.size_bytes - done]], part.offset + done)
        except OSError as failure:
            raise unwritable(failure) from None
        if not count:
            raise error(Code.INVALID_ARGUMENT, "the destination became shorter meanwhile", "leave it to the daemon")
        sha256.update(room[:count])
        done += count
