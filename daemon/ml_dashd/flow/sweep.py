"""Housekeeping: finished files are forgotten, after the store was asked once more what it still has of them."""

from __future__ import annotations

import logging
from contextlib import suppress

from ml_dashd.core.model import Job
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.flow.finish import Finish
from ml_dashd.ports import Clock, Journal, Superseded

log = logging.getLogger("ml_dashd.flow")

KEEP_FINISHED_MS = 24 * 3600 * 1000
"""Rows of finished files stay this long: a late repeat of a request, or of Create, finds them."""
PAUSE_S = 600.0
BATCH = 200


class Sweep:
    """Runs beside the worker, from the start to the end."""

    def __init__(self, journal: Journal, finish: Finish, clock: Clock) -> None:
        self._journal = journal
        self._finish = finish
        self._clock = clock

    async def run(self) -> None:
        """Sweeps now, and then every ten minutes."""
        while True:
            try:
                await self.once(self._clock.now_ms() - KEEP_FINISHED_MS)
            except StoreError as failure:
                log.info("sweep_postponed", extra={"error": failure})
            except Exception:
                log.exception("sweep_failed")
            await self._clock.sleep(PAUSE_S)

    async def once(self, before_ms: int) -> None:
        """Forgets what was finished before then.

        A request that was given up may have reached the store after all: a Create, behind the upload that took its
        place, or a Put, behind the deletion. It costs money until somebody removes it; the key holds the file's id, so
        it is ours.
        """
        for job in await self._journal.unclean(BATCH):
            with suppress(Superseded):  # it is tried again
                await self._finish.clean(job)
        while jobs := await self._journal.finished(before_ms, BATCH):
            for job in jobs:
                await self._clear(job)
            await self._journal.forget([job.id for job in jobs])

    async def _clear(self, job: Job) -> None:
        """What may not be removed stays, as after a failure (flow/finish.py): it keeps no other file's row back."""
        try:
            await self._finish.clear(job)
        except StoreError as refused:
            if refused.fault is not Fault.DENIED:
                raise
            log.warning("object_left", extra={"key": job.record.key, "error": refused})
