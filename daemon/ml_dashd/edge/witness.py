"""The kernel as a witness (inotify): whether a file was written to since it was handed over, whatever its times say.

A call that writes, and a truncation, are told. A write through a mapping is not; but who maps a file to write has it
open to write for as long as the mapping lives, and the end of that is told. So: the watch is set, then nobody is found
to have the file open to write (file_leases.py). From there on who never had it open, and has not now, has not written.

The kernel tells of a write, and of the end of an opening, before it stops counting the writer. Hence the order of each
question: the file's times, then whether somebody has it open to write, then what was told.

Who opens a file to write and writes nothing is told as who writes through a mapping is. The command touch does that,
by an open that waits for nobody (O_NONBLOCK), and where that is refused it sets the times by the file's name. So a file
is leased while it waits: touch is refused, and everybody else waits for as long as `give_way` takes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock

from ml_dashd.core.witness import Account
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.file_leases import BTRFS, FileLeases, has_writers
from ml_dashd.edge.handed import file_system

Ask = Callable[[], Account | None]
"""Asks what was told of a source; None where there is no witness."""

MOST = 1024
"""Files that are watched at once: an eighth of what kernels before 5.11 let a user watch in all (fs.inotify.
max_user_watches), which editors want some of. Each costs 1 KiB of the kernel's memory."""
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
"""linux/inotify.h: what is asked for; what was lost, all or one watch."""
_WRITING = IN_MODIFY | IN_CLOSE_WRITE
_ASKED = _WRITING | IN_ATTRIB
_EVENT = struct.Struct("iIII")
"""Watch, events, cookie, and the length of the name that follows."""
TELLING = {0xEF53, 0x58465342, BTRFS, 0x01021994}
"""ext2 to ext4, XFS, Btrfs, tmpfs (f_type of linux/magic.h): nobody writes to their files but by this kernel's calls.
Those of networks, FUSE and overlays are changed from elsewhere, or from beneath, and nothing is told."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class _Watched:
    """A file that is watched: by which watch, what was told of it, and whether it is leased while nobody writes.

    `touched`: its times were set since somebody was let in.
    """

    __slots__ = ("leased", "sure", "told", "touched", "watch")

    def __init__(self, watch: int, *, leased: bool) -> None:
        self.watch = watch
        self.told = 0
        self.sure = False
        self.leased = leased
        self.touched = False


class Witness:
    """By the file's id. Calls come from several threads. Where the kernel watches nothing (more), nobody is watched.

    They are leased, as many as `leases` bears. Those of up to `small` bytes, which are copied soon, leave half of the
    leases to the others.
    """

    def __init__(self, most: int = MOST, leases: FileLeases | None = None, small: int = 0) -> None:
        self._most = most
        self._leases = leases or FileLeases(DescriptorBudget(), most=0)
        self._small = small
        self._queue = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if most else -1
        self._watched: dict[int, _Watched] = {}
        self._files: dict[int, set[int]] = {}
        """By watch: a file that was handed over twice is watched once."""
        self._touched: set[int] = set()
        self._let_in: set[int] = set()
        """Files whose leases are paused, until it is known who asked for them."""
        self._lock = Lock()

    def watch(self, file_id: int, descriptor: int) -> None:
        """Watches an open file from now on, as far as may be. Its fingerprint is taken afterwards."""
        large = os.fstat(descriptor).st_size > self._small
        self._watch(file_id, descriptor, leased=large or self._leases.left() > self._leases.most // 2)

    def _watch(self, file_id: int, descriptor: int, *, leased: bool) -> None:
        if self._queue < 0 or file_system(descriptor) not in TELLING:
            return
        with self._lock:
            self._hear()  # what was told before is nothing to this one
            if len(self._files) >= self._most:
                return
            watch = _libc.inotify_add_watch(self._queue, b"/proc/self/fd/%d" % descriptor, _ASKED)
            if watch < 0:
                return
            self._watched[file_id] = watched = _Watched(watch, leased=leased)
            self._files.setdefault(watch, set()).add(file_id)
        granted = leased and self._leases.take(descriptor, file_id) is None
        watched.sure = granted or not has_writers(descriptor)

    def account(self, file_id: int, descriptor: int, *, leased: bool = False) -> Account | None:
        """What happened to a file since it is watched, until now; None where it is not watched.

        `leased`: whoever opens it to write waits, and has written nothing yet.
        """
        if file_id not in self._watched:
            return None
        if not (leased := leased or self._leases.holds(file_id)):
            self._make_way(file_id)  # while a lease is asked for, none is granted, whoever asks
            leased = self._leases.holds(file_id)
        open_now = not leased and has_writers(descriptor)
        with self._lock:
            self._hear()
            seen = self._watched.get(file_id)
            if seen is None:
                return None
            opened = open_now or bool(seen.told & IN_CLOSE_WRITE)
            return Account(bool(seen.told & IN_MODIFY), opened, bool(seen.told & IN_ATTRIB), seen.sure)

    def touched(self) -> list[int]:
        """Files whose attributes were set since the last call, or of which it was asked to `remind`."""
        if not self._watched:
            return []
        with self._lock:
            self._hear()
            touched = [file_id for file_id in self._touched if file_id in self._watched]
            self._touched.clear()
        return touched

    def remind(self, file_id: int) -> None:
        """Names a file the next time that it is asked which were touched."""
        with self._lock:
            self._touched.add(file_id)

    def give_way(self) -> bool:
        """Lets whoever waits to open a file to write go on; whether there was somebody. Does not block.

        Who it was shows soon: `lease_touched` is to be called then.
        """
        asked_for = self._leases.asked_for()
        for file_id in asked_for:
            self._make_way(file_id)
        return bool(asked_for)

    def _make_way(self, file_id: int) -> None:
        if not self._leases.pause(file_id):
            return
        if self._was_touch(file_id):
            self._leases.resume(file_id)
        else:
            self._let_in.add(file_id)

    def lease_touched(self, *, last: bool = False) -> None:
        """Leases those again to which it was touch that came, for the next one. Does not block.

        `last`: the others are leased no more.
        """
        for file_id in list(self._let_in):
            if touch := self._was_touch(file_id):
                self._leases.resume(file_id)
            elif last:
                self._leases.let_go(file_id)
            if touch or last:
                self._let_in.discard(file_id)

    def _was_touch(self, file_id: int) -> bool:
        """By its times, which were set, once for each call; if it is somebody else after all, he asks again at once."""
        with self._lock:
            self._hear()
            if (seen := self._watched.get(file_id)) is None:
                return False
            touched, seen.touched = seen.touched, False
            return touched and seen.leased and not seen.told & _WRITING

    def lease_again(self, file_id: int, descriptor: int) -> None:
        """Leases a file once more that was leased, and that nobody had open to write since: for the next touch."""
        with self._lock:
            self._hear()
            seen = self._watched.get(file_id)
        if seen is None or not seen.leased or seen.told & _WRITING or self._leases.holds(file_id):
            return
        self._leases.let_go(file_id)
        self._leases.take(descriptor, file_id)
        if self._watched.get(file_id) is not seen or not seen.leased:  # it was let go meanwhile
            self._leases.let_go(file_id)

    def unlease(self, file_id: int) -> None:
        """Nobody who opens it to write waits any more; it is watched on. Does not block. Idempotent."""
        if (seen := self._watched.get(file_id)) is not None:
            seen.leased = False
        self._leases.let_go(file_id)

    @contextmanager
    def during(self, file_id: int, descriptor: int) -> Iterator[Ask]:
        """Watches an open file meanwhile, and leases it however small it is: it may be read for as long."""
        self._watch(file_id, descriptor, leased=True)
        try:
            yield partial(self.account, file_id, descriptor)
        finally:
            self.let_go(file_id)

    def let_go(self, file_id: int) -> None:
        """Watches it no longer. Idempotent."""
        with self._lock:
            if (seen := self._watched.pop(file_id, None)) is not None:
                files = self._files.get(seen.watch, {file_id})
                files.discard(file_id)
                if not files:
                    self._end(seen.watch)
        self._leases.let_go(file_id)

    def close(self) -> None:
        """Watches nothing more."""
        with self._lock:
            self._watched.clear()
            self._files.clear()
            self._leases.close()
            if self._queue >= 0:
                os.close(self._queue)
                self._queue = -1

    def _hear(self) -> None:
        """Takes in what was told so far, and nothing that comes meanwhile: it could come for ever."""
        if self._queue < 0:
            return
        waiting = struct.unpack("i", fcntl.ioctl(self._queue, termios.FIONREAD, bytes(4)))[0]
        heard = os.read(self._queue, waiting) if waiting else b""
        at = 0
        while at < len(heard):
            watch, told, _, name_bytes = _EVENT.unpack_from(heard, at)
            at += _EVENT.size + name_bytes
            self._note(watch, told)

    def _note(self, watch: int, told: int) -> None:
        if told & IN_Q_OVERFLOW:  # of whom, is not said
            self._watched.clear()
            self._leases.close()
            for each in list(self._files):
                self._end(each)
            return
        for file_id in self._files.get(watch, ()):
            if told & IN_IGNORED:
                del self._watched[file_id]
                self._leases.let_go(file_id)
            else:
                self._watched[file_id].told |= told
                if told & IN_ATTRIB:
                    self._watched[file_id].touched = True
                    self._touched.add(file_id)
        if told & IN_IGNORED:
            self._files.pop(watch, None)
        elif told & IN_MODIFY:  # nothing more can be said of it, however often it is written to
            self._end(watch)

    def _end(self, watch: int) -> None:
        if self._files.pop(watch, None) is not None:
            _libc.inotify_rm_watch(self._queue, watch)
