"""The files of a local store: made, written, copied, read and synced. All of it blocks."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ml_dash.errors import MLDashError
from ml_dashd.core.model import Target
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge import cloning

ABOUT_ATTRIBUTE = "user.ml-dash.about"
"""What an object says of itself (core/about.py)."""


def open_new(path: Path, mode: int, target: Target) -> int:
    """A new file that says of itself what it may, where the file system has attributes for it.

    What had the name loses it, and is not written to: it may have been adopted, and be a source's file, too.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    if target.about:
        with suppress(OSError):
            os.setxattr(descriptor, ABOUT_ATTRIBUTE, target.about.encode())
    return descriptor


def about_of(descriptor: int) -> str | None:
    """What an object says of itself, if it does."""
    try:
        return os.getxattr(descriptor, ABOUT_ATTRIBUTE).decode(errors="replace")
    except OSError:
        return None


def write_all(descriptor: int, body: memoryview, offset: int) -> None:
    """Writes all of it there."""
    done = 0
    while done < len(body):
        done += os.pwrite(descriptor, body[done:], offset + done)


def copy_range(original: int, descriptor: int, part: Part, key: str) -> None:
    """Within the kernel, by blocks where the file systems can."""
    end = part.offset + part.size_bytes
    at = part.offset
    while at < end:
        at += copy_next(original, descriptor, end, at, key)


def copy_next(original: int, descriptor: int, end: int, at: int, key: str) -> int:
    """The next bytes at `at`; returns how many."""
    count = cloning.copy_some(original, descriptor, end - at, at)
    if not count:
        raise StoreError(Fault.CORRUPT, f"{key} ends after {at} bytes")
    return count


def read_into(descriptor: int, into: memoryview, offset: int, key: str) -> None:
    """Fills the buffer. Raises Fault.CORRUPT where the object ends before that."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if not count:
            raise StoreError(Fault.CORRUPT, f"{key} ends after {offset + done} bytes")
        done += count


def take_blocks(source: int, into: int, size_bytes: int) -> bool:
    """Gives an open file the blocks of another one, up to that size; False, and it is as it was, where it can't."""
    if not cloning.share_blocks(source, into):
        return False
    os.ftruncate(into, size_bytes)
    return True


def take_name(source: int, name: Path, like: int, size_bytes: int) -> bool:
    """Gives an open file a second name, and that size; False, and it has no such name, where that can't be.

    Not a third: what has two is the source of another file, too, which would be one with this object. Its owner, mode
    and attributes become those of the file `like`, which was made in the same folder.
    """
    name.unlink(missing_ok=True)
    if os.fstat(source).st_nlink != 1:
        return False
    try:
        if not cloning.link(source, str(name)):
            return False
        _make_like(name, like, size_bytes)
    except (OSError, MLDashError):
        name.unlink(missing_ok=True)
        return False
    return True


def _make_like(path: Path, like: int, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        now, wanted = os.fstat(descriptor), os.fstat(like)
        if now.st_size != size_bytes:  # a slot's last blocks; of a copy not even its times are to move
            os.ftruncate(descriptor, size_bytes)
        if (now.st_uid, now.st_gid) != (wanted.st_uid, wanted.st_gid):
            os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))
        given = set(os.listxattr(like))
        for attribute in set(os.listxattr(descriptor)) - given:
            os.removexattr(descriptor, attribute)
        for attribute in given:  # access lists of the folder's, too
            os.setxattr(descriptor, attribute, os.getxattr(like, attribute))
    finally:
        os.close(descriptor)
