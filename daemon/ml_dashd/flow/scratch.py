"""Keys that are made only to see what the store does with them. The journal knows each before the store does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ml_dashd.core.model import Target
from ml_dashd.core.retry import Fault, StoreError, backoff_ms
from ml_dashd.ports import Clock, Journal, JournalError, Store

log = logging.getLogger("ml_dashd.flow")

TRIES = 8
"""At a store that asks for patience: what is left behind then is looked after in the background."""
SOON_S, LATE_S = 15.0, 3600.0
"""Between looks at what is left: twice as long each time, because a store may forbid to delete."""
CHANCES = 1_000_000
"""Daemons that share a bucket choose among as many numbers a millisecond."""


class Scratch:
    """One key at a time. What a crash, or a store that refused, has left of one is removed before the next is made.

    `run` removes it as soon as the store lets it.
    """

    def __init__(self, journal: Journal, store: Store, clock: Clock) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._left.set()  # an earlier life may have left one

    @asynccontextmanager
    async def number(self) -> AsyncIterator[int]:
        """The number of a key, `store.scratch(number)`. Whatever comes to lie there is removed afterwards."""
        async with self._turn:
            number = await self._tidy()
            if number is None:
                number = self._clock.now_ms() * CHANCES + int(self._clock.jitter() * CHANCES)
                await self._journal.set_setting(self._name, str(number))
            try:
                yield number
            except Exception:
                await self._clear(number)
                raise
            await self._clear(number)

    async def run(self) -> None:
        """Removes what is left, at the start and whenever a key could not be emptied, until it is gone."""
        pause_s = SOON_S
        while True:
            await self._left.wait()
            try:
                async with self._turn:
                    await self._tidy()
            except JournalError as failure:
                log.debug("scratch_left", extra={"key": self._store.url, "error": failure})
            except Exception:
                log.exception("scratch_left", extra={"key": self._store.url})
            if self._left.is_set():
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LATE_S)
            else:
                pause_s = SOON_S

    @property
    def _name(self) -> str:
        return f"scratch of {self._store.url}"

    async def _tidy(self) -> int | None:
        """Returns a number whose key could not be emptied: it is used again, so that no more than one is ever left."""
        left = await self._journal.setting(self._name)
        if not left:
            self._left.clear()
            return None
        return None if await self._clear(int(left)) else int(left)

    async def _clear(self, number: int) -> bool:
        target = Target(self._store.scratch(number), number, 0, "")
        for attempt in range(1, TRIES + 1):
            try:
                await self._empty(target)
            except StoreError as failure:
                if failure.fault not in (Fault.THROTTLED, Fault.TRANSIENT) or attempt == TRIES:
                    log.debug("scratch_left", extra={"key": target.key, "error": failure})
                    self._left.set()
                    return False
                await self._clock.sleep(backoff_ms(attempt, self._clock.jitter()) / 1000)
            else:
                break
        await self._journal.set_setting(self._name, "")
        self._left.clear()
        return True

    async def _empty(self, target: Target) -> None:
        for upload in [each async for each in self._store.uploads(target.key)]:
            await self._store.abort(target, upload.upload_id)
        await self._store.delete(target.key)
