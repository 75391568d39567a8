"""What is stored and waits to be listed, while the catalog is away: minutes or hours.

Such files are in no lane of the worker: uploads go on. One probe, with full jitter up to every 15 s, asks the catalog
in the place of all; when it is back, they are listed in batches, in the order of their ids. What a commit has done
whose answer was lost is found the same when it is repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ml_dash.errors import TABLE, Code
from ml_dashd.core.circuit import CATALOG_PROBE_CAP_S, pause_s
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.retry import StoreError
from ml_dashd.ports import Catalog, Clock, Journal, JournalError, Superseded

T = TypeVar("T")
End = Callable[[Sequence[Job]], Awaitable[None]]
"""Lists files and ends them. Raises AwayError."""

log = logging.getLogger("ml_dashd.flow")

BATCH = 500
"""Files of one commit: a round trip and a write of a few hundred KiB."""
IDLE_S = 60.0
"""While nothing happens the catalog is asked this often, so that status and readiness know how it is."""
HOLD_MS = 24 * 3600 * 1000
"""For so long a file is put off in the journal. That is for who reads it: the outbox asks for none of it."""
STUMBLED_S = 5.0


class AwayError(Exception):
    """The catalog can't be asked now, or does not take anything."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class Outbox:
    """Knows whether the catalog is away, and has the files that wait for it."""

    def __init__(self, journal: Journal, catalog: Catalog, clock: Clock) -> None:
        self._journal = journal
        self._catalog = catalog
        self._clock = clock
        self._trouble: Trouble | None = None
        self._probes = 0
        self._loose = True
        """Whether files that wait may be put off no longer: a start, or a drain, lets everything run now."""
        self._woken = asyncio.Event()
        self._came = False
        """Whether a file was put here while a round went on, which may have been past its id."""

    @property
    def trouble(self) -> Trouble | None:
        """Why the catalog takes nothing; None where it did the last time. While there is one, only the probe asks."""
        return self._trouble

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What the catalog answers. Raises AwayError."""
        try:
            return await work
        except JournalError as failure:
            known = self._catalog.trouble() or Trouble(failure.code, str(failure), TABLE[failure.code].hint)
            raise AwayError(known) from failure

    async def put(self, jobs: Sequence[Job], trouble: Trouble) -> None:
        """Takes files that are verified and can't be listed now."""
        await self._journal.defer([job.id for job in jobs], self._clock.now_ms() + HOLD_MS, trouble)
        self._came = True
        if self._trouble is None:
            self._woken.set()

    def hasten(self) -> None:
        """The catalog is asked now."""
        self._loose = True
        self._woken.set()

    async def run(self, end: End) -> None:
        """Asks, and lists what waits, until it is cancelled."""
        while True:
            self._woken.clear()
            self._came = False
            try:
                await self._round(end)
                self._is_back()
                pause = 0.0 if self._came else IDLE_S * (0.5 + self._clock.jitter() / 2)
            except AwayError as away:
                pause = await self._is_away(away.trouble)
            except Exception:
                log.exception("outbox_stumbled")
                pause = STUMBLED_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def _round(self, end: End) -> None:
        after, files = 0, 0
        while jobs := await self._journal.deferred(after, BATCH):
            await self._end_all(jobs, end)
            self._is_back()  # what is stored meanwhile is listed at once
            after, files = jobs[-1].id, files + len(jobs)
        if files:
            log.info("outbox_drained", extra={"files": files, "last": after})
        else:
            await self.ask(self._catalog.get([0]))

    async def _end_all(self, jobs: Sequence[Job], end: End) -> None:
        """One that can't be ended keeps no other back: it has its turn again in the next round."""
        try:
            await end(jobs)
        except (AwayError, JournalError):
            raise
        except Exception as defect:  # noqa: BLE001 one file's
            if len(jobs) > 1:
                for job in jobs:
                    await self._end_all([job], end)
                return
            await self._note(jobs[0], defect)

    async def _note(self, job: Job, failure: Exception) -> None:
        if isinstance(failure, Superseded):  # by another hand
            return
        if isinstance(failure, StoreError):  # of one that was deleted
            log.info("clean_postponed", extra={"id": job.id, "error": failure})
            return
        log.error("file_stumbled", extra={"id": job.id, "path": job.record.path}, exc_info=failure)
        trouble = Trouble(Code.INTERNAL, f"{type(failure).__name__}: {failure}", TABLE[Code.INTERNAL].hint)
        await self._journal.hold([job.id], self._clock.now_ms() + HOLD_MS, trouble)

    def _is_back(self) -> None:
        if self._trouble is not None:
            log.info("catalog_back")
        self._trouble, self._probes, self._loose = None, 0, False

    async def _is_away(self, trouble: Trouble) -> float:
        """How long to wait before the next probe."""
        if self._trouble is None:
            log.warning("catalog_away", extra={"code": trouble.code, "error": trouble.message})
        self._trouble = trouble
        self._probes += 1
        if self._loose:
            with suppress(JournalError):  # then nothing is put off, which the log of the journal tells
                await self._journal.hold_deferred(self._clock.now_ms() + HOLD_MS, trouble)
                self._loose = False
        return pause_s(self._probes, self._clock.jitter(), CATALOG_PROBE_CAP_S)
