"""Slots: spool files that clients write into, so that a save is one copy into memory that the disk already backs.

A slot belongs to one connection. It is used again, with its pages, only by that connection and only after its last
content is stored; when the connection ends it is removed, so no byte of it is ever seen by another. Beside what is on
its way a connection has one that is ready, its pages in memory: fresh ones cost ten times the copy that fills them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import MAX_FILE_BYTES, Pin, PinKind
from ml_dashd.edge.cloning import no_second_name
from ml_dashd.edge.descriptors import FOR_SLOTS, DescriptorBudget
from ml_dashd.edge.memory import available_bytes
from ml_dashd.edge.room import FREE_FAILED, Room
from ml_dashd.ports import Slot

T = TypeVar("T")

log = logging.getLogger("ml_dashd.edge")

SLOT_FOLDER = "slots"
SLOT_STEP = 1024 * 1024
"""Slots are allocated in whole MiB, so that saves of nearly the same size find one that fits."""
KEEP_FREE = 2
"""Free slots that a connection keeps: one is filled while the other is sent."""
KEEP_HELD = 16
"""Committed slots of a connection that may be granted again; each keeps a descriptor."""
MAX_SLOTS = 16
"""Slots that a connection may be writing into at once. What waits for the store is bounded by the disk alone."""
WAITING = ("free", "coming")
WARM_FROM_BYTES = 4 * 1024 * 1024
"""Smaller slots are not made ready: their fresh pages cost a few milliseconds."""
WARM_PART_OF_MEMORY = 2
"""Of the memory that is available, slots that are ready keep a half at most."""
WARM_PART_OF_DISK = 4
"""A slot is made ready only where it takes a quarter of the disk's free space at most."""


@dataclass(slots=True)
class _Entry:
    slot: Slot
    connection: int
    use: str
    """granted, committed, free, or coming: being made ready."""
    owner: int = 0
    """The file whose content is committed here."""


