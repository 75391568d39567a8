"""The log of a daemon that was started for a root: the file that its starter made its stderr, kept to a bounded size.

Nobody else looks after it, so it is turned here: at LOG_BYTES `log` becomes `log.1`, in the place of the last one, and
a new `log` takes its place under stdout and stderr. Whatever is written meanwhile, by a library or a crash too, goes to
the one or the other.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

LOG_BYTES = 4 * 1024 * 1024
"""Some 25,000 lines, a file each: days of a training run, and nothing that a root's owner has to tidy up."""
STDOUT, STDERR = 1, 2


class BoundedLog(logging.StreamHandler[TextIO]):
    """Writes to stderr; where that is the file at `path`, it never grows past the limit by more than a line."""

    def __init__(self, path: Path, limit_bytes: int = LOG_BYTES) -> None:
        super().__init__(sys.stderr)
        self._path = path
        self._limit = limit_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held: one thread turns the file."""
        super().emit(record)
        with suppress(OSError):  # a full disk, a root that is gone: it goes on in the file that there is
            if os.fstat(STDERR).st_size >= self._limit:
                self._turn()

    def _turn(self) -> None:
        if not self._is_ours(STDERR):
            return  # a terminal, or another daemon's: it was started by hand
        last = self._path.with_name(f"{self._path.name}.1")
        streams = [number for number in (STDOUT, STDERR) if self._is_ours(number)]
        self._path.rename(last)
        try:
            # Whoever starts the next daemon in this moment makes it, too, and both write to that.
            fresh = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            last.rename(self._path)
            raise
        for number in streams:
            os.dup2(fresh, number)
        os.close(fresh)

    def _is_ours(self, number: int) -> bool:
        return os.path.samestat(os.fstat(number), self._path.stat())
