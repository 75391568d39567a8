"""What people read of an experiment in a local store's folder, beside its files.

    {namespace}/{project}/{experiment}/experiment.json, parameters.json, metrics/{name}/data.jsonl

All of it is made of the catalog. Rows are appended, so that they can be read while they come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_dashd.core.runs import DATA, UNNAMED
from ml_dashd.edge.system import sync_content, sync_folder

METRICS = "metrics"
ANEW = ".ml-dash-data"
"""Beside the rows, where they are written anew; no user's name can be this (core/names.py)."""
READ_BYTES = 1 << 20


class FolderTree:
    """The port `Tree`. `mode` is that of the files; folders get the matching search bits.

    `check` raises OSError where another folder is in the place of the store's.
    """

    def __init__(self, root: Path, mode: int = 0o640, check: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._check = check
        self._mode = mode
        self._folder_mode = mode | (mode & 0o444) >> 2

    def note(self, prefix: str, name: str, content: str) -> None:
        folder = self._folder(self._of(prefix))
        temporary = folder / f".ml-dash-{name}"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        try:
            _write(descriptor, content.encode())
            sync_content(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(folder / name)
        sync_folder(folder)

    def read_note(self, prefix: str, name: str) -> str | None:
        try:
            return (self._of(prefix) / name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def metrics(self, prefix: str) -> list[str]:
        top = self._of(prefix) / METRICS
        found = (path.parent.relative_to(top) for path in top.rglob(DATA) if path.is_file())
        return sorted("" if str(name) == UNNAMED else str(name) for name in found if str(name) != ".")

    def length(self, prefix: str, metric: str) -> int:
        try:
            descriptor = os.open(self._data(prefix, metric), os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        count = end = offset = 0
        try:
            while piece := os.pread(descriptor, READ_BYTES, offset):
                count += piece.count(b"\n")
                if (last := piece.rfind(b"\n")) >= 0:
                    end = offset + last + 1
                offset += len(piece)
            if end < offset:
                os.ftruncate(descriptor, end)
        finally:
            os.close(descriptor)
        return count

    def lines(self, prefix: str, metric: str, start: int) -> list[str]:
        with self._data(prefix, metric).open("rb") as file:
            for _ in range(start):
                file.readline()
            return [line.decode(errors="replace") for line in file]

    def append(self, prefix: str, metric: str, lines: Sequence[str], *, anew: bool = False) -> None:
        data = self._data(prefix, metric)
        self._folder(data.parent)
        path = data.with_name(ANEW) if anew else data
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode)
        try:
            _write(descriptor, "".join(lines).encode())
        finally:
            os.close(descriptor)

    def clear(self, prefix: str, metric: str) -> None:
        self._data(prefix, metric).with_name(ANEW).unlink(missing_ok=True)

    def publish(self, prefix: str, metric: str) -> None:
        data = self._data(prefix, metric)
        data.with_name(ANEW).rename(data)

    def sync(self, prefix: str, metric: str) -> None:
        data = self._data(prefix, metric)
        descriptor = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_content(descriptor)
        finally:
            os.close(descriptor)
        for folder in data.parents:
            sync_folder(folder)
            if folder.name == METRICS:
                break

    def _data(self, prefix: str, metric: str) -> Path:
        return self._of(prefix) / METRICS / (metric or UNNAMED) / DATA

    def _of(self, prefix: str) -> Path:
        """An experiment's folder."""
        self._check()
        return self._root / prefix

    def _folder(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True, mode=self._folder_mode)
        return folder


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
