"""Several places in one file at a time."""

from __future__ import annotations

import io
from typing import Any, BinaryIO


class Cursor(io.RawIOBase):
    """A place of its own in a file that others read and write, too; closing it leaves the file open.

    For libraries that call from C, where an interruption of ours (Ctrl-C) would be swallowed: it ends the call with an
    OSError, and `check` raises it once Python has the word again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._interruptions: list[BaseException] = []

    def beside(self) -> Cursor:
        """Another one in the same file."""
        other = Cursor(self._file)
        other._interruptions = self._interruptions
        return other

    def check(self) -> None:
        """Raises what has interrupted a read or a write, here or beside."""
        for interruption in self._interruptions:
            raise interruption

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As of any file."""
        return self._move(lambda: self._file.readinto(buffer))  # type: ignore[attr-defined]

    def write(self, data: Any) -> int:
        """Writes all of it."""
        return self._move(lambda: self._file.write(data))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        if whence == io.SEEK_END:
            self._at = self._file.seek(offset, whence)
        else:
            self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def _move(self, step: Any) -> int:
        try:
            self._file.seek(self._at)
            moved: int = step()
        except Exception:
            raise
        except BaseException as interruption:
            self._interruptions.append(interruption)
            raise OSError("interrupted") from interruption
        self._at += moved
        return moved
