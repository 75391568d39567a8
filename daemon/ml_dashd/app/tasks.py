"""Tasks that go on beside everything else, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Begun one by one. What one of them raises ends that one alone."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Begins one."""
        self._tasks.append(asyncio.create_task(work, name=name))

    async def end(self) -> None:
        """Cancels all of them, and waits until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
