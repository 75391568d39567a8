"""How far a download has come, as one bar on a terminal, however many files are on their way; one onto stdout."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Self

from ml_dash import wording
from ml_dash.cli import show
from ml_dash.files import FileSet
from ml_dash.result import FileResult

STDOUT = "-"
"""What stands for it where a destination is due, as in other commands."""


class Watch:
    """Told of each file by `FileSet.fetch`; with `quiet` it shows nothing. A context, for its bar's sake."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar = None if quiet else show.Bar()
        self._files = 0
        self._total = 0
        self._done = 0
        self._moving: dict[str, int] = {}
        """The files on their way, and how much of each is there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.pause()

    def __call__(self, file: FileResult, done: int, total: int) -> None:
        """So much of a file is there, of so much."""
        file_id = file["id"]
        before = self._moving.pop(file_id, None)
        if before is None:
            self._files, self._total = self._files + 1, self._total + total
        self._done += done - (before or 0)
        if before is None or done < total:
            self._moving[file_id] = done
        title = show.path(file) if self._files == 1 else wording.files(self._files)
        if self._bar is not None:
            self._bar.update(title, self._done, self._total, same_bar=self._files > 1)

    def pause(self) -> None:
        """Ends the line, so that others may print."""
        if self._bar is not None:
            self._bar.close()


def to_stdout(files: FileSet, path: str | None, watch: Watch) -> None:
    """Writes one file, by way of the folder for temporary files: no byte of it is out before all are verified."""
    with tempfile.TemporaryDirectory(prefix="ml-dash-") as folder:
        for fetched in files.fetch(path, to=f"{folder}/content", watch=watch):
            watch.pause()
            with Path(fetched.path).open("rb") as content:
                shutil.copyfileobj(content, sys.stdout.buffer)
