"""What may happen to a user's file while it is on its way."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Meddling = Callable[[Path], object]


def overwrite(path: Path) -> None:
    """One byte, in place, at its end: the last that is read."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def overwrite_by_mmap(path: Path) -> None:
    """The same, without a write call."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[-1] ^= 1


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def rename_over(path: Path) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(b"the next version")
    new.rename(path)


CHANGES: dict[str, Meddling] = {
    "overwritten": overwrite,
    "overwritten by mmap": overwrite_by_mmap,
    "appended to": append,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "enlarged": lambda path: os.truncate(path, path.stat().st_size + 1),
    "written anew": lambda path: path.write_bytes(path.read_bytes()),
    "opened to write, and touched": lambda path: path.open("r+b").close() or os.utime(path),
}
"""The content is another, or may be: who opens a file to write may write to it through a mapping, and be told of by
nothing but its times."""
HARMLESS: dict[str, Meddling] = {
    "unlinked": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name(f"{path.name}.old")),
    "renamed over": rename_over,
    "linked elsewhere": lambda path: os.link(path, path.with_name(f"{path.name}.second")),
    "touched": os.utime,
    "given another mode": lambda path: path.chmod(0o400),
    "given another atime": lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns)),
}
"""The content is the same."""
BY_COMMAND: dict[str, Meddling] = {
    "touched by the command": lambda path: subprocess.run(["touch", path], check=True),
}
"""Harmless where the daemon has a lease on it; else it is told as in the last of CHANGES."""
