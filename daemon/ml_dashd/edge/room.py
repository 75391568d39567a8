"""The spool's own bytes, under a quota. What is only linked or held is the user's, and does not count."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ml_dash.errors import Code, error

FREE_FAILED = "`ml-dash status` names files that failed, and `ml-dash rm --id ID` frees what they hold"


def bytes_of(folders: Iterable[Path]) -> int:
    """What the files of these folders take on disk, without those that have another name elsewhere. Blocks."""
    total = 0
    for folder in folders:
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # released meanwhile
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_blocks * 512 if status.st_nlink == 1 else 0
    return total


class Room:
    """How much the spool may take. Calls come from several threads."""

    def __init__(self, quota_bytes: int = 0) -> None:
        self._quota = quota_bytes
        self._taken: dict[str, int] = {}
        self._used = 0
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What slots and copies take."""
        return self._used

    @property
    def failed_bytes(self) -> int:
        """What of it is kept for files that failed, to be tried again or deleted."""
        with self._lock:
            return self._failed_bytes()

    def take(self, path: str, size_bytes: int, *, spare: bool = False) -> None:
        """Sets bytes aside for a file of the spool, or for one that grows to that size.

        `spare`: nobody waits for it, so half of the quota is left alone.

        Raises RETRY_LATER where there is no room now, DISK_FULL where there never is.
        """
        with self._lock:
            most = self._quota // 2 if spare else self._quota
            more = size_bytes - self._taken.get(path, 0)
            if self._quota and self._used + more > most:
                failed = self._failed_bytes()
                enough = self._used - failed + more <= most
                raise _refusal(size_bytes, more, self._used, self._quota, failed, enough=enough)
            self._count(path, size_bytes)

    def found(self, path: str, size_bytes: int) -> None:
        """Counts a file that is there, of that size."""
        with self._lock:
            self._count(path, size_bytes)

    def inherit(self, path: str, *, failed: bool) -> None:
        """Counts a file of an earlier daemon, where it is there; `failed`: it is kept for one that failed."""
        with suppress(FileNotFoundError):
            self.found(path, Path(path).stat().st_blocks * 512)
            self.note(path, failed=failed)

    def give_back(self, path: str) -> None:
        """The file is gone. Idempotent."""
        with self._lock:
            self._used -= self._taken.pop(path, 0)
            self._failed.discard(path)

    def note(self, path: str, *, failed: bool) -> None:
        """Whether the file is kept for one that failed. Idempotent."""
        with self._lock:
            if failed and path in self._taken:
                self._failed.add(path)
            else:
                self._failed.discard(path)

    def _failed_bytes(self) -> int:
        return sum(self._taken[path] for path in self._failed)

    def _count(self, path: str, size_bytes: int) -> None:
        self._used += size_bytes - self._taken.get(path, 0)
        self._taken[path] = size_bytes


def _refusal(size_bytes: int, more: int, used: int, quota: int, failed: int, *, enough: bool) -> Exception:
    """`enough`: it would fit if the files that failed were deleted."""
    if size_bytes > quota:
        what = f"{size_bytes} bytes are more than the spool may hold, {quota}"
        return error(Code.DISK_FULL, what, "raise spool.quota, or upload the file from its own place")
    kept = f", {failed} of them for files that failed" if failed else ""
    what = f"the spool holds {used} of {quota} bytes{kept}, and {more} more do not fit"
    hint = "it goes on when files are stored: see `ml-dash status`; or raise spool.quota"
    return error(Code.RETRY_LATER, what, f"{FREE_FAILED}; {hint}" if enough and failed else hint)
