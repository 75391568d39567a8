"""Sources that are held as open descriptors: here, and where they outlive this process."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Mapping

from ml_dash.errors import Code, error
from ml_dashd.core.model import Fingerprint, Job
from ml_dashd.edge.descriptors import FOR_PINS, DescriptorBudget
from ml_dashd.edge.fingerprints import fingerprint
from ml_dashd.edge.handed import O_PATH
from ml_dashd.edge.systemd import Systemd


class HeldSources:
    """By the file's id. Calls come from several threads."""

    def __init__(self, budget: DescriptorBudget, keeper: Systemd) -> None:
        self._budget = budget
        self._keeper = keeper
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()
        budget.count(lambda: len(self._held))

    def hold(self, file_id: int, descriptor: int, source: str) -> None:
        """Holds another descriptor of an open file. Raises RETRY_LATER where there are as many as may be."""
        if self._budget.left(FOR_PINS) <= 0:
            self._budget.make_room()
        if self._budget.left(FOR_PINS) <= 0:
            raise error(Code.RETRY_LATER, f"as many sources are held open as may be, so {source} can't be")
        self._held[file_id] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        self._keeper.keep(file_id, self._held[file_id])

    def holds(self, file_id: int) -> bool:
        """Whether there is one."""
        return file_id in self._held

    def dup(self, file_id: int) -> int | None:
        """Another descriptor of a held file, for the caller to close; the one that is held may go at any time.

        Not opened again by its name in /proc: that would ask for a right that only the client may have.
        """
        with self._lock:
            held = self._held.get(file_id)
            return None if held is None else fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, 3)

    def open(self, job: Job) -> int:
        """A descriptor of a job's held source, for the caller to close. Raises SOURCE_LOST where it is not found."""
        held = self.dup(job.id)
        return _reopen(job) if held is None else held

    def let_go(self, file_id: int) -> None:
        """Closes it, and where it outlives this process, too. Idempotent."""
        with self._lock:
            if (held := self._held.pop(file_id, None)) is not None:
                os.close(held)
        self._keeper.drop(file_id)

    def pass_on(self, file_id: int, to_id: int) -> None:
        """What is held for one file is held for another, which has none yet, or is let go. Idempotent."""
        with self._lock:
            if (held := self._held.pop(file_id, None)) is None:
                return
            wanted = to_id not in self._held
            if wanted:
                self._held[to_id] = held
                self._keeper.keep(to_id, held)
            else:
                os.close(held)
        self._keeper.drop(file_id)

    def take_back(self, marks: Mapping[int, Fingerprint | None]) -> None:
        """Holds again what outlived the last process, where it is the very file that the journal means."""
        for file_id, descriptor in self._keeper.kept().items():
            mark, now = marks.get(file_id), fingerprint(descriptor)
            if mark is not None and (mark.device, mark.inode) == (now.device, now.inode):
                self._held[file_id] = descriptor
            else:
                os.close(descriptor)
                self._keeper.drop(file_id)

    def close(self) -> None:
        """Closes what is held here."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()


def _reopen(job: Job) -> int:
    """An fd pin after a restart: the path is opened again only if it is the very file that was handed over.

    O_PATH opens nothing that could block or answer; device, inode, size and times are then compared with the journal's.
    """
    lost = error(
        Code.SOURCE_LOST,
        f"the daemon was restarted while it held {job.pin.source} open, and can't find it again",
    )
    try:
        probe = os.open(job.pin.source, O_PATH | os.O_CLOEXEC)
    except OSError:
        raise lost from None
    try:
        if not stat.S_ISREG(os.fstat(probe).st_mode) or fingerprint(probe) != job.pin.fingerprint:
            raise lost
        return os.open(f"/proc/self/fd/{probe}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise lost from None
    finally:
        os.close(probe)
