"""The start: journal and spool are brought together before anything is accepted or sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.ports import Journal, JournalError, Pins, Threads

log = logging.getLogger("ml_dashd.flow")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier daemon left unfinished, which goes on now."""

    jobs: Sequence[Job]

    @property
    def size_bytes(self) -> int:
        return sum(job.record.size_bytes for job in self.jobs)

    def before(self, ms: int) -> Recovered:
        """What of it was handed over before then."""
        return Recovered([job for job in self.jobs if job.record.created_ms < ms])


async def recover(journal: Journal, pins: Pins, threads: Threads) -> Recovered:
    """Removes from the spool what no file needs, as a crash before the journal leaves it; returns the queue.

    What the store has of each file is asked when that file goes on: the journal is intent, the remote is evidence.
    """
    jobs = await journal.pinned()
    strays = await threads.run(pins.sweep, jobs)
    for number, job in enumerate(jobs):
        if (pin := await threads.run(pins.rebase, job)) is not None:
            jobs[number] = await journal.note(job, pin=pin)
    waiting = [job for job in jobs if job.state in UNFINISHED]
    if waiting or strays:
        log.info("recovered", extra={"files": len(waiting), "strays_removed": strays})
    return Recovered(waiting)


async def hold_again(jobs: Sequence[Job], journal: Journal, pins: Pins, threads: Threads) -> None:
    """Holds what the last daemon held, beside all else: a file system that hangs keeps nothing but this waiting."""
    for job in jobs:
        if job.pin.kind is PinKind.FD:
            await threads.run(pins.hold_again, job)
            if await _is_over(job, journal):
                await threads.run(pins.release, job.pin, job.id)


async def _is_over(job: Job, journal: Journal) -> bool:
    """Whether it has ended, or was copied, meanwhile: nobody else lets go of what is held since."""
    try:
        found = await journal.get([job.id])
    except JournalError:
        return False  # what it knew before still holds
    return [now for now in found if now.pin.kind is PinKind.FD and now.state in (*UNFINISHED, State.FAILED)] == []
