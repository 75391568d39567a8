"""Draining: how far it has come, on a terminal as a bar and elsewhere as a line now and then; and what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, Self

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.cli import report, show
from ml_dash.connection import Connection

LINE_S = 5.0
"""Between two lines where there is no terminal."""


class Watch:
    """Shows the progress on stderr; with `quiet` only where it is a terminal. A context, for its bar's sake."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar = show.Bar()
        self._lines = not quiet and not sys.stderr.isatty()
        self._next = 0.0
        self._most = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()

    def update(self, seen: m.Progress) -> None:
        left = seen.total_files - seen.done_files
        held = f", {seen.held_files} of them held up" if seen.held_files else ""
        self._most = max(self._most, seen.done_bytes)
        self._bar.update(f"{wording.files(left)} left{held}", self._most, seen.total_bytes, same_bar=True)
        if self._lines and left and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_S
            size = wording.size(seen.total_bytes - seen.done_bytes)
            print(f"{wording.files(left)} left{held}, {size} to send", file=sys.stderr)


def drain(connection: Connection, seconds: float, watch: Watch, *, stop: bool) -> m.Drained:
    """Has the daemon drain, and watches. A daemon that is started anew meanwhile goes on for the time that is left."""
    end = time.monotonic() + seconds
    return connection.call_aside(
        m.Drained,
        lambda number: m.Drain(request=number, deadline_ms=max(0, int((end - time.monotonic()) * 1000)), stop=stop),
        progress=watch.update,
        silent_s=seconds,
    )


def as_object(drained: m.Drained) -> dict[str, Any]:
    """The outcome for programs."""
    return {
        "leftFiles": drained.left_files,
        "leftBytes": drained.left_bytes,
        "failedFiles": drained.failed_files,
        "manifest": drained.manifest or None,
        "files": [report.troubled(record) | {"sentBytes": record.sent_bytes} for record in drained.files],
    }


def as_lines(drained: m.Drained) -> Iterator[str]:
    """The outcome for people."""
    if not drained.left_files and not drained.failed_files:
        yield "everything is stored"
        return
    if drained.left_files:
        left = wording.files(drained.left_files)
        yield f"{left} left, {wording.size(drained.left_bytes)} to send; they go on by themselves"
    if drained.failed_files:
        yield f"{wording.files(drained.failed_files)} failed"
    yield from report.troubles(drained.files)
    more = drained.left_files + drained.failed_files - len(drained.files)
    if more > 0:
        yield f"  and {more} more"
    if drained.manifest:
        yield f"all of them: {drained.manifest}"
