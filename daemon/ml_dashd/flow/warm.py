"""The next slot is made ready while the last one is sent: a save that comes meanwhile finds pages that are there."""

from __future__ import annotations

import asyncio
import logging

from ml_dashd.ports import Clock, Slots, Threads

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 5.0
"""Between two looks at the machine's memory: what is kept for saves to come goes before others run short."""


class Warm:
    """Runs beside the worker. `threads` is a pool of its own: making a large slot ready takes seconds."""

    def __init__(self, slots: Slots, threads: Threads, clock: Clock) -> None:
        self._slots = slots
        self._threads = threads
        self._clock = clock
        self._wanted: dict[int, int] = {}
        """By connection, the size of what it has saved last."""
        self._asked = asyncio.Event()

    def saved(self, connection: int, size_bytes: int) -> None:
        """A connection has saved so much, and may do so again before that is stored."""
        self._wanted[connection] = size_bytes
        self._asked.set()

    def disconnected(self, connection: int) -> None:
        """Nobody will ask for it. Idempotent."""
        self._wanted.pop(connection, None)

    async def prepare(self) -> None:
        """Makes slots ready, one after the other, until it is cancelled."""
        while await self._asked.wait():
            self._asked.clear()
            while self._wanted:
                connection, size = self._wanted.popitem()
                try:
                    await self._threads.run(self._slots.prepare, connection, size)
                except Exception as failure:  # noqa: BLE001 the next save does without
                    log.info("slot_not_prepared", extra={"bytes": size, "error": failure})

    async def watch(self) -> None:
        """Lets go of what the machine's memory does not allow any more, until it is cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            await self._threads.run(self._slots.trim)