class SlotFiles:
    """The port `Slots`, with what the pins ask of it. Calls come from several threads."""

    def __init__(
        self,
        spool: Path,
        room: Room | None = None,
        budget: DescriptorBudget | None = None,
        warm_bytes: int = MAX_FILE_BYTES,
        memory: Callable[[], int] = available_bytes,
    ) -> None:
        """`warm_bytes`: what slots that wait for a save keep at most, all together."""
        self._room = room or Room()
        self._warm_bytes = warm_bytes
        self._memory = memory
        self._connections: set[int] = set()
        """Those that may have slots."""
        self._folder = spool / SLOT_FOLDER
        for folder in (spool, self._folder):  # `parents` would make the spool with the mode of any folder
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._budget = budget or DescriptorBudget()
        self._budget.count(lambda: len(self._entries))
        self._last = secrets.randbits(62)
        """No two daemons' slots have the same name: a job of the one would read, and release, the other's."""

    def grant(self, connection: int, size_bytes: int) -> Slot:
        if size_bytes > MAX_FILE_BYTES:
            raise error(Code.TOO_LARGE, f"{size_bytes} bytes were asked for")
        with self._lock:
            self._connections.add(connection)
            mine = [entry for entry in self._entries.values() if entry.connection == connection]
            fitting = [one for one in mine if one.use in WAITING and one.slot.capacity_bytes >= size_bytes]
            if fitting:
                entry = min(fitting, key=lambda one: one.slot.capacity_bytes)
                entry.use = "granted"
                return entry.slot
            if sum(entry.use == "granted" for entry in mine) >= MAX_SLOTS:
                raise error(Code.RETRY_LATER, f"{MAX_SLOTS} saves of this process are being written at once")
            if self._budget.left(FOR_SLOTS) <= 0:
                raise error(Code.RETRY_LATER, "as many slots are granted as the daemon may hold open")
            self._last += 1
            number = self._last
        capacity = _steps(size_bytes)
        slot = self._with_room(lambda: self._reserve(number, capacity))
        with self._lock:
            self._entries[number] = _Entry(slot, connection, "granted")
        return slot

    def grow(self, connection: int, number: int, size_bytes: int) -> Slot:
        if size_bytes > MAX_FILE_BYTES:
            raise error(Code.TOO_LARGE, f"{size_bytes} bytes were asked for")
        with self._lock:
            entry = self._mine(connection, number)
            slot = entry.slot
            if entry.use != "granted":
                raise error(Code.INVALID_ARGUMENT, f"slot {number} is committed")
            if slot.capacity_bytes >= size_bytes:
                return slot
            # Of our own, since the connection may end meanwhile, and its descriptors with it.
            descriptor = fcntl.fcntl(slot.descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._with_room(lambda: self._extend(number, descriptor, slot.capacity_bytes, _steps(size_bytes)))
        finally:
            os.close(descriptor)
        with self._lock:
            if self._entries.get(number) is not entry:
                self._room.give_back(str(self._folder / str(number)))
            entry.slot = replace(slot, capacity_bytes=_steps(size_bytes))
            return entry.slot

    def commit(self, connection: int, number: int, size_bytes: int, file_id: int = 0) -> Pin:
        with self._lock:
            entry = self._mine(connection, number)
            if size_bytes > entry.slot.capacity_bytes:
                raise error(Code.INVALID_ARGUMENT, f"slot {number} holds {entry.slot.capacity_bytes} bytes")
            entry.use = "committed"
            entry.owner = entry.owner or file_id
            if (
                sum(one.use == "committed" and one.connection == connection for one in self._entries.values())
                > KEEP_HELD
            ):
                self._forget(entry)
        return Pin(PinKind.SLOT, str(number))

    def give_back(self, connection: int, number: int) -> None:
        with self._lock:
            entry = self._mine(connection, number)
            if entry.use == "granted":
                self._free(entry)

    def share(self, name: str) -> str:
        """Another name for a committed slot, to be released by itself; the slot is not granted again.

        It counts against the quota as the slot does, for it keeps the bytes when that is gone. Raises SOURCE_LOST where
        it is not there any more, RETRY_LATER where files have but one name, and what `Room.take` raises.
        """
        with self._lock:
            self._last += 1
            other = self._folder / str(self._last)
        try:
            size = (self._folder / name).stat().st_blocks * 512
            self._with_room(lambda: self._room.take(str(other), size))
            with self._lock:
                os.link(self._folder / name, other)
        except OSError as failure:
            self._room.give_back(str(other))
            raise no_second_name(name, failure) from None
        return other.name

    def give_up(self, name: str) -> bool:
        """Whether a committed slot is not granted again, so that a store may have its file. Idempotent.

        It is not from now on, unless its release would keep it for the next save, and the disk has room for a copy.
        """
        with self._lock:
            entry = self._entries.get(int(name))
            if entry is None:
                return True
            given_up = not self._is_worth_keeping(entry)
            if given_up:
                self._forget(entry)
            return given_up

    def release(self, name: str) -> None:
        """Lets a committed slot go once its content is stored."""
        with self._lock:
            entry = self._entries.get(int(name))
            if entry is not None:
                self._free(entry)
                return
        self._unlink(name)

    @contextmanager
    def kept_for(self, name: str, file_id: int) -> Iterator[bool]:
        """Whether a committed slot is that file's still; it is not released, and granted again, in the meantime.

        One that is nobody's to be granted again is removed when it is released, so whoever has it open harms nobody.
        """
        with self._lock:
            entry = self._entries.get(int(name))
            yield entry is None or entry.owner == file_id

    def prepare(self, connection: int, size_bytes: int) -> None:
        """Its pages are read, not written: they are clean zeros then, which the kernel may drop, and no disk writes.

        What stands in the way, a disk that is nearly full, say, leaves the next save as it was.
        """
        capacity = _steps(size_bytes)
        if capacity < WARM_FROM_BYTES or not self._may_prepare(connection, capacity):
            return
        with self._lock:
            self._last += 1
            number = self._last
        try:
            slot = self._reserve(number, capacity, spare=True)
        except MLDashError as full:
            log.info("slot_not_prepared", extra={"bytes": capacity, "error": full})
            return
        with self._lock:
            entry = self._entries[number] = _Entry(slot, connection, "coming")
            if connection not in self._connections:
                self._remove(entry)
                return
            descriptor = fcntl.fcntl(slot.descriptor, fcntl.F_DUPFD_CLOEXEC, 3)  # of our own, as in `grow`
        try:
            self._page_in(entry, descriptor)
        finally:
            os.close(descriptor)
            with self._lock:
                if self._is_coming(entry):
                    self._free(entry)

    def trim(self) -> None:
        """Removes free slots, the largest first, until the others are within what may be kept."""
        most = self._most_warm()
        with self._lock:
            free = [entry for entry in self._entries.values() if entry.use == "free"]
            for entry in sorted(free, key=lambda one: one.slot.capacity_bytes, reverse=True):
                if self._warm() <= most:
                    break
                self._remove(entry)

    def disconnect(self, connection: int) -> None:
        with self._lock:
            self._connections.discard(connection)
            for entry in list(self._entries.values()):
                if entry.connection == connection:
                    self._end(entry)

    def close(self) -> None:
        """Removes what is not committed, closes the rest."""
        with self._lock:
            self._connections.clear()
            for entry in list(self._entries.values()):
                self._end(entry)

    def _mine(self, connection: int, number: int) -> _Entry:
        entry = self._entries.get(number)
        if entry is None or entry.connection != connection or entry.use in WAITING:
            raise error(Code.INVALID_ARGUMENT, f"slot {number} is not granted to this connection")
        return entry

    def _free(self, entry: _Entry) -> None:
        """Keeps it for the next save. Of too many the smallest goes: a large one serves small saves, too."""
        entry.owner = 0
        entry.use = "free"
        shared = os.fstat(entry.slot.descriptor).st_nlink > 1  # it may not be written to again
        if shared or self._warm() > self._most_warm():
            self._remove(entry)
        else:
            free = [one for one in self._entries.values() if one.use == "free" and one.connection == entry.connection]
            if len(free) > KEEP_FREE:
                self._remove(min(free, key=lambda one: one.slot.capacity_bytes))

    def _is_worth_keeping(self, entry: _Entry) -> bool:
        """Whether `_free` would keep it if its content were stored now; not where there is no room to copy that."""
        size = entry.slot.capacity_bytes
        disk = os.statvfs(self._folder)
        shared = os.fstat(entry.slot.descriptor).st_nlink > 1
        if shared or disk.f_bavail * disk.f_frsize < size or self._warm() + size > self._most_warm():
            return False
        mine = [one for one in self._entries.values() if one.use in WAITING and one.connection == entry.connection]
        return len(mine) < KEEP_FREE or any(one.slot.capacity_bytes < size for one in mine)

    def _warm(self) -> int:
        """What is kept for saves to come, of whatever connection."""
        waiting = (entry.slot.capacity_bytes for entry in self._entries.values() if entry.use in WAITING)
        return sum(waiting)

    def _most_warm(self) -> int:
        return min(self._warm_bytes, self._memory() // WARM_PART_OF_MEMORY)

    def _may_prepare(self, connection: int, capacity: int) -> bool:
        """Whether the connection has none that would do, and disk, memory and descriptors are there for one."""
        disk = os.statvfs(self._folder)
        with self._lock:
            waiting = [one for one in self._entries.values() if one.use in WAITING and one.connection == connection]
            return (
                connection in self._connections
                and all(one.slot.capacity_bytes < capacity for one in waiting)
                and self._warm() + capacity <= self._most_warm()
                and capacity * WARM_PART_OF_DISK <= disk.f_bavail * disk.f_frsize
                and self._budget.left(FOR_SLOTS) > 0
            )

    def _page_in(self, entry: _Entry, descriptor: int) -> None:
        """Reads it, a step at a time, as long as it is still wanted."""
        buffer = bytearray(SLOT_STEP)
        for offset in range(0, entry.slot.capacity_bytes, SLOT_STEP):
            if not self._is_coming(entry):
                return
            os.preadv(descriptor, [buffer], offset)

    def _is_coming(self, entry: _Entry) -> bool:
        """It may have been granted as it is, or its connection be gone."""
        return entry.use == "coming" and self._entries.get(entry.slot.number) is entry

    def _end(self, entry: _Entry) -> None:
        """Its connection is gone: what is committed stays until it is released, the rest is nobody's."""
        if entry.use == "committed":
            self._forget(entry)
        else:
            self._remove(entry)

    def _forget(self, entry: _Entry) -> None:
        """It is not granted again, so no descriptor is kept for it; its file is removed when it is released."""
        del self._entries[entry.slot.number]
        os.close(entry.slot.descriptor)

    def _remove(self, entry: _Entry) -> None:
        self._forget(entry)
        self._unlink(str(entry.slot.number))

    def _unlink(self, name: str) -> None:
        path = self._folder / name
        path.unlink(missing_ok=True)
        self._room.give_back(str(path))

    def _with_room(self, allocate: Callable[[], T]) -> T:
        """Reserves the blocks first: a full disk is an error here, never a SIGBUS in the trainer.

        Where there is no room, what is kept free for saves to come goes first.
        """
        try:
            return allocate()
        except MLDashError as full:
            if full.code not in (Code.RETRY_LATER, Code.DISK_FULL) or not self._remove_free():
                raise
        return allocate()

    def _reserve(self, number: int, capacity: int, *, spare: bool = False) -> Slot:
        path = self._folder / str(number)
        self._room.take(str(path), capacity, spare=spare)
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(descriptor, 0, capacity)
        except OSError as failure:
            if descriptor >= 0:
                os.close(descriptor)
            self._unlink(str(number))
            if failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(capacity) from None
            raise
        return Slot(number, capacity, descriptor)

    def _extend(self, number: int, descriptor: int, was: int, capacity: int) -> None:
        path = str(self._folder / str(number))
        self._room.take(path, capacity)
        try:
            os.posix_fallocate(descriptor, was, capacity - was)
        except OSError as failure:
            os.ftruncate(descriptor, was)
            self._room.found(path, was)
            if failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(capacity) from None
            raise

    def _no_room(self, capacity: int) -> MLDashError:
        """The disk is full. Where files of ours are on it, room comes by itself."""
        what = f"the spool's disk has no room for {capacity} bytes"
        if self._room.used_bytes:
            hint = "it goes on when files are stored, or space is freed: see `ml-dash status`"
            hint = f"{FREE_FAILED}; {hint}" if self._room.failed_bytes >= capacity else hint
            return error(Code.RETRY_LATER, what, hint)
        return error(Code.DISK_FULL, what)

    def _remove_free(self) -> bool:
        """Removes every slot that no save has, of whatever connection; returns whether there was one."""
        with self._lock:
            free = [entry for entry in self._entries.values() if entry.use in WAITING]
            for entry in free:
                self._remove(entry)
        return bool(free)


def _steps(size_bytes: int) -> int:
    """A slot's capacity: so many bytes, in whole steps."""
    return max(SLOT_STEP, -(-size_bytes // SLOT_STEP) * SLOT_STEP)
