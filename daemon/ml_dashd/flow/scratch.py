"""Keys that are made only to see what the store does with them. The journal knows each before the store does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ml_dashd.core.model import Target
from ml_dashd.core.retry import Fault, StoreError, backoff_ms
from ml_dashd.ports import Clock, Journal, Store

log = logging.getLogger("ml_dashd.flow")

TRIES = 8
"""At a store that asks for patience: what is left behind then is left for a day."""
CHANCES = 1_000_000
"""Daemons that share a bucket choose among as many numbers a millisecond."""


class Scratch:
    """One key at a time. What a crash, or a store that refused, has left of one is removed before the next is made."""

    def __init__(self, journal: Journal, store: Store, clock: Clock) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._turn = asyncio.Lock()
        self._tidied = False

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

    async def tidy(self) -> None:
        """Removes what a crash has left. It is asked for once in a process's life."""
        if not self._tidied:
            async with self._turn:
                await self._tidy()

    @property
    def _name(self) -> str:
        return f"scratch of {self._store.url}"

    async def _tidy(self) -> int | None:
        """Returns a number whose key could not be emptied: it is used again, so that no more than one is ever left."""
        self._tidied = True
        left = await self._journal.setting(self._name)
        if not left or await self._clear(int(left)):
            return None
        return int(left)

    async def _clear(self, number: int) -> bool:
        target = Target(self._store.scratch(number), number, 0, "")
        for attempt in range(1, TRIES + 1):
            try:
                await self._empty(target)
            except StoreError as failure:
                if failure.fault not in (Fault.THROTTLED, Fault.TRANSIENT) or attempt == TRIES:
                    log.debug("scratch_left", extra={"key": target.key, "error": failure})
                    return False
                await self._clock.sleep(backoff_ms(attempt, self._clock.jitter()) / 1000)
            else:
                break
        await self._journal.set_setting(self._name, "")
        return True

    async def _empty(self, target: Target) -> None:
        for upload in [each async for each in self._store.uploads(target.key)]:
            await self._store.abort(target, upload.upload_id)
        await self._store.delete(target.key)
