"""Turns: what costs the daemon something is done for so many at once, and one user's requests wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `each` at once for one uid, at most `altogether` for all: whoever asks much holds up itself alone."""

    def __init__(self, each: int, altogether: int) -> None:
        self._each = each
        self._all = asyncio.Semaphore(altogether)
        self._of: dict[int, asyncio.Semaphore] = {}
        self._asking: dict[int, int] = {}

    @asynccontextmanager
    async def of(self, uid: int) -> AsyncIterator[None]:
        """Waits for this uid's turn, and keeps it."""
        self._asking[uid] = self._asking.get(uid, 0) + 1
        mine = self._of.setdefault(uid, asyncio.Semaphore(self._each))
        try:
            async with mine, self._all:
                yield
        finally:
            self._asking[uid] -= 1
            if not self._asking[uid]:
                del self._asking[uid], self._of[uid]
