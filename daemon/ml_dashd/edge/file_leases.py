"""Read leases (fcntl, F_SETLEASE): whoever opens the file to write waits until they are given back.

The kernel grants one where nobody has the file open, or mapped, to write to it; where it is this user's (or the daemon
has CAP_LEASE); and where the file system has leases. It asks for it back with SIGIO, and takes it away after
/proc/sys/fs/lease-break-time. Unlinking and renaming over wait for nothing: the pin keeps what they leave.

A lease belongs to an open file description, and so do the signal and the process that are told of it. The description
of a descriptor that a client passed is the client's, too, which could have any signal sent to the daemon by it. So a
lease is only ever taken on a description of our own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from ml_dash.filesystems import FUSE, NETWORK
from ml_dashd.edge.descriptors import FOR_LEASES, FOR_PINS, DescriptorBudget
from ml_dashd.edge.handed import file_system

BREAK_TIME = Path("/proc/sys/fs/lease-break-time")
MOST = 4096
"""Leases that are held at once: each is looked at when the kernel asks for one, half a microsecond each."""
_LOCKS = Path("/proc/locks")
BTRFS = 0x9123683E
"""f_type of linux/magic.h: a subvolume has a device number of its own, and the list of locks has the whole disk's."""
_WHY = {
    errno.EAGAIN: "somebody has it open to write",
    errno.EACCES: "it belongs to another user",
    errno.EINVAL: "its file system has no leases",
    errno.EPERM: "it belongs to another user",
}


def leased(descriptor: int) -> int:
    """The same file, opened once more to read, and leased. Raises OSError where that is refused.

    Where another holds a write lease on it, that is an error at once: nobody is waited for.
    """
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        os.close(own)
        raise
    return own


def has_writers(descriptor: int) -> bool:
    """Whether somebody has the file open, or mapped, to write to it; True where the kernel does not say.

    The lease is given back at once, with its description: who opens the file in this very moment waits for that.
    """
    try:
        os.close(leased(descriptor))
    except OSError:
        return True
    return False


def break_time_s(path: Path = BREAK_TIME) -> float:
    """After how long the kernel takes a lease away that it has asked for; 0 for never."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 45.0  # the kernel's default, fs/locks.c


class FileLeases:
    """The leases that are held, by the file's id. Calls come from several threads.

    So many at most. `spare`: nobody asked for them, and they are the first to go where descriptors run short.
    """

    def __init__(self, budget: DescriptorBudget, most: int = MOST, *, spare: bool = False) -> None:
        self.most = most
        self._part = FOR_LEASES if spare else FOR_PINS
        self._held: dict[int, int] = {}
        self._paused: dict[int, int] = {}
        """Descriptors by which there was one, and may be again."""
        self._lock = threading.Lock()
        self._budget = budget
        budget.count(lambda: len(self._held) + len(self._paused), self.close if spare else None)

    def left(self) -> int:
        """How many more may be taken."""
        return self.most - len(self._held) - len(self._paused)

    def take(self, descriptor: int, file_id: int) -> str | None:
        """Takes one on an open file; why not, where that can't be, else None."""
        if self.left() <= 0 or self._budget.left(self._part) <= 0:
            return "as many leases are held as may be"
        kind = file_system(descriptor)
        if kind == FUSE or kind in NETWORK:
            return "other machines could write to it"
        try:
            kept = leased(descriptor)
        except OSError as refused:
            return _WHY.get(refused.errno or 0, os.strerror(refused.errno or 0))
        with self._lock:
            older, self._held[file_id] = self._held.get(file_id), kept
        if older is not None:
            os.close(older)
        return None

    def holds(self, file_id: int) -> bool:
        """Whether there is one, and nobody has asked for it."""
        with self._lock:
            held = self._held.get(file_id)
            return held is not None and not _is_asked_for(held)

    def asked_for(self) -> list[int]:
        """The files that somebody waits to write to."""
        with self._lock:
            return [file_id for file_id, held in self._held.items() if _is_asked_for(held)]

    def stands(self, file_id: int) -> bool:
        """Whether writers still wait: there is one, asked for or not, that the kernel has not taken away.

        It says so nowhere but in its list of locks: "1: LEASE BREAKING READ <pid> <device>:<inode> 0 EOF".
        """
        with self._lock:
            held = self._held.get(file_id)
            if held is None:
                return False
            process, status = str(os.getpid()), os.fstat(held)
            disk = "" if file_system(held) == BTRFS else f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        ours = (f"{disk}:{status.st_ino}", process)
        for line in _LOCKS.read_text().splitlines():
            _, kind, *_, owner, place, _, _ = line.split()
            if kind == "LEASE" and (place if disk else place[place.rindex(":") :], owner) == ours:
                return True
        return False

    def pause(self, file_id: int) -> bool:
        """Gives it back until it is resumed or let go: whoever waits goes on. Whether there was one."""
        with self._lock:
            if (held := self._held.pop(file_id, None)) is None:
                return False
            self._paused[file_id] = held
            with suppress(BlockingIOError):  # the kernel has taken it away, and let in who waited
                fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return True

    def resume(self, file_id: int) -> None:
        """Takes it once more, or lets it go where somebody has the file open to write by now."""
        with self._lock:
            if (held := self._paused.pop(file_id, None)) is None:
                return
            try:
                fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError:
                os.close(held)
            else:
                self._held[file_id] = held

    def let_go(self, file_id: int) -> None:
        """Gives it back: whoever waits goes on. Idempotent."""
        with self._lock:
            for held in (self._held.pop(file_id, None), self._paused.pop(file_id, None)):
                if held is not None:
                    os.close(held)

    def close(self) -> None:
        """Gives all of them back."""
        for file_id in [*self._held, *self._paused]:
            self.let_go(file_id)


def _is_asked_for(held: int) -> bool:
    """While it is asked for, F_GETLEASE says what it is to become."""
    return fcntl.fcntl(held, fcntl.F_GETLEASE) != fcntl.F_RDLCK
