"""Tells waiting requests that some file has moved on, and how many bytes of each are sent."""

from __future__ import annotations

import asyncio

MAX_WAIT_MS = 60_000
"""How long one request waits at most: whoever waits longer asks again, and so shows that it is still there."""


class Bell:
    """Rung at every change; whoever waits looks again. `sent` counts the bytes of the files that are being sent."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.sent: dict[int, int] = {}

    def ring(self) -> None:
        """Wakes all who wait."""
        self._rung.set()
        self._rung = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Listen first, then look, then wait: a ring in between is heard."""
        return self._rung

    async def wait(self, rung: asyncio.Event, timeout_s: float) -> None:
        """Until it has rung since `listen`, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await rung.wait()
        except TimeoutError:
            return


def longest_wait_ms(asked_ms: int) -> int:
    """How long a request that asks to wait that long is let wait, in milliseconds."""
    return min(asked_ms, MAX_WAIT_MS)
