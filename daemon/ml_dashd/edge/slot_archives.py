"""Archives in slots: their checksums are put right once, and no longer than the slot is this save's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ml_dashd.core.model import Job
from ml_dashd.edge.seal import seal
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.source import lost
from ml_dashd.ports import Faults, NotAnArchiveError


class SlotArchives:
    """Those of one spool."""

    def __init__(self, slots: SlotFiles, faults: Faults) -> None:
        self._slots = slots
        self._faults = faults
        self._sealed: set[int] = set()
        """Files whose archives are right. Nothing is noted of it in the journal: another daemon looks again."""

    def seal(self, job: Job, path: str) -> Iterator[bool]:
        """As `Pins.sealing`."""
        if job.id in self._sealed:
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise lost(job) from None
        try:
            for wrote in seal(descriptor, job.record.size_bytes, partial(self.still_its_own, job)):
                if wrote:
                    self._faults.at("seal.written")
                yield wrote
            self._faults.at("seal.done")
        except NotAnArchiveError:
            self._note(job, descriptor)  # nor will it be one the next time
            raise
        else:
            self._note(job, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def still_its_own(self, job: Job) -> Iterator[None]:
        """A late reader's job may have ended: its slot is another save's by then, neither to be read nor written to."""
        with self._slots.kept_for(job.pin.name, job.id) as still:
            if not still:
                raise lost(job)
            yield

    def forget(self, file_id: int) -> None:
        """The slot is not this file's any more."""
        self._sealed.discard(file_id)

    def _note(self, job: Job, descriptor: int) -> None:
        with self.still_its_own(job):
            if os.fstat(descriptor).st_nlink:
                self._sealed.add(job.id)
