"""A file that only takes up room: given up, it lets a journal go on where the disk is full."""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 4 * 1024 * 1024
"""Enough for the journal to bring thousands of files to their end, which frees the room that they take."""


class Reserve:
    """Blocks set aside on the file system of `path`."""

    def __init__(self, path: Path, size_bytes: int = RESERVE_BYTES) -> None:
        self._size = size_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.held = os.fstat(self._descriptor).st_blocks * 512 >= size_bytes
        """Whether the room is there to be given up."""

    def fill(self) -> bool:
        """Sets the room aside, where the disk has it. Idempotent."""
        if not self.held:
            try:
                os.posix_fallocate(self._descriptor, 0, self._size)
                self.held = True
            except OSError:  # no room yet, or none that is to be had: what was had of it is not kept from others
                os.ftruncate(self._descriptor, 0)
        return self.held

    def release(self) -> bool:
        """Gives the room up; returns whether there was any. Idempotent."""
        had, self.held = self.held, False
        if had:
            os.ftruncate(self._descriptor, 0)
        return had

    def close(self) -> None:
        """Closes the file; the room stays taken."""
        os.close(self._descriptor)
