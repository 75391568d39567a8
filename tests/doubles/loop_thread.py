"""An event loop in a thread of its own: servers of the tests' own process, which themselves wait for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 30.0


class LoopThread:
    """Runs coroutines until it is closed; then whatever still runs is cancelled, and what went wrong is raised."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._defects: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._defects.append(context))
        self._thread = Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it there; returns what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
        assert not self._defects, self._defects


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # transports that were closed call back
