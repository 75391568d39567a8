"""Steps that belong together, and are not left half done by whoever is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end, though its caller be cancelled, even twice: half of it would keep a pin for ever, or lose it.

    Whoever was cancelled is so then, and a failure is the cause that is given with that.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as asked:
            cancelled = asked
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
