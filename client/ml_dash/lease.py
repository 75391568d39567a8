"""A slot while it is written to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from ml_dash.channel import Channel
from ml_dash.errors import Code, error


class SlotFile:
    """The descriptor of a slot; it is closed when nobody has it any more.

    Written to by system calls, not through a mapping: a page of the kernel's that was brought to the disk costs a fault
    to be written to again, half of the copy's time, and a disk that is full a SIGBUS.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if (descriptor := vars(self).get("descriptor")) is not None:  # Ctrl-C may have come before it was set
            close(descriptor)


@dataclass(slots=True)
class Lease:
    """A slot while it is written to, and the socket by which it was granted: it is gone with that."""

    number: int
    file: SlotFile
    capacity_bytes: int
    channel: Channel | None

    def write(self, data: memoryview, at: int) -> None:
        """Puts bytes there; they have to fit. Raises DISK_FULL, DISK_FAILED."""
        try:
            while data:
                done = os.pwrite(self.file.descriptor, data, at)
                data, at = data[done:], at + done
        except OSError as failure:
            full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
            what = f"the daemon's spool can't be written to: {failure}"
            raise error(Code.DISK_FULL if full else Code.DISK_FAILED, what) from None

    def read(self, size_bytes: int) -> bytearray:
        """What was written first, though the slot may be gone by now."""
        content = bytearray(size_bytes)
        self.read_into(memoryview(content), 0)
        return content

    def read_into(self, left: memoryview, at: int) -> None:
        """What was written there. Raises DISK_FAILED where that is less."""
        while left:
            if not (done := os.preadv(self.file.descriptor, [left], at)):
                raise error(Code.DISK_FAILED, f"a slot ends after {at} bytes")
            left, at = left[done:], at + done
