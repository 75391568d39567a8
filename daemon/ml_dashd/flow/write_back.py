"""Sources of files that were acknowledged as in memory, onto stable storage after the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.schedule import LINGER_S
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.supersede import Supersede
from ml_dashd.ports import Clock, Journal, JournalError

log = logging.getLogger("ml_dashd.flow")

SYNC_AGAIN_S = 5.0
"""After a sync that could not be asked for, for want of a descriptor, say, the next try waits this long."""


class WriteBack:
    """Writes them back, a task each. `give_up` is told of a file that the disk could not keep."""

    def __init__(
        self,
        *,
        journal: Journal,
        settle: Settle,
        supersede: Supersede,
        bell: Bell,
        clock: Clock,
        give_up: Callable[[Job, Exception], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._settle = settle
        self._supersede = supersede
        self._bell = bell
        self._clock = clock
        self._give_up = give_up
        self._closing = asyncio.Event()
        self._syncing: set[asyncio.Task[None]] = set()
        self._lingering: asyncio.Task[None] | None = None

    def later(self, job: Job) -> None:
        """Starts the write-back; `on_disk` is noted when it is done."""
        task = asyncio.create_task(self._sync(job), name=f"sync {job.id}")
        self._syncing.add(task)
        task.add_done_callback(self._syncing.discard)

    async def close(self, patience_s: float) -> None:
        """What is being written may be finished in that time, the rest is not begun."""
        self._closing.set()
        if self._syncing:
            await asyncio.wait(self._syncing, timeout=patience_s)
        for task in self._syncing:
            task.cancel()
        await asyncio.gather(*self._syncing, return_exceptions=True)

    async def _sync(self, job: Job) -> None:
        """Until it is on stable storage: a file keeps its ack of "memory" while the disk can't be asked, or refuses."""
        await self._linger()
        told = False
        while (failure := await self._bring_to_disk(job)) is not None:
            if not told:
                event = {"id": job.id, "path": job.record.path, "error": failure}
                log.warning("not_on_disk", extra=event)
                told = True
            if _code_of(failure) is Code.DISK_FAILED or await self._is_closing(SYNC_AGAIN_S):
                break
        self._bell.ring()

    async def _linger(self) -> None:
        """Those that come within one LINGER_S go on together: they share the sync of their folder, and the commit."""
        if self._lingering is None or self._lingering.done():
            self._lingering = asyncio.create_task(self._clock.sleep(LINGER_S), name="linger")
        await asyncio.shield(self._lingering)

    async def _bring_to_disk(self, job: Job) -> Exception | None:
        """What kept the source, or its note, from stable storage; None where nothing did, or the file is given up."""
        try:
            await self._settle.content(job.pin, job.id)
        except Exception as failure:  # noqa: BLE001 whatever it is, it is tried again or said
            if _code_of(failure) is not Code.DISK_FAILED:
                return failure
            event = {"id": job.id, "path": job.record.path, "error": failure}
            log.error("sync_failed", extra=event)  # noqa: TRY400
            await self._give_up(job, failure)  # it must not be sent from a disk that could not keep it
            return None
        if job.pin.kind is PinKind.FD:
            return None  # a descriptor does not outlive a reboot, wherever its bytes are
        try:
            await self._settle.entry(job.pin)
            await self._journal.mark_on_disk(job)
            await self._supersede.run([replace(job, on_disk=True)])
        except Exception as failure:  # noqa: BLE001 as above
            return failure
        return None

    async def _is_closing(self, seconds: float) -> bool:
        """Waits so long; whether the daemon is stopped meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        return self._closing.is_set()


def _code_of(failure: Exception) -> Code | None:
    return failure.code if isinstance(failure, MLDashError | JournalError) else None
