"""Copies in the background: a source that is only linked or held gets bytes of the daemon's own.

From then on its owner may overwrite it, and a descriptor may be lost with the daemon. A file that is stored soon is
never copied; the order is that of every other pin: on stable storage, in the journal, and only then the old one goes.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import Job, Pin
from ml_dashd.core.overwrite import CopySpeed
from ml_dashd.core.schedule import copy_delay_s
from ml_dashd.core.states import State
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.sources import kept_if_journaled
from ml_dashd.flow.whole import whole
from ml_dashd.ports import Clock, Faults, Journal, JournalError, Pins, Superseded, Threads

log = logging.getLogger("ml_dashd.flow")

RETRY_S = 60.0
"""How long a copy waits for room in the spool before it is looked at again; a large file that is being sent when its
time comes, no longer than `after_s`, for the attempt may end without it being stored."""
LEAST_PAUSE_S = 1.0
"""Between two looks at such a file, however short `after_s` is."""


class _Due:
    """Files, each with its time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int]] = []
        self._added = asyncio.Event()

    def put(self, file_id: int, delay_s: float) -> None:
        heapq.heappush(self._heap, (self._clock.monotonic() + delay_s, file_id))
        self._added.set()

    async def take(self) -> int:
        """The next one, once its time has come."""
        while True:
            self._added.clear()
            pause = self._heap[0][0] - self._clock.monotonic() if self._heap else None
            if pause is not None and pause <= 0:
                return heapq.heappop(self._heap)[1]
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._added.wait()


class Copies:
    """Copies one small file after the other, and beside them one large file after the other.

    `sending` says whether a file is being sent now; `kept` is told of those that outlive a reboot from now on; `speed`
    of what the disk was found to take.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        pins: Pins,
        settle: Settle,
        disk: Threads,
        bell: Bell,
        clock: Clock,
        faults: Faults,
        below_bytes: int,
        after_s: float,
        sending: Callable[[int], bool],
        kept: Callable[[Sequence[Job]], Awaitable[None]],
        speed: CopySpeed,
    ) -> None:
        self._journal = journal
        self._pins = pins
        self._settle = settle
        self._disk = disk
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._below = below_bytes
        self._after = after_s
        self._sending = sending
        self._kept = kept
        self._speed = speed
        self._small, self._large = _Due(clock), _Due(clock)

    def add(self, job: Job) -> None:
        """Notes a file that was taken in; it is copied in its time, if it needs to be."""
        delay = copy_delay_s(job, self._below, self._after)
        if delay is not None:
            self._lane(job).put(job.id, delay)

    async def run(self) -> None:
        """Copies what is due, until it is cancelled."""
        async with asyncio.TaskGroup() as both:  # it ends once both have: a copy that is under way is waited for
            both.create_task(self._serve(self._small))
            both.create_task(self._serve(self._large))

    async def _serve(self, due: _Due) -> None:
        while True:
            file_id = await due.take()
            try:
                await self._look(file_id)
            except Exception:
                log.exception("copy_failed", extra={"id": file_id})

    def _lane(self, job: Job) -> _Due:
        return self._small if job.record.size_bytes <= self._below else self._large

    async def _look(self, file_id: int) -> None:
        for job in await self._journal.get([file_id]):
            # A file that is completed needs its source once more where the store has lost the upload.
            if job.state not in (State.QUEUED, State.SENDING, State.COMPLETING) or job.cancel_requested:
                return
            if copy_delay_s(job, self._below, self._after) is None:
                return  # it has one: a file that a start has found, and its client asks for again, is noted twice
            if job.record.size_bytes > self._below and self._sending(file_id):
                self._large.put(file_id, max(LEAST_PAUSE_S, min(self._after, RETRY_S)))
                return
            await whole(self._copy(job))

    async def _copy(self, job: Job) -> None:
        try:
            begun = self._clock.monotonic()
            pin = await self._disk.run(self._pins.copy, job)
            self._speed.note(job.record.size_bytes, self._clock.monotonic() - begun)
            await self._take_over(job, pin)
        except Superseded:
            return
        except (MLDashError, JournalError, OSError) as refused:
            self._after_refusal(job, refused)
            return
        self._faults.at("copies.after_repin")
        await self._disk.run(self._pins.release, job.pin, job.id)
        event = {"id": job.id, "bytes": job.record.size_bytes, "was": job.pin.kind}
        log.info("file_copied", extra=event)
        await self._kept([replace(job, pin=pin, on_disk=True)])
        self._bell.ring()

    async def _take_over(self, job: Job, pin: Pin) -> None:
        """The copy in place of the old pin."""
        async with kept_if_journaled(pin, job.id, self._journal, self._pins, self._disk):
            self._faults.at("copies.copied")
            await self._settle.settle(pin, job.id)
            self._faults.at("copies.before_repin")
            await self._journal.repin(job, pin)

    def _after_refusal(self, job: Job, refused: MLDashError | JournalError | OSError) -> None:
        code = refused.code if isinstance(refused, MLDashError | JournalError) else Code.RETRY_LATER
        if code in (Code.SOURCE_CHANGED, Code.SOURCE_LOST):
            return  # its sender finds out, and says so
        message = refused.message if isinstance(refused, MLDashError) else str(refused)
        event = {"id": job.id, "code": code, "error": message}
        log.warning("copy_postponed", extra=event)
        self._lane(job).put(job.id, RETRY_S)
