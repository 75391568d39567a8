"""The start: journal and spool are brought together before anything is accepted or sent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ml_dashd.core.model import Job
from ml_dashd.core.states import UNFINISHED
from ml_dashd.ports import Journal, Pins, Threads

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
