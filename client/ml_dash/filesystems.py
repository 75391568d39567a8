"""Which file systems are shared between machines, so that SQLite's log, locks and Unix sockets do not work on them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

NETWORK = {
    # linux/magic.h
    0x6969: "NFS", 0x517B: "SMB", 0xFF534D42: "CIFS", 0xFE534D42: "SMB2", 0x01021997: "9p", 0x00C36400: "CephFS",
    0x5346414F: "AFS", 0x6B414653: "AFS", 0x73757245: "Coda", 0x564C: "NCP", 0x7461636F: "OCFS2",
    # not in the kernel's tree; the values are those that `stat -f` of coreutils knows
    0x0BD00BD0: "Lustre", 0x47504653: "GPFS", 0x19830326: "BeeGFS", 0xAAD7AAEA: "PanFS", 0x01161970: "GFS2",
    0xBEEFDEAD: "StorNext", 0x61636673: "ACFS", 0x20030528: "OrangeFS", 0x786F4256: "vboxsf", 0x7C7C6673: "prl_fs",
    0xBACBACBC: "vmhgfs",
}  # fmt: skip
"""f_type of statfs(2), and what to call it."""
FUSE = 0x65735546
LOCAL_FUSE = {
    "fuseblk", "fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs",
    "fuse.lxcfs", "fuse.squashfuse", "fuse.zfs-fuse",
}  # fmt: skip
"""FUSE is both: what is not known to be on a disk of this machine is taken for a network's."""
_STATFS_BYTES = 256
"""More than struct statfs has anywhere; f_type is its first field, of a register's size."""

Probe = Callable[[Path], int]


def network_name(path: Path, probe: Probe | None = None) -> str | None:
    """What to call the network file system that a path lies on, or will once it is made; None for a local one.

    `probe` gives the f_type of a path that exists (default: statfs).
    """
    there = next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110 which is False where it may not look
    kind = (probe or statfs_type)(there)
    if kind == FUSE:
        mounted = _mounted(there)
        return None if mounted in LOCAL_FUSE else mounted or "FUSE"
    return NETWORK.get(kind)


def statfs_type(path: Path) -> int:
    """f_type of statfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(ctypes.c_char_p(os.fsencode(path)), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


def _mounted(path: Path) -> str | None:
    """The type under which the file system of a path is mounted, such as "fuse.sshfs"."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((kind for number, kind in mounts() if number == wanted), None)


def mounts(table: Path = Path("/proc/self/mountinfo")) -> Iterator[tuple[str, str]]:
    """Device numbers and types of what is mounted here: fields 3 and, behind the dash, 1 of proc_pid_mountinfo(5)."""
    for line in table.read_text(errors="surrogateescape").splitlines():
        if found := re.match(r"\S+ \S+ (\d+:\d+) .* - (\S+) ", line):
            yield found[1], found[2]
