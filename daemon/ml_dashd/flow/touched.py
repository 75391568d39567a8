"""Files that were only touched: their new times are journaled, for the next daemon to know them by.

Who saw that nothing was written (edge/witness.py) ends with this daemon.
"""

from __future__ import annotations

import logging

from ml_dash.errors import MLDashError
from ml_dashd.core.model import Job
from ml_dashd.ports import Clock, Journal, JournalError, Pins, Threads

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 1.0
"""Between two looks: so long may a touch be unknown to who is killed, and so often is a file journaled at most."""


class Touched:
    """Looks for them."""

    def __init__(self, *, journal: Journal, pins: Pins, threads: Threads, clock: Clock) -> None:
        self._journal = journal
        self._pins = pins
        self._threads = threads
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Journals what was touched since the last look. Never fails: what is not noted, only the next daemon minds."""
        touched = self._pins.touched()
        try:
            for job in await self._journal.get(touched) if touched else ():
                await self._note(job)
        except JournalError as refused:
            log.warning("touch_not_noted", extra={"files": len(touched), "error": refused})

    async def _note(self, job: Job) -> None:
        try:
            mark = await self._threads.run(self._pins.retimed, job, self._clock.now_ms())
        except (MLDashError, OSError):
            return  # its sender finds out, and says so
        if mark is not None:
            await self._journal.retime(job, mark)
