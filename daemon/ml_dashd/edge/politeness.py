"""Other programs go first: the priority of this thread for CPU and disk, and reads that leave the page cache alone."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}.get(platform.machine())
"""The number of ioprio_set(2), which libc does not have: syscall_64.tbl of x86, asm-generic/unistd.h."""
_WHO_PROCESS = 1
_CLASS_SHIFT = 13
IO_CLASSES = {"normal": None, "low": (2 << _CLASS_SHIFT) | 7, "idle": 3 << _CLASS_SHIFT}
"""IOPRIO_CLASS_BE with its lowest level, and IOPRIO_CLASS_IDLE, of linux/ioprio.h."""
RWF_DONTCACHE = 0x80
"""linux/fs.h, from Linux 6.14 on: pages that this read brings into memory leave it again; what was there stays."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Politeness:
    """How far threads step back: so much nicer than the process is, and the I/O class, a key of IO_CLASSES."""

    nice: int = 0
    io_class: str = "normal"


WITHOUT = Politeness()


def step_back(politeness: Politeness) -> None:
    """Lets others go before this thread. A kernel without I/O priorities, or one that refuses them, is no failure."""
    if politeness.nice:
        here = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, here + politeness.nice)  # on Linux it is the thread's own
    wanted = IO_CLASSES[politeness.io_class]
    if wanted is not None and _IOPRIO_SET is not None:
        ctypes.CDLL(None).syscall(_IOPRIO_SET, _WHO_PROCESS, 0, wanted)


class Reader:
    """Reads an open file. `uncached`: what is not in memory does not stay there, where the kernel can do that.

    Where it can't, it is read as ever: what it leaves in memory is not dropped afterwards, since it may be what the
    trainer reads next.
    """

    def __init__(self, descriptor: int, *, uncached: bool) -> None:
        self._descriptor = descriptor
        self._flags = RWF_DONTCACHE if uncached else 0

    def into(self, piece: memoryview, offset: int) -> int:
        """Reads at an offset; returns how many bytes, 0 at the end."""
        if self._flags:
            try:
                return os.preadv(self._descriptor, [piece], offset, self._flags)
            except OSError as refused:
                if refused.errno not in _UNSUPPORTED:
                    raise
                self._flags = 0
        return os.preadv(self._descriptor, [piece], offset)
