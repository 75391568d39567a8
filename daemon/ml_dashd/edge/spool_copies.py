"""Copies of sources in the spool: how one is made of a file that may change meanwhile, and what room it leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.witness import Verdict
from ml_dashd.edge.cloning import changed, copy_range, disk_error, link
from ml_dashd.edge.fingerprints import fingerprint, look
from ml_dashd.edge.room import Room
from ml_dashd.edge.source import crc64_of_range, lost, tells_of_writes
from ml_dashd.edge.witness import Ask

COPIES_LEAVE_BYTES = 10 * 1024**3
"""Copies in the background leave so much of the disk to the trainer, or a tenth of it, and half of the quota."""


class SpoolCopies:
    """In a folder of the spool, under its quota."""

    def __init__(self, folder: Path, room: Room) -> None:
        self._folder = folder
        self._room = room

    def make(
        self,
        descriptor: int,
        name: str,
        source: str,
        ask: Ask,
        *,
        spare: bool = False,
        in_time: Callable[[], bool] | None = None,
    ) -> str:
        """Copies an open source into a new file of that name, and returns the name. It is of one content.

        `ask` asks the witness. `spare`: nobody waits for it (edge/room.py). `in_time`: until then a lease keeps writers
        away. Raises SOURCE_CHANGED, DISK_FULL, RETRY_LATER.
        """
        path = self._folder / name
        before = fingerprint(descriptor)
        tells = in_time is not None or tells_of_writes(descriptor, PinKind.LINK)
        self._room.take(str(path), before.size_bytes, spare=spare)
        try:
            copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as failure:
            if failure.errno != errno.EEXIST:  # what is there is another's
                self._room.give_back(str(path))
            raise disk_error(failure) from None
        try:
            if before.size_bytes:
                os.posix_fallocate(copy, 0, before.size_bytes)
            copy_range(descriptor, copy, before.size_bytes, source, in_time)
            verdict = look(descriptor, before, ask)
            # Where no time tells of a write, both are read and compared: the copy is of one content.
            proved = in_time is not None or (tells and verdict is Verdict.SAME)
            if verdict is Verdict.CHANGED or not (proved or _same_bytes(copy, descriptor, before.size_bytes)):
                raise changed(source)
        except (OSError, MLDashError) as failure:
            path.unlink(missing_ok=True)
            self._room.give_back(str(path))
            raise disk_error(failure) from None
        finally:
            os.close(copy)
        return name

    def share(self, descriptor: int, name: str, job: Job) -> str:
        """Another name for a job's copy, to be released by itself; where files have but one, another copy. Returns it.

        It counts against the quota as the copy does, for it keeps the bytes when that is gone. Raises SOURCE_LOST where
        it is gone, and as `make` does.
        """
        path = str(self._folder / name)
        self._room.take(path, job.record.size_bytes)
        try:
            if link(descriptor, path):
                return name
            if not os.fstat(descriptor).st_nlink:
                raise lost(job)
        except (OSError, MLDashError):
            self._room.give_back(path)
            raise
        return self.make(descriptor, name, job.pin.source, lambda: None)  # nobody writes to the daemon's own

    def look_for_room(self, name: str, size_bytes: int) -> None:
        """Whether a copy would find room if it were made now; none is set aside. Raises as `make` does."""
        path = str(self._folder / name)
        self.leave_room(size_bytes)
        self._room.take(path, size_bytes, spare=True)
        self._room.give_back(path)

    def leave_room(self, size_bytes: int) -> None:
        """A copy that nobody asked for is not what fills the disk: raises RETRY_LATER where it would."""
        disk = os.statvfs(self._folder)
        floor = min(disk.f_blocks * disk.f_frsize // 10, COPIES_LEAVE_BYTES)
        if disk.f_bavail * disk.f_frsize < size_bytes + floor:
            what = f"a copy of {size_bytes} bytes would leave less than {floor} free on the spool's disk"
            raise error(Code.RETRY_LATER, what, "free space on it")


def _same_bytes(copy: int, source: int, size: int) -> bool:
    return crc64_of_range(copy, 0, size) == crc64_of_range(source, 0, size)
