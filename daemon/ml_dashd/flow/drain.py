"""Drains: the most valuable files first, until nothing is left or the time is up; then a list of what did not make it.

Nothing is lost by one: what is left stays in the journal, and goes on afterwards or at the next start. Hand-offs are
taken all the while, since the last checkpoint of a node that is about to go is the one that must be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ml_dashd.core.figures import Left, Unsent
from ml_dashd.core.states import State
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.worker import Worker
from ml_dashd.ports import Clock, Journal, JournalError, Manifest, Threads

log = logging.getLogger("ml_dashd.flow")

MAX_DRAIN_MS = 24 * 3600 * 1000
LOOK_S = 0.5
"""Progress is reported at least this often."""
REST_S = 0.05
"""Between two looks, though files end meanwhile."""
REST_FACTOR = 10
"""And so many times what the last look took: with 100,000 files it is 0.15 s of the journal's time."""
LISTED = 10_000
"""Files that the manifest names, the most valuable ones; the rest is counted."""
TIDY_S = 1.0

_WHY = {
    State.QUEUED: "it was not begun yet",
    State.SENDING: "it was being sent",
    State.COMPLETING: "its bytes are sent; it was being completed",
    State.VERIFIED: "it is stored; it was being listed",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a drain has come."""

    left: Left
    most_files: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a drain ended. `manifest` is its name in the state folder, "" where there is nothing to list."""

    left: Left
    failed: int
    manifest: str
    files: Sequence[Unsent]


Report = Callable[[Seen], Awaitable[None]]


class Drain:
    """Runs drains: those that clients ask for, and the one before a stop."""

    def __init__(
        self, *, journal: Journal, worker: Worker, manifest: Manifest, threads: Threads, bell: Bell, clock: Clock
    ) -> None:
        self._journal = journal
        self._worker = worker
        self._manifest = manifest
        self._threads = threads
        self._bell = bell
        self._clock = clock
        self._lock = asyncio.Lock()
        self._since_ms = 0
        self._stopping = False
        self._spent = False
        self._last: int | None = None
        """The newest file that the manifest may name: once all up to it are done, the manifest is history."""

    async def run(self, seconds: float, report: Report, *, last: bool) -> Outcome:
        """One that a client asks for; it ends with its client, whom `report` reaches.

        After the `last` one, the stop that follows does not drain again.
        """
        since = self._clock.now_ms()
        log.info("drain_started", extra={"seconds": seconds})
        try:
            await self._worker.hasten()
            await self._watch(seconds, report)
        except BaseException:
            log.info("drain_cancelled")
            raise
        finally:
            await self._worker.relax()
        self._spent = self._spent or last
        return await self._record("drain", since)

    async def before_stop(self, seconds: float) -> None:
        """The one of a stop. What is held up by something that an operator has to mend is tried once and not awaited.

        A journal that does not answer ends it, too; `relax` is left to the next start.
        """
        self._since_ms = self._clock.now_ms()
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._spent else seconds):
                try:
                    await self._worker.hasten()
                    await self._watch(seconds, None)
                except JournalError as failure:
                    log.warning("drain_stumbled", extra={"error": failure})
        self._stopping = True
        self._bell.ring()  # clients that drain are answered before they are hung up on

    async def after_stop(self) -> None:
        """Lists what the stop has broken off."""
        try:
            await self._record("stop", self._since_ms)
        except JournalError as failure:
            log.warning("drain_stumbled", extra={"error": failure})

    async def resume(self) -> None:
        """At the start: what an earlier manifest names goes on."""
        if await self._threads.run(self._manifest.exists):
            self._last = await self._journal.high_water()

    async def tidy(self) -> None:
        """Until it is cancelled: removes the manifest once everything that it names has made it."""
        while True:
            rung = self._bell.listen()
            try:
                await self._tidy_once()
            except (JournalError, OSError) as failure:
                log.warning("drain_stumbled", extra={"error": failure})
            await self._bell.wait(rung, LOOK_S * 60)
            await self._clock.sleep(TIDY_S)

    async def _tidy_once(self) -> None:
        async with self._lock:
            if self._last is not None and await self._journal.is_done_with(self._last):
                await self._threads.run(self._manifest.remove)
                self._last = None
                log.info("drain_made_up")

    async def _watch(self, seconds: float, report: Report | None) -> None:
        """Until nothing is left, or the time is up."""
        end = self._clock.monotonic() + seconds
        most_files = most_bytes = 0
        while True:
            began = self._clock.monotonic()
            rung = self._bell.listen()
            left = await self._journal.left(self._clock.now_ms())
            most_files, most_bytes = max(most_files, left.files), max(most_bytes, left.left_bytes)
            if report is not None:
                await report(Seen(left, most_files, most_bytes))
            hopeless = report is None and left.files == left.held
            now = self._clock.monotonic()
            if not left.files or hopeless or self._stopping or now >= end:
                return
            await self._clock.sleep(min(max(REST_S, REST_FACTOR * (now - began)), end - now))
            await self._bell.wait(rung, max(0.0, min(LOOK_S, end - self._clock.monotonic())))

    async def _record(self, why: str, since_ms: int) -> Outcome:
        """Writes the manifest anew, or removes it."""
        async with self._lock:
            left = await self._journal.left(self._clock.now_ms())
            failed = await self._journal.failed_count(since_ms)
            files = await self._journal.unsent(since_ms, LISTED)
            # One that tells of failures stays until the next start: they do not mend themselves.
            self._last = None if failed or not left.files else await self._journal.high_water()
            path = await self._write(_facts(why, self._clock.now_ms(), left, failed, files))
        event = {"why": why, "left": left.files, "left_bytes": left.left_bytes, "failed": failed, "manifest": path}
        log.info("drained", extra=event)
        return Outcome(left, failed, path, files)

    async def _write(self, facts: dict[str, Any]) -> str:
        """The manifest's name; "" where there is nothing to list, or no room for it: the journal has it all."""
        try:
            if facts["leftFiles"] or facts["failedFiles"]:
                return await self._threads.run(self._manifest.write, facts)
            await self._threads.run(self._manifest.remove)
        except OSError as failure:
            log.warning("drain_stumbled", extra={"error": failure})
        return ""


def _facts(why: str, now_ms: int, left: Left, failed: int, files: Sequence[Unsent]) -> dict[str, Any]:
    """The manifest, for people and programs."""
    return {
        "madeAt": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "why": why,
        "leftFiles": left.files,
        "leftBytes": left.left_bytes,
        "failedFiles": failed,
        "files": [_entry(file) for file in files],
    }


def _entry(file: Unsent) -> dict[str, Any]:
    job, record, trouble = file.job, file.job.record, file.job.trouble
    return {
        "id": str(job.id),
        "experimentId": f"{record.namespace}/{record.project}/{record.experiment}",
        "path": record.path,
        "sizeBytes": record.size_bytes,
        "sentBytes": file.sent_bytes,
        "priority": job.priority,
        "state": job.state,
        "why": trouble.message if trouble else _WHY[job.state],
        "hint": trouble.hint if trouble else "",
    }
