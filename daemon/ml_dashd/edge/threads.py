"""Threads of our own, and what waits for them without being hurried."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from ml_dash.errors import Code, error
from ml_dashd.edge.politeness import WITHOUT, Politeness, step_back

T = TypeVar("T")


async def unhurried(future: asyncio.Future[T], hurry: Callable[[], None] = lambda: None) -> T:
    """Its result. A caller that is cancelled, even twice, still waits: buffers and descriptors stay.

    `hurry` is called then, once. Nobody whom its failure passes keeps the future: a failure holds the frames that it
    passed, and so itself, and all that they have, until garbage is collected.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        hurry()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()  # it was cancelled: nobody is left to be told
        raise
    finally:
        del future


class Pool:
    """Threads of our own: reads, hashes and fsyncs never wait behind name look-ups in the loop's default pool.

    Lean, because every hand-off goes through it. With `politeness` others go first.
    """

    def __init__(self, workers: int, name: str, politeness: Politeness = WITHOUT) -> None:
        self._politeness = politeness
        self._queue: SimpleQueue[_Task | Strand | None] = SimpleQueue()
        self._closed = False
        self._threads = [Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """What it returns. A caller that is cancelled still waits."""
        return await unhurried(self._submit(work, args))

    def strand(self) -> Strand:
        """Work that is done in order: the loop, which may be late, is not asked between one and the next."""
        return Strand(self._put)

    def close(self) -> None:
        """Finishes what was asked for. Blocks."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, work: Callable[..., T], args: tuple[Any, ...]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put((loop, future, work, args))
        return future

    def _put(self, task: _Task | Strand) -> None:
        if self._closed:
            raise error(Code.SHUTTING_DOWN, "the daemon is being stopped")
        self._queue.put(task)

    def _serve(self) -> None:
        step_back(self._politeness)
        while (task := self._queue.get()) is not None:
            if isinstance(task, Strand):
                task.drain()
            else:
                _do(task)
            del task  # a buffer is not kept until the next one


class Strand:
    """Work that one thread of a pool does at a time, in order."""

    def __init__(self, put: Callable[[Strand], None]) -> None:
        self._put = put
        self._lock = Lock()
        self._waiting: deque[_Task] = deque()
        self._taken = False
        """A thread is at it, or will be."""

    def submit(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._waiting.append((loop, future, work, args))
            taken, self._taken = self._taken, True
        if not taken:
            self._put(self)
        return future

    def drain(self) -> None:
        """For the pool: does what waits, and what is submitted meanwhile."""
        while (task := self._next()) is not None:
            _do(task)
            del task  # a buffer is not kept until the next one

    def _next(self) -> _Task | None:
        with self._lock:
            self._taken = bool(self._waiting)
            return self._waiting.popleft() if self._waiting else None


_Task = tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


def _do(task: _Task) -> None:
    loop, future, work, args = task
    outcome, failure = None, None
    try:
        outcome = work(*args)
    except BaseException as raised:  # noqa: BLE001 handed to the caller, whatever it is
        failure = raised
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, future, outcome, failure)
    del task, future, failure  # see unhurried()


def _settle(future: asyncio.Future[Any], outcome: Any, failure: BaseException | None) -> None:
    if future.cancelled():
        return
    if failure is None:
        future.set_result(outcome)
    else:
        future.set_exception(failure)
