"""The machine: time, chance, syncs, and what a process is set to at its start."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ml_dashd.ports import SyncRefusedError

T = TypeVar("T")

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
