"""What the daemon says of itself to whoever asks from outside: is it alive, is it ready, what has it done, how it does.

Every answer is bounded in time, and those who ask at once share one: a probe costs a commit, a scrape a look at every
file on its way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.figures import Backlog, Disk, Figures, Sending
from ml_dashd.core.model import Trouble
from ml_dashd.core.overview import Running, overview
from ml_dashd.ports import Clock, Journal, JournalError, Meter, Pins, Threads

T = TypeVar("T")
Check = Callable[[], Awaitable[Trouble | None]]
"""What is wrong, or None. Raises what it likes; it may also never end."""

log = logging.getLogger("ml_dashd.observe")

ANSWER_S = 5.0
"""How long anything that is asked may take; then it counts as failed. Probes usually wait ten seconds."""
HOLD_S = 1.0
"""An answer is used again for this long."""
LAG_LOOK_S = 0.5
ALIVE = "alive"
"""A setting that nobody writes: to read it, the journal's thread has to answer."""


class Shared(Generic[T]):
    """One call at a time for all who ask; its answer holds for HOLD_S."""

    def __init__(self, work: Callable[[], Awaitable[T]], clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._call: asyncio.Task[T] | None = None
        self._ended = 0.0

    async def ask(self) -> T:
        """The answer of a call that has just ended, is under way, or begins now. It goes on though nobody waits."""
        if self._call is None or (self._call.done() and self._clock.monotonic() - self._ended >= HOLD_S):
            self._call = asyncio.create_task(self._run())
            self._call.add_done_callback(_seen)
        return await asyncio.shield(self._call)

    async def _run(self) -> T:
        try:
            return await self._work()
        finally:
            self._ended = self._clock.monotonic()


def _seen(call: asyncio.Task[T]) -> None:
    """Whoever asked may have gone: its failure is then no news to anybody."""
    if not call.cancelled():
        call.exception()


class Observer:
    """Answers with health, readiness, metrics and status. `checks` are why the daemon may not be ready.

    `render` makes Prometheus' page of what the meter has counted and of the figures of this moment. It may block for a
    while. `counted` says what of it the status shows.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        backlog: Shared[Backlog],
        pins: Pins,
        threads: Threads,
        disks: Callable[[], Awaitable[Sequence[Disk]]],
        connections: Callable[[], int],
        sending: Callable[[], Sending],
        circuits: Callable[[], Mapping[str, int]],
        checks: Mapping[str, Check],
        clock: Clock,
        meter: Meter,
        render: Callable[[Figures], bytes],
        counted: Callable[[], Mapping[str, Mapping[str, int]]],
        running: Running,
    ) -> None:
        self._backlog = backlog
        self._threads = threads
        self._disks = disks
        self._connections = connections
        self._sending = sending
        self._circuits = circuits
        self._checks = {name: Shared(check, clock) for name, check in checks.items()}
        self._clock = clock
        self._meter = meter
        self._render = render
        self._counted = counted
        self._running = running
        self._alive = Shared(lambda: journal.setting(ALIVE), clock)
        self._spool_bytes = Shared(lambda: threads.run(pins.spool_bytes), clock)
        self._summary = Shared(journal.summary, clock)
        self._metrics = Shared(self._measure, clock)
        self._status = Shared(self._overview, clock)

    async def watch_lag(self) -> None:
        """Measures how late the loop comes, until it is cancelled."""
        while True:
            asked = self._clock.monotonic()
            await self._clock.sleep(LAG_LOOK_S)
            self._meter.lagged(max(0.0, self._clock.monotonic() - asked - LAG_LOOK_S))

    async def health(self) -> Mapping[str, Trouble]:
        """Why it should be started again; empty while the loop and the journal's thread answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._alive.ask()
        except TimeoutError:
            return {"journal": _late("the journal's thread")}
        except (JournalError, MLDashError):
            pass  # it has answered
        return {}

    async def ready(self) -> Mapping[str, Trouble]:
        """Why files that are handed over now are refused, or wait; by the name of the check that says so."""
        found = await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
        return {name: trouble for name, trouble in zip(self._checks, found, strict=True) if trouble is not None}

    async def metrics(self) -> bytes:
        """All that was counted, and the figures of this moment."""
        return await self._metrics.ask()

    async def status(self) -> Mapping[str, Any]:
        """How it does at this moment, without a name of a file or a user."""
        return await self._status.ask()

    async def _ask(self, name: str, check: Shared[Trouble | None]) -> Trouble | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await check.ask()
        except TimeoutError:
            return _late(f"the check of the {name}")
        except Exception as defect:
            log.exception("check_failed", extra={"check": name})
            return Trouble(Code.INTERNAL, f"the check failed: {type(defect).__name__}", "see the daemon's log")

    async def _measure(self) -> bytes:
        figures, _ = await self._look()
        return await self._threads.run(self._render, figures)

    async def _overview(self) -> Mapping[str, Any]:
        (figures, troubles), summary = await asyncio.gather(self._look(), _or_none(self._summary.ask()))
        return overview(self._running, figures, troubles, summary, self._counted(), self._clock.now_ms())

    async def _look(self) -> tuple[Figures, Mapping[str, Trouble]]:
        """The figures of this moment, and why it is not ready."""
        backlog, spool_bytes, disks, troubles = await asyncio.gather(
            _or_none(self._backlog.ask()), _or_none(self._spool_bytes.ask()), _or_none(self._disks()), self.ready()
        )
        figures = Figures(
            backlog=backlog,
            queue_age_s=None if backlog is None else self._age_s(backlog),
            spool_bytes=spool_bytes,
            disks=disks or (),
            connections=self._connections(),
            sending=self._sending(),
            circuits=self._circuits(),
            checks={name: name not in troubles for name in self._checks},
        )
        return figures, troubles

    def _age_s(self, backlog: Backlog) -> float:
        """The clock of the day may have been put back since."""
        return 0.0 if backlog.oldest_ms is None else max(0.0, (self._clock.now_ms() - backlog.oldest_ms) / 1000)


async def _or_none(asked: Awaitable[T]) -> T | None:
    """A figure that is not to be had now; the checks say why."""
    with suppress(OSError, TimeoutError, JournalError, MLDashError):
        async with asyncio.timeout(ANSWER_S):
            return await asked
    return None


def _late(what: str) -> Trouble:
    return Trouble(Code.TIMEOUT, f"{what} has not answered for {ANSWER_S:g} s", "see what the disks are busy with")


# ---- the checks of readiness, each a Check


def journal_check(journal: Journal) -> Check:
    """Whether the journal can be written: what can't be journaled is not taken."""

    async def check() -> Trouble | None:
        try:
            await journal.probe()
        except JournalError as failure:
            return Trouble(failure.code, str(failure), "free space on the disk of daemon.state_dir, or mend it")
        return None

    return check


def catalog_check(trouble: Callable[[], Trouble | None]) -> Check:
    """Whether stored files can be listed: until then they are kept, and wait."""

    async def check() -> Trouble | None:
        return trouble()

    return check


def store_check(backlog: Shared[Backlog], obstacle: Callable[[], Trouble | None]) -> Check:
    """Whether files wait for an operator. Their names are their owners' business, so they are only counted.

    `obstacle` says why they would wait, should some come.
    """

    async def check() -> Trouble | None:
        if (trouble := obstacle()) is not None:
            return trouble
        blocked = (await backlog.ask()).blocked
        if not blocked:
            return None
        worst = max(blocked, key=lambda each: each.files)
        counts = ", ".join(f"{each.trouble.code} {each.files}" for each in blocked)
        return Trouble(worst.trouble.code, f"files are blocked: {counts}", worst.trouble.hint)

    return check


def spool_check(failure: Callable[[], Trouble | None], disks: Callable[[], Awaitable[Sequence[Disk]]]) -> Check:
    """Whether sources can be kept: no sync of the spool has failed, and none of its folders is read-only or gone."""

    async def check() -> Trouble | None:
        if (failed := failure()) is not None:
            return failed
        try:
            read_only = [disk.folder for disk in await disks() if disk.read_only]
        except OSError as gone:
            return Trouble(Code.DISK_FAILED, f"a spool folder can't be reached: {gone}", "mount its disk again")
        if read_only:
            return Trouble(Code.DISK_FAILED, f"{', '.join(read_only)} is read-only", "mend the disk and remount it")
        return None

    return check


def disks_of(
    folders: Sequence[Path], look: Callable[[Path], Disk], threads: Threads, clock: Clock
) -> Shared[list[Disk]]:
    """The file systems of the spool's folders, asked in a thread: a disk that is gone may not answer."""

    def ask() -> list[Disk]:
        return [look(folder) for folder in folders]

    return Shared(lambda: threads.run(ask), clock)
