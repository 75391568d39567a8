"""What lies in the folder of a local store, in the order of keys. All of it blocks, and holds one folder's names.

What is removed while it is looked at is left out; what has a name that is no UTF-8 is no file's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ml_dashd.core.model import OpenUpload, Stored
from ml_dashd.core.names import RESERVED, id_of

PUT = ".put"
"""How the name of a temporary file ends that is written in one go."""


def objects_below(root: Path, after: str) -> Iterator[Stored]:
    """The objects whose keys come after that one. A key is the path below the root. Raises OSError."""
    for name in _names(root):
        if not name.startswith(RESERVED):
            yield from _below(root, name, after)


def _below(root: Path, key: str, after: str) -> Iterator[Stored]:
    """A folder, whose name ends in "/" so that it takes its place among keys, or a file."""
    if key.endswith("/"):
        if key > after or after.startswith(key):
            for name in _names(root / key):
                yield from _below(root, f"{key}{name}", after)
    elif key > after and "/files/" in key and id_of(key) is not None:
        try:
            status = (root / key).lstat()
        except FileNotFoundError:
            return
        if stat.S_ISREG(status.st_mode):
            yield Stored(key, status.st_size, int(status.st_mtime * 1000))


def uploads_in(root: Path, temporary: str) -> Iterator[OpenUpload]:
    """Temporary files; their names are the ids of files."""
    for name in _names(root / temporary):
        number = name.removesuffix(PUT)
        try:
            written_s = (root / temporary / name).lstat().st_mtime
        except FileNotFoundError:
            continue
        if number.isascii() and number.isdigit():
            yield OpenUpload(f"{temporary}/{name}", name, int(written_s * 1000), int(number))


def _names(folder: Path) -> list[str]:
    """In the order of keys."""
    try:
        with os.scandir(folder) as entries:
            found = [f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:  # nothing of ours: an ext4's own lost+found
        return []
    return sorted(name for name in found if _is_text(name))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
