"""Many files at once on a terminal: a bar for all of them, and one for each that is on its way."""

from __future__ import annotations

import sys
from typing import Any, Self

from ml_dash.cli import show

ROWS = 8
"""Bars of files that are shown at once."""


class Bars:
    """Bars on stderr where that is a terminal, else nothing. A context; lines may be printed all the while.

    rich draws them; where it is not installed, there is the one for all.
    """

    def __init__(self, title: str, total_bytes: int, *, quiet: bool) -> None:
        self._title = title
        self._total = total_bytes
        self._ended = 0
        """Bytes of files that are at their end."""
        self._moving: dict[str, int] = {}
        self._plain: show.Bar | None = None
        self._progress: Any = None
        self._rows: dict[str, Any] = {}
        if not quiet and sys.stderr.isatty() and total_bytes:
            try:
                self._progress = show.rich_progress("bytes", redirect=sys.stdout.isatty())
            except ImportError:
                self._plain = show.Bar()

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._all = self._progress.add_task(self._title, total=self._total)
            self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._plain is not None:
            self._plain.close()

    def moved(self, key: str, name: str, done: int, size: int) -> None:
        """So much of a file is there."""
        self._moving[key] = done
        if self._progress is not None:
            if key not in self._rows and len(self._rows) < ROWS:
                self._rows[key] = self._progress.add_task(f"  {name}", total=size)
            if key in self._rows:
                self._progress.update(self._rows[key], completed=done)
        self._draw()

    def ended(self, key: str, size: int) -> None:
        """A file is at its end: whole, skipped, or given up."""
        self._moving.pop(key, None)
        self._ended += size
        if key in self._rows:
            self._progress.remove_task(self._rows.pop(key))
        self._draw()

    def pause(self) -> None:
        """Ends the line, so that others may print."""
        if self._plain is not None:
            self._plain.close()

    def _draw(self) -> None:
        done = self._ended + sum(self._moving.values())
        if self._progress is not None:
            self._progress.update(self._all, completed=done)
        elif self._plain is not None:
            self._plain.update(self._title, done, self._total)
