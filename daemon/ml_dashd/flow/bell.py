"""Tells waiting requests that some file has moved on, and how many bytes of each are sent."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung at every change; whoever waits looks again. `sent` counts the bytes of the files that are being sent."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.sent: dict[int, int] = {}

    def ring(self) -> None:
        """Wakes all who wait."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Until the next ring, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return
