"""Memory for parts: buffers under one budget."""

from __future__ import annotations

import asyncio
import mmap
from collections import deque

from ml_dashd.core.plan import PART_BYTES

SMALLEST_MAPPED = 128 * 1024
"""Below this a buffer is made of what the allocator has at hand."""


class BufferPool:
    """Buffers under one budget in bytes, mapped once and used again: fresh pages cost as much CPU as a hash.

    They come in powers of two, and one twice as large serves as well: the last part of a file is smaller than those
    before it, whose pages are there. A request larger than the whole budget is granted when nothing else is out, so
    that nothing waits for ever.
    """

    def __init__(self, budget_bytes: int, keep_bytes: int = PART_BYTES) -> None:
        self._budget = budget_bytes
        self._keep = keep_bytes
        self._out = 0
        self._idle: deque[memoryview] = deque()
        """Mapped, and in nobody's hands; the least recently used first."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size_bytes: int) -> memoryview:
        if self._waiting or not self._fits(size_bytes):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self._leave_queue(size_bytes, turn)
                raise
        else:
            self._out += size_bytes
        return self._memory(size_bytes)

    def give_back(self, buffer: memoryview) -> None:
        whole = buffer.obj
        size = len(buffer)
        if isinstance(whole, mmap.mmap) and len(whole) <= self._keep:
            self._idle.append(memoryview(whole))
        self._settle(size)

    def discard(self, buffer: memoryview) -> None:
        self._settle(len(buffer))

    def _memory(self, size_bytes: int) -> memoryview:
        if size_bytes < SMALLEST_MAPPED:
            return memoryview(bytearray(size_bytes))
        whole = self._mapped_bytes(size_bytes)
        buffer = self._used_before(whole) or self._used_before(2 * whole)
        if buffer is None:
            self._make_room(whole)
            buffer = memoryview(mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return buffer[:size_bytes]

    def _used_before(self, whole: int) -> memoryview | None:
        """The idle buffer of this size that was used last."""
        for at in range(len(self._idle) - 1, -1, -1):
            if len(self._idle[at]) == whole:
                buffer = self._idle[at]
                del self._idle[at]
                return buffer
        return None

    def _mapped_bytes(self, size_bytes: int) -> int:
        """How much is mapped for a buffer."""
        return size_bytes if size_bytes > self._keep else min(self._keep, 1 << (size_bytes - 1).bit_length())

    def _make_room(self, size_bytes: int) -> None:
        """Unmaps what is idle, as far as the budget asks for it."""
        idle = sum(map(len, self._idle))
        while self._idle and self._out + idle > self._budget:
            idle -= len(self._idle.popleft())

    def _fits(self, size_bytes: int) -> bool:
        return self._out == 0 or self._out + size_bytes <= self._budget

    def _settle(self, size_bytes: int) -> None:
        self._out -= size_bytes
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._out += size
                turn.set_result(None)

    def _leave_queue(self, size_bytes: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._settle(size_bytes)
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
            self._settle(0)
