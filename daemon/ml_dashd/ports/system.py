"""What the machine lends the flow: time and chance, threads, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Time and chance, so that tests can rule them."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC; may step."""

    def monotonic(self) -> float:
        """Seconds that never step."""

    def jitter(self) -> float:
        """A random number in [0, 1)."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""


class Faults(Protocol):
    """Named points at which tests make the daemon die, fail, hang or dawdle. Off, a call does nothing."""

    def at(self, point: str) -> None:
        """Marks a point on the way. The names are literals, so that a test can list them from the code."""


class Threads(Protocol):
    """Where blocking work runs."""

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Runs it in a thread of the pool and returns what it returns."""

    def strand(self) -> Strand:
        """Work that is to be done in order, one after the other, beside whatever else there is."""


class Strand(Protocol):
    """Work in order. No thread is kept while there is none."""

    def submit(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Does it after all that was submitted before. To cancel the future does not keep it from being done."""


class Buffers(Protocol):
    """Memory for parts, under one budget that all files share."""

    async def take(self, size_bytes: int) -> memoryview:
        """A buffer of that size, as soon as the budget allows; give it back, or discard it."""

    def give_back(self, buffer: memoryview) -> None:
        """The buffer may be used again."""

    def discard(self, buffer: memoryview) -> None:
        """As give_back, but the memory is not used again: a dead connection may still hold it (rule C1)."""
