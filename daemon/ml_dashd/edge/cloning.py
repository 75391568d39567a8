"""How a file's bytes are kept without being read here: shared blocks, another name, a copy within the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error

FICLONE = 0x40049409
"""linux/fs.h: share the blocks of another file."""
COPY_STEP = 64 * 1024 * 1024
TIMED_STEP = 8 * 1024 * 1024
"""Between two looks at the clock, where somebody waits: 0.08 s on a slow disk."""
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOENT, errno.EMLINK, errno.EOPNOTSUPP}


def reflink(descriptor: int, name: str) -> int | None:
    """Why this file can't share its blocks with the spool, as an errno; None where it does now."""
    try:
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise disk_error(failure) from None
    try:
        fcntl.ioctl(copy, FICLONE, descriptor)
    except OSError as failure:
        Path(name).unlink()
        if failure.errno in _NO_REFLINK:
            return failure.errno
        raise disk_error(failure) from None
    finally:
        os.close(copy)
    return None


def share_blocks(descriptor: int, other: int) -> bool:
    """Makes another open file share the blocks of this one; False where their file systems can't."""
    try:
        fcntl.ioctl(other, FICLONE, descriptor)
    except OSError:
        return False
    return True


def link(descriptor: int, name: str) -> bool:
    """A hard link to an open file. Without src_dir_fd the call would link the symlink in /proc and fail with EXDEV."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(descriptor), name, src_dir_fd=folder, follow_symlinks=True)
    except OSError as failure:
        if failure.errno in _NO_LINK:
            return False
        raise disk_error(failure) from None
    finally:
        os.close(folder)
    if not os.access(name, os.R_OK, effective_ids=True):  # it may be linked and not be read; the descriptor can be
        Path(name).unlink()
        return False
    return True


def no_second_name(slot: str, failure: OSError) -> BaseException:
    """The error of a slot that could not be linked."""
    if isinstance(failure, FileNotFoundError):
        return error(Code.SOURCE_LOST, f"slot {slot} was released")
    if failure.errno in _NO_LINK:
        what = f"slot {slot} is not stored yet, and on the spool's file system a file has but one name"
        return error(Code.RETRY_LATER, what, "duplicate it once it is stored")
    return disk_error(failure)


def copy_range(descriptor: int, copy: int, size: int, source: str, in_time: Callable[[], bool] | None = None) -> None:
    """Within the kernel: by blocks where the file systems can, else page by page.

    Raises RETRY_LATER once it is not `in_time` any more.
    """
    offset, step = 0, size if in_time is None else TIMED_STEP
    while offset < size:
        if in_time is not None and not in_time():
            what = f"{source} could not be copied while a writer may be kept waiting: {offset} of {size} bytes were"
            raise error(Code.RETRY_LATER, what, "see spool.lease_max_delay")
        count = copy_some(descriptor, copy, min(step, size - offset), offset)
        if count == 0:
            raise changed(source)
        offset += count


def copy_some(source: int, copy: int, size: int, offset: int) -> int:
    """Copies the next bytes to the same offset, at most COPY_STEP of them; returns how many, 0 at the end."""
    size = min(COPY_STEP, size)
    try:
        return os.copy_file_range(source, copy, size, offset, offset)
    except OSError as failure:
        if failure.errno not in _NO_COPY_RANGE:
            raise
    os.lseek(copy, offset, os.SEEK_SET)
    return os.sendfile(copy, source, offset, size)


def changed(source: str) -> MLDashError:
    """The error of a source that was written to while it was copied."""
    what = f"{source} was changed while it was copied"
    return error(Code.SOURCE_CHANGED, what, "hand it over when nobody writes to it")


def disk_error(failure: BaseException) -> BaseException:
    """A full disk in our own words; anything else as it is."""
    if isinstance(failure, MLDashError):
        return failure
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.DISK_FULL, "the spool's file system is full")
    return failure
