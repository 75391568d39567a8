"""The machine: time, chance, threads, memory for buffers, and the points at which tests make things fail."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import mmap
import os
import random
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from ml_dash.errors import Code, error
from ml_dashd.core.plan import PART_BYTES
from ml_dashd.edge.politeness import WITHOUT, Politeness, step_back
from ml_dashd.ports import SyncRefusedError

T = TypeVar("T")

SMALLEST_MAPPED = 128 * 1024
"""Below this a buffer is made of what the allocator has at hand."""
COLLECT_AFTER = 10_000
"""New objects before the next look. Python's own 700 take a tenth of the time that 10,000 files of 4 KiB do;
50,000, and twenty times twenty of them, are no quicker, and let 18 MB of garbage come and go."""
SYNC_STEP = 2 * 1024 * 1024
"""Written back at a time: a commit of the journal waits 0.5 ms beside it, and 10 ms and more beside a whole file."""
_WAIT_WRITE_WAIT = 1 | 2 | 4
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER of linux/fs.h."""
_sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@contextmanager
def asking_for_a_sync() -> Iterator[None]:
    """What fails in here was said by the disk, of a sync."""
    try:
        yield
    except OSError as failure:
        raise SyncRefusedError(*failure.args) from None


def sync_content(descriptor: int) -> None:
    """Brings a file's bytes to stable storage, a little at a time: others get to the disk in between. Blocks.

    Raises SyncRefusedError where the disk refuses.
    """
    size = os.fstat(descriptor).st_size
    with asking_for_a_sync():
        if _sync_file_range is not None and size > SYNC_STEP:
            for start in range(0, size, SYNC_STEP):
                if _sync_file_range(descriptor, start, SYNC_STEP, _WAIT_WRITE_WAIT) != 0:
                    _raise_unless_unsupported(ctypes.get_errno())
                    break
        os.fdatasync(descriptor)


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to stable storage. Raises SyncRefusedError where the disk refuses."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with asking_for_a_sync():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_unsupported(number: int) -> None:
    """The kernel states an error of the disk once: the fdatasync that follows would not see it."""
    if number not in (errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number))


class SystemClock:
    """The real time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def jitter(self) -> float:
        return random.random()  # noqa: S311 spreads retries, keeps no secret

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def raise_descriptor_limit() -> None:
    """As many descriptors as this user may have: connections and pins hold one each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def ignore_lease_signals() -> None:
    """Until the loop listens to them, no lease is held for longer than it takes to learn that it was granted."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def collect_rarely() -> None:
    """Cycles are looked for among what is new since, and after more of it: it took a tenth of a small file's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 5, 5)
    gc.enable()


async def breathe() -> None:
    """Lets the loop look at others."""
    await asyncio.sleep(0)


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


class BufferPool:
    """Buffers under one budget in bytes, mapped once and used again: fresh pages cost as much CPU as a hash.

    They come in powers of two. A request larger than the whole budget is granted when nothing else is out, so that
    nothing waits for ever.
    """

    def __init__(self, budget_bytes: int, keep_bytes: int = PART_BYTES) -> None:
        self._budget = budget_bytes
        self._keep = keep_bytes
        self._out = 0
        self._idle: deque[memoryview] = deque()
        """Mapped, and in nobody's hands; the least recently used first."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size_bytes: int) -> memoryview:
        if self._waiting or not self._fits(size_bytes):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self._leave_queue(size_bytes, turn)
                raise
        else:
            self._out += size_bytes
        return self._memory(size_bytes)

    def give_back(self, buffer: memoryview) -> None:
        whole = buffer.obj
        size = len(buffer)
        if isinstance(whole, mmap.mmap) and len(whole) <= self._keep:
            self._idle.append(memoryview(whole))
        self._settle(size)

    def discard(self, buffer: memoryview) -> None:
        self._settle(len(buffer))

    def _memory(self, size_bytes: int) -> memoryview:
        if size_bytes < SMALLEST_MAPPED:
            return memoryview(bytearray(size_bytes))
        whole = self._mapped_bytes(size_bytes)
        for at in range(len(self._idle) - 1, -1, -1):
            if len(self._idle[at]) == whole:
                buffer = self._idle[at]
                del self._idle[at]
                return buffer[:size_bytes]
        self._make_room(whole)
        return memoryview(mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:size_bytes]

    def _mapped_bytes(self, size_bytes: int) -> int:
        """How much is mapped for a buffer."""
        return size_bytes if size_bytes > self._keep else min(self._keep, 1 << (size_bytes - 1).bit_length())

    def _make_room(self, size_bytes: int) -> None:
        """Unmaps what is idle, as far as the budget asks for it."""
        idle = sum(map(len, self._idle))
        while self._idle and self._out + idle > self._budget:
            idle -= len(self._idle.popleft())

    def _fits(self, size_bytes: int) -> bool:
        return self._out == 0 or self._out + size_bytes <= self._budget

    def _settle(self, size_bytes: int) -> None:
        self._out -= size_bytes
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._out += size
                turn.set_result(None)

    def _leave_queue(self, size_bytes: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._settle(size_bytes)
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
            self._settle(0)


class NoMeter:
    """Nobody watches: nothing is counted."""

    def accepted(self, size_bytes: int) -> None:
        return

    def sent(self, size_bytes: int) -> None:
        return

    def stored(self, size_bytes: int) -> None:
        return

    def cancelled(self) -> None:
        return

    def superseded(self) -> None:
        return

    def retried(self, fault: str) -> None:
        return

    def failed(self, code: Code) -> None:
        return

    def found(self, kind: str) -> None:
        return

    def committing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def lagged(self, seconds: float) -> None:
        return


class NoFaults:
    """Nothing ever happens at a fault point."""

    def at(self, point: str) -> None:
        return


EVERY_TIME, NEVER = 0, -1


class TestFaults:
    """Does what a test asked for at a named point: `{"upload.part_sent": "kill@3"}` dies at the third part.

    The actions are kill (SIGKILL to this process), error (an OSError), and hang (stops this process: SIGSTOP), once, or
    with "@*" every time.
    """

    __test__ = False

    def __init__(self, plan: Mapping[str, str], log_path: str | None = None) -> None:
        self._plan = {point: _parse(action) for point, action in plan.items()}
        self._hits: dict[str, int] = {}
        self._log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if log_path else -1

    def at(self, point: str) -> None:
        count = self._hits[point] = self._hits.get(point, 0) + 1
        if self._log >= 0:
            os.write(self._log, f"{point}\n".encode())
        action, when = self._plan.get(point, ("", NEVER))
        if when not in (count, EVERY_TIME):
            return
        if action == "error":
            raise OSError(5, f"fault point {point}")
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


def _parse(action: str) -> tuple[str, int]:
    name, _, when = action.partition("@")
    return name, EVERY_TIME if when == "*" else int(when or 1)
