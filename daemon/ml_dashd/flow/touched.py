"""Files that were only touched: their new times are journaled, for the next daemon to know them by.

Who saw that nothing was written (edge/witness.py) ends with this daemon. It keeps leases on files, by which the command
touch is told from who writes; whoever comes to write to one is let in at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ml_dash.errors import MLDashError
from ml_dashd.core.model import Job
from ml_dashd.ports import Clock, Journal, JournalError, Pins, Threads

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 1.0
"""Between two looks: so long may a touch be unknown to who is killed, and so often is a file journaled at most."""
AT_ONCE_S = 0.001
"""Between two looks after somebody came to a leased file: if it was touch, the times are set before the next comes."""
SOON_S = 0.05
"""So long: touch may have to wait for a processor before it sets them."""
SETTLED_S = 0.15
"""Before the last look, where somebody has just touched a file: from then on a later write would have another time."""


class Touched:
    """Looks for them."""

    def __init__(self, *, journal: Journal, pins: Pins, threads: Threads, clock: Clock) -> None:
        self._journal = journal
        self._pins = pins
        self._threads = threads
        self._clock = clock
        self._came = asyncio.Event()

    def give_way(self) -> None:
        """Somebody may wait to write: called when the kernel says so."""
        if self._pins.give_way():
            self._came.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._until_due()
            await self.look()

    async def _until_due(self) -> None:
        """Until the next look, which comes soon after somebody came to a leased file."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._came.wait()
        if self._came.is_set():
            self._came.clear()
            due = self._clock.monotonic() + SOON_S
            while self._clock.monotonic() < due:
                await self._clock.sleep(AT_ONCE_S)
                self._pins.lease_touched()

    async def last_look(self) -> None:
        """At a stop: there is no next look for what was touched a moment ago."""
        if await self.look():
            await self._clock.sleep(SETTLED_S)
            await self.look()

    async def look(self) -> bool:
        """Journals what was touched since the last look; whether something was.

        Never fails: what is not noted, only the next daemon minds.
        """
        self.give_way()
        self._pins.lease_touched(last=True)
        touched = self._pins.touched()
        try:
            for job in await self._journal.get(touched) if touched else ():
                await self._note(job)
        except JournalError as refused:
            log.warning("touch_not_noted", extra={"files": len(touched), "error": refused})
        return bool(touched)

    async def _note(self, job: Job) -> None:
        try:
            mark = await self._threads.run(self._pins.retimed, job, self._clock.now_ms())
        except (MLDashError, OSError):
            return  # its sender finds out, and says so
        if mark is not None:
            await self._journal.retime(job, mark)
