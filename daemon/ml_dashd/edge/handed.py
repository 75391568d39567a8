"""What may be handed over: a plain file, or a sealed memfd, open for reading. The path is the caller's word alone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct

from ml_dash.errors import Code, error
from ml_dashd.core.model import MAX_FILE_BYTES

O_PATH = getattr(os, "O_PATH", 0o10000000)
MEMFD = "/memfd:"
"""What the kernel calls a memfd in /proc."""
NEEDED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""With these nobody can change a memfd any more; without, no time stamp tells of it."""
NO_FILES = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x64626720: "debugfs", 0x74726163: "tracefs", 0x27E0EB: "cgroup",
    0x63677270: "cgroup2", 0x7655821: "resctrl", 0x73636673: "securityfs", 0x5A3C69F0: "apparmorfs",
    0xF97CFF8C: "selinuxfs", 0x43415D53: "smackfs", 0xCAFE4A11: "bpf", 0x6165676C: "pstore", 0xDE5E81E4: "efivarfs",
    0x42494E4D: "binfmt_misc", 0x62656570: "configfs", 0x65735543: "fusectl", 0xABBA1974: "xenfs", 0x9FA1: "openpromfs",
    0x6E736673: "nsfs", 0x50494446: "pidfs", 0x09041934: "anon_inode", 0x5345434D: "secretmem", 0x444D4142: "dma-buf",
    0x454D444D: "devmem", 0x1CD1: "devpts", 0x19800202: "mqueue", 0x6C6F6F70: "binder",
}  # fmt: skip
"""File systems whose files are made up when they are read: they say "regular", but their sizes are not those of their
contents. f_type of linux/magic.h, and, for configfs, fusectl, pidfs and mqueue, of the kernel's sources."""
_STATFS_BYTES = 256
"""Room for a struct statfs, which takes 120 on 64-bit machines. Its first member is the file system's type."""
_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
AT_EMPTY_PATH, AT_STATX_DONT_SYNC, STATX_SIZE = 0x1000, 0x4000, 0x200
"""linux/fcntl.h and linux/stat.h: the descriptor itself; what the kernel knows already; the size, among others."""
_STATX_BYTES, _STATX = 256, struct.Struct("=40xQ88xII")
"""linux/stat.h: struct statx; its stx_size, stx_dev_major and stx_dev_minor."""
_statx = ctypes.CDLL(None, use_errno=True).statx
_statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def check(descriptor: int, source: str, *, copied: bool) -> os.stat_result:
    """Refuses what is no file to keep, before anything is kept; `source` names it in the error.

    What is `copied` at once may be written to afterwards.

    Raises NOT_A_FILE, NOT_READABLE or TOO_LARGE.
    """
    try:
        status = os.fstat(descriptor)
        made_up = NO_FILES.get(file_system(descriptor))
    except OSError as failure:  # a FUSE file that is its owner's alone, a network file whose server has let it go
        raise unreadable(source, failure) from None
    if not stat.S_ISREG(status.st_mode):
        raise error(Code.NOT_A_FILE, f"{source} is not a regular file")
    if made_up is not None:
        what = f"{source} is a file of {made_up}, which the kernel makes up when it is read"
        raise error(Code.NOT_A_FILE, what, "copy it to a plain file, and pass that")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        raise error(Code.NOT_READABLE, f"{source} was not opened for reading")
    if status.st_nlink == 0 and not copied:
        _check_seals(descriptor, source)
    if status.st_size > MAX_FILE_BYTES:
        raise error(Code.TOO_LARGE, f"{source} has {status.st_size} bytes")
    return status


def unreadable(source: str, failure: OSError) -> Exception:
    """The error of a file that its owner could open, and that the daemon can't read."""
    return error(Code.NOT_READABLE, f"{source} can't be read by the daemon: {failure.strerror}")


def path_of(descriptor: int) -> str:
    """Where the kernel says that an open file lies, to be compared, never opened; "" for a path past its limit."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 each hand-off asks: a Path takes 10 µs
    except OSError:
        return ""


def known_of(descriptor: int) -> tuple[int, int] | None:
    """The device of an open file, as `st_dev`, and its size, as the kernel has them; None where it does not say.

    No file system is asked. fstat would ask: a network's server, or a FUSE file's program, which may take its time.
    """
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(descriptor, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, answer) != 0:
        return None
    size, major, minor = _STATX.unpack_from(answer)
    return os.makedev(major, minor), size


def _check_seals(descriptor: int, source: str) -> None:
    """A memfd changes without a trace, so it must be sealed; a deleted file has a name of its own, and times."""
    if not path_of(descriptor).startswith(MEMFD):
        return
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return  # a deleted file that was called so
    if seals & NEEDED_SEALS != NEEDED_SEALS:
        hint = 'seal it with F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE, or hand it over with snapshot="copy"'
        raise error(Code.NOT_A_FILE, f"{source} is a memfd that can still be written to", hint)


def file_system(descriptor: int) -> int:
    """The type of the file system that an open file is on."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(descriptor, answer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF
