"""A writer comes to a file that is on its way: it waits while the old bytes are copied into the spool, then goes on.

That is asked for with `protect="lease"`. The order is: the copy is whole, the journal names it, and only then the lease
is given back. It is not brought to the disk first, which would keep the writer waiting as long again: the file's `ack`
is `memory` until it is. Where that takes longer than a writer may wait, it is let go, and what it then changes fails
the file, as without a lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ml_dash.errors import MLDashError
from ml_dashd.core.model import Job, Pin, PinKind
from ml_dashd.core.overwrite import CopySpeed
from ml_dashd.core.states import State
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.sources import kept_if_journaled
from ml_dashd.ports import Clock, Faults, Journal, JournalError, Pins, Superseded, Threads

log = logging.getLogger("ml_dashd.flow")

_NEEDING = (State.QUEUED, State.SENDING, State.COMPLETING)
"""As for copies in the background: a file that is completed needs its source once more where the upload is lost."""


class Overwrites:
    """Takes leases, and answers those who wait for them. `sync` brings a file's new pin to stable storage.

    `threads` are of its own: a writer waits behind no other copy or fsync.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        pins: Pins,
        threads: Threads,
        disk: Threads,
        bell: Bell,
        clock: Clock,
        faults: Faults,
        speed: CopySpeed,
        longest_wait_s: float,
        sync: Callable[[Job], None],
    ) -> None:
        self._journal = journal
        self._pins = pins
        self._threads = threads
        self._disk = disk
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._speed = speed
        self._longest_wait_s = longest_wait_s
        self._sync = sync
        self._giving_way: dict[int, asyncio.Task[None]] = {}

    async def protect(self, job: Job) -> None:
        """Takes a lease on a file that was taken in, where its owner could overwrite it, and one is to be had.

        Never fails: without one, the rules of the file's pin hold.
        """
        if job.pin.kind not in (PinKind.LINK, PinKind.FD):
            return
        seconds = self._speed.seconds_of(job.record.size_bytes)
        if seconds > self._longest_wait_s:
            refusal: str | None = f"a writer would wait {seconds:.1f} s for its copy"
        else:
            refusal = await self._threads.run(self._pins.lease, job)
        if refusal is not None:
            log.info("lease_not_taken", extra={"id": job.id, "path": job.record.path, "reason": refusal})
            return
        if not any(_needs(now) for now in await self._journal.get([job.id])):  # it is stored, or copied, by now
            self._pins.unlease(job.id)
        elif not self._pins.leased(job.id):  # somebody has asked before it was noted that it is held
            self._begin(job.id)

    def look(self) -> None:
        """Somebody may wait to write: called when the kernel says so."""
        for file_id in self._pins.wanted():
            self._begin(file_id)

    def _begin(self, file_id: int) -> None:
        if file_id not in self._giving_way:
            task = asyncio.create_task(self._give_way(file_id), name=f"lease {file_id}")
            self._giving_way[file_id] = task
            task.add_done_callback(partial(self._gave_way, file_id))

    def _gave_way(self, file_id: int, _: asyncio.Task[None]) -> None:
        del self._giving_way[file_id]

    async def close(self) -> None:
        """Waits for copies that are being made for somebody who waits."""
        await asyncio.gather(*self._giving_way.values(), return_exceptions=True)

    async def _give_way(self, file_id: int) -> None:
        """However the rescue goes, the writer waits no longer than it may."""
        deadline = self._clock.monotonic() + self._longest_wait_s
        rescue = asyncio.create_task(self._rescue(file_id, deadline))
        await asyncio.wait([rescue], timeout=self._longest_wait_s)
        self._pins.unlease(file_id)
        try:
            await rescue
        except Superseded:
            return  # it needs its source no longer
        except (MLDashError, JournalError, OSError) as refused:
            log.warning("lease_given_up", extra={"id": file_id, "error": refused})

    async def _rescue(self, file_id: int, deadline: float) -> None:
        for job in await self._journal.get([file_id]):
            if not _needs(job):
                return
            pin = await self._copy(job, deadline)
            await self._take_over(job, pin)
            self._pins.unlease(file_id)
            log.info("file_copied", extra={"id": file_id, "bytes": job.record.size_bytes, "was": "lease"})
            await self._disk.run(self._pins.release, job.pin, file_id)
            self._sync(replace(job, pin=pin, on_disk=False))
            self._bell.ring()

    async def _copy(self, job: Job, deadline: float) -> Pin:
        begun = self._clock.monotonic()

        def in_time() -> bool:
            return self._clock.monotonic() < deadline

        try:
            pin = await self._threads.run(self._pins.copy, job, in_time)
        except MLDashError:
            if not in_time():  # at least as long, so the next file of that size is not leased
                self._speed.note(job.record.size_bytes, self._clock.monotonic() - begun)
            raise
        self._speed.note(job.record.size_bytes, self._clock.monotonic() - begun)
        return pin

    async def _take_over(self, job: Job, pin: Pin) -> None:
        """The copy in place of the old pin."""
        async with kept_if_journaled(pin, job.id, self._journal, self._pins, self._disk):
            self._faults.at("lease.copied")
            await self._journal.repin(job, pin, on_disk=False)
        self._faults.at("lease.repinned")


def _needs(job: Job) -> bool:
    """Whether its source is still read, and may be overwritten."""
    return job.state in _NEEDING and not job.cancel_requested and job.pin.kind in (PinKind.LINK, PinKind.FD)
