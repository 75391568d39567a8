"""The spool's own bytes, under a quota. What is only linked or held is the user's, and does not count."""

from __future__ import annotations

import threading

from ml_dash.errors import Code, error


class Room:
    """How much the spool may take. Calls come from several threads."""

    def __init__(self, quota_bytes: int = 0) -> None:
        self._quota = quota_bytes
        self._taken: dict[str, int] = {}
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What slots and copies take."""
        return self._used

    def take(self, path: str, size_bytes: int, *, spare: bool = False) -> None:
        """Sets bytes aside for a file of the spool. `spare`: nobody waits for it, so half of the quota is left alone.

        Raises RETRY_LATER where there is no room now, DISK_FULL where there never is.
        """
        with self._lock:
            most = self._quota // 2 if spare else self._quota
            if self._quota and self._used + size_bytes > most:
                raise _refusal(size_bytes, self._used, self._quota)
            self._count(path, size_bytes)

    def found(self, path: str, size_bytes: int) -> None:
        """Counts a file that was there at the start."""
        with self._lock:
            self._count(path, size_bytes)

    def give_back(self, path: str) -> None:
        """The file is gone. Idempotent."""
        with self._lock:
            self._used -= self._taken.pop(path, 0)

    def _count(self, path: str, size_bytes: int) -> None:
        self._used += size_bytes - self._taken.get(path, 0)
        self._taken[path] = size_bytes


def _refusal(size_bytes: int, used: int, quota: int) -> Exception:
    if size_bytes > quota:
        what = f"{size_bytes} bytes are more than the spool may hold, {quota}"
        return error(Code.DISK_FULL, what, "raise spool.quota, or upload the file from its own place")
    what = f"the spool holds {used} of {quota} bytes, and {size_bytes} more do not fit"
    return error(Code.RETRY_LATER, what, "it goes on when files are stored: see `ml-dash status`; or raise spool.quota")
