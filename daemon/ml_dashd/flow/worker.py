"""Keeps files moving: two lanes, each with files under way up to its width; and what follows when one stumbles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from ml_dash.errors import TABLE, Code, MLDashError
from ml_dashd.core.circuit import HOLD_MS
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.retry import Next, StoreError, decide
from ml_dashd.core.schedule import LINGER_S, SPARE, Lane, width
from ml_dashd.core.states import State
from ml_dashd.flow.batch import Batch
from ml_dashd.flow.circuit import AT_ONCE, Breaker
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.outbox import Outbox
from ml_dashd.flow.upload import Uploader
from ml_dashd.ports import Clock, Journal, JournalError, Meter, Superseded

log = logging.getLogger("ml_dashd.flow")

JOURNAL, DEFECT = "journal", "defect"
"""What a retry is counted as that no Fault explains."""
LONGEST_PAUSE_S = 60.0
"""A lane looks at the journal at least this often, whatever it was told."""


class Worker:
    """Runs the uploader on what is due."""

    def __init__(
        self,
        journal: Journal,
        uploader: Uploader,
        batch: Batch,
        finish: Finish,
        clock: Clock,
        meter: Meter,
        *,
        breaker: Breaker,
        outbox: Outbox,
        large: int,
    ) -> None:
        """`large` files are read and hashed at once."""
        self._journal = journal
        self._uploader = uploader
        self._batch = batch
        self._finish = finish
        self._clock = clock
        self._meter = meter
        self._breaker = breaker
        self._outbox = outbox
        self._large = large
        self._running: dict[int, asyncio.Task[None]] = {}
        self._jobs: dict[int, Job] = {}
        """Those that run, as they were when they began."""
        self._wakes = {lane: asyncio.Event() for lane in Lane}
        self._lanes: list[asyncio.Task[None]] = []
        self._drains = 0
        self._stepping_back: set[int] = set()
        self._together: set[asyncio.Task[None]] = set()
        """Those that have more than one file in hand, none of which stops the others."""

    def start(self) -> None:
        """Begins with what the journal holds."""
        self._lanes = [asyncio.create_task(self._lane(lane), name=f"lane {lane}") for lane in Lane]
        probing = self._breaker.run(self._begin_probe, self._running, self.wake)
        self._lanes.append(asyncio.create_task(probing, name="circuit"))
        self._lanes.append(asyncio.create_task(self._outbox.run(self._finish.list_all), name="outbox"))

    def sending(self, file_id: int) -> bool:
        """Whether a file is under way now."""
        return file_id in self._running

    def wake(self) -> None:
        """There may be something to do."""
        for event in self._wakes.values():
            event.set()

    def under_way(self, most: int) -> list[int]:
        """The ids of the largest files that are under way now."""
        largest = sorted(self._jobs.values(), key=lambda job: -job.record.size_bytes)
        return [job.id for job in largest[:most]]

    async def hurry(self, job: Job) -> None:
        """Lets a file run now that waits for its time. Behind an open circuit it waits for the probe."""
        if self._breaker.allows(job) and job.id not in self._running:
            with suppress(Superseded):
                await self._journal.note(job, not_before_ms=0, blocked=False, trouble=None)

    def hasten_probes(self) -> None:
        """Files may go on: store and catalog are asked now, where they were away."""
        self._breaker.hasten()
        self._outbox.hasten()
        self.wake()

    async def cancel(self, jobs: list[Job]) -> None:
        """Takes back jobs whose cancellation the journal has noted."""
        for job in jobs:
            if job.state is State.FAILED:  # by the queue's way, because the store may be away
                with suppress(Superseded):  # somebody else has deleted it in this moment, too
                    await self._journal.advance(job, State.QUEUED)
            elif (task := self._running.get(job.id)) is not None and task not in self._together:
                task.cancel()
        if any(job.state is State.VERIFIED for job in jobs):
            self._outbox.hasten()
        self.wake()

    async def give_up(self, job: Job, failure: Exception) -> None:
        """Ends a file whose source the disk could not keep: what it would be read as later may be anything.

        It is under way until then, so that no lane begins it again: what that stored would be nobody's.
        """
        while (task := self._running.get(job.id)) is not None:
            task.cancel()
            await asyncio.wait([task])
        await asyncio.wait([self._begin(self._after_safely(job, failure), [job], set(), asyncio.Event())])
        self.wake()

    async def hasten(self) -> None:
        """The most valuable files first, and those that wait for their time now, until `relax`. It nests."""
        self._drains += 1
        self._breaker.hasten()
        await self._prepare(self._journal.hasten)
        self._outbox.hasten()

    async def relax(self) -> None:
        """Ends what `hasten` began."""
        self._drains -= 1
        if not self._drains:
            await self._prepare(self._journal.relax)

    async def _prepare(self, step: Callable[[], Awaitable[None]]) -> None:
        """It makes a drain quicker; one whose journal is troubled goes on without."""
        try:
            await step()
        except JournalError as failure:
            log.warning("drain_stumbled", extra={"error": failure})
        self.wake()

    async def stop(self) -> None:
        """Begins nothing more, and breaks off what is under way: the journal knows where it stands."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _lane(self, lane: Lane) -> None:
        """Until it is cancelled: a journal that can't be asked now is asked again later."""
        mine: set[int] = set()
        while True:
            try:
                await self._fill(lane, mine)
            except Exception:
                log.exception("lane_stumbled", extra={"lane": lane})
                await self._clock.sleep(LATER_MS / 1000)

    async def _fill(self, lane: Lane, mine: set[int]) -> None:
        """Begins what is due and fits, then waits until there may be more."""
        wake = self._wakes[lane]
        wake.clear()
        now = self._clock.now_ms()
        if self._drains:
            await self._fill_foremost(lane, mine, now)
        elif await self._fill_in_order(lane, mine, now):
            return
        room = len(mine) < width(lane, self._large)
        await self._pause(wake, now)
        if room and not self._drains:
            await self._clock.sleep(LINGER_S)

    async def _fill_in_order(self, lane: Lane, mine: set[int], now_ms: int) -> bool:
        """Begins as many as fit; whether there may be more of them."""
        free = width(lane, self._large) - len(mine)
        if free <= 0:
            await self._fill_spare(lane, mine, now_ms)
            return False
        most = AT_ONCE if self._breaker.opened() else free
        jobs = await self._journal.due(lane, now_ms, list(self._running), most)
        allowed = [job for job in jobs if self._breaker.allows(job)]
        self._begin_all(allowed[:free], mine, self._wakes[lane])
        await self._breaker.hold([job for job in jobs if not self._breaker.allows(job)])
        return len(jobs) == most

    async def _fill_spare(self, lane: Lane, mine: set[int], now_ms: int) -> None:
        """The lane is full: what is more urgent than all that is under way, or of an experiment without any, begins."""
        for urgent in (True, False):
            spare = width(lane, self._large) + SPARE[lane] - len(mine)
            if spare <= 0:
                return
            jobs = [self._jobs[file_id] for file_id in mine]
            some: dict[str, Any] = (
                {"above": max(job.priority for job in jobs)}
                if urgent
                else {"without": {job.record.group for job in jobs}}
            )
            found = await self._journal.due(lane, now_ms, list(self._running), 1 if urgent else spare, **some)
            self._begin_all([job for job in found if self._breaker.allows(job)], mine, self._wakes[lane])

    async def _fill_foremost(self, lane: Lane, mine: set[int], now_ms: int) -> None:
        """In a drain: the first of its order are under way. A large file that is not among them steps back.

        It loses the parts that are on the line, and no more. No two files take turns: while one is sent it has ever
        less left, and the other does not.
        """
        before, most = set(mine), width(lane, self._large, drain=True)
        found = await self._journal.foremost(lane, now_ms, AT_ONCE if self._breaker.opened() else most)
        held = [job for job in found if not self._breaker.allows(job)]
        jobs = [job for job in found if self._breaker.allows(job)][:most]
        if lane is Lane.LARGE:
            for file_id in (mine & before) - {job.id for job in jobs} - self._stepping_back:
                self._stepping_back.add(file_id)
                self._running[file_id].cancel()
        fresh = [job for job in jobs if job.id not in before]
        self._begin_all(fresh[: max(0, most - len(mine))], mine, self._wakes[lane])
        if held and not self._breaker.probing:  # a drain tries the store once more
            await self._breaker.hold(held)
            self._wakes[lane].set()

    async def _pause(self, wake: asyncio.Event, now_ms: int) -> None:
        """Until something is handed over, ends, or has waited its time."""
        due = await self._journal.next_due_ms(now_ms)
        pause = LONGEST_PAUSE_S
        if due is not None:
            pause = min(pause, max(0.0, (due - self._clock.now_ms()) / 1000))
        try:
            async with asyncio.timeout(pause):
                await wake.wait()
        except TimeoutError:
            return

    def _begin_all(self, jobs: Sequence[Job], mine: set[int], wake: asyncio.Event) -> None:
        """Begins files: the small ones many together, the others each by itself."""
        jobs = [job for job in jobs if job.id not in self._running]  # it may have become a probe
        together = [job for job in jobs if self._batch.takes(job)]
        for chunk in self._batch.chunks(together):
            task = self._begin(self._run_together(chunk), chunk, mine, wake)
            self._together.add(task)
            task.add_done_callback(self._together.discard)
        for job in jobs:
            if not self._batch.takes(job):
                self._begin(self._run(job), [job], mine, wake)

    def _begin_probe(self, job: Job) -> asyncio.Task[None]:
        """Beside the lanes: they wait for how it ends."""
        if job.id in self._running:
            return self._running[job.id]
        return self._begin(self._run(job), [job], set(), asyncio.Event())

    def _begin(
        self, work: Coroutine[Any, Any, None], jobs: Sequence[Job], mine: set[int], wake: asyncio.Event
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"file {jobs[0].id}")
        ids = [job.id for job in jobs]
        self._running |= dict.fromkeys(ids, task)
        self._jobs |= {job.id: job for job in jobs}
        mine.update(ids)

        def ended(_: asyncio.Task[None]) -> None:
            for file_id in ids:
                del self._running[file_id], self._jobs[file_id]
            mine.difference_update(ids)
            self._stepping_back.difference_update(ids)
            wake.set()

        task.add_done_callback(ended)
        return task

    async def _run(self, job: Job) -> None:
        try:
            await self._uploader.run(job)
            if job.state is not State.VERIFIED and not job.cancel_requested:
                self._breaker.answered(job)
            self._mended(job)
        except Superseded:
            return  # cancelled, or finished by another hand
        except JournalError:
            await self._hold_back(job)
        except Exception as failure:  # noqa: BLE001 whatever it is, the file goes on or says why
            await self._after_safely(job, failure)

    async def _run_together(self, jobs: Sequence[Job]) -> None:
        try:
            stumbled = await self._batch.run(jobs)
        except JournalError:
            await self._hold_back(jobs[0])
            return
        except Exception as reason:  # noqa: BLE001 as above
            stumbled = [(job, reason) for job in jobs]
        failed = {job.id for job, _ in stumbled}
        for job in [job for job in jobs if job.blocked and job.id not in failed][:1]:
            self._mended(job)
        for job, failure in stumbled:
            await self._after_safely(job, failure)

    def _mended(self, job: Job) -> None:
        """A file that an operator held up has come to its end: so will the others."""
        if job.blocked and not job.cancel_requested:  # a deletion says nothing of the store
            self._finish.mended(job)
            self._breaker.let_go(job)

    async def _hold_back(self, job: Job) -> None:
        """Nothing can be noted now, as the journal's log says; the file goes on from where the journal has it."""
        self._meter.retried(JOURNAL)
        log.info("file_held_back", extra={"id": job.id, "path": job.record.path})
        await self._clock.sleep(LATER_MS / 1000)

    async def _after_safely(self, job: Job, failure: Exception) -> None:
        try:
            await self._after(job, failure)
        except JournalError:
            await self._hold_back(job)
        except Exception:
            # Not even that could be journaled. The file is due again at once, so it is held back here.
            log.exception("file_stumbled", extra={"id": job.id, "path": job.record.path})
            await self._clock.sleep(LATER_MS / 1000)

    async def _after(self, begun: Job, failure: Exception) -> None:
        """What follows a failure. The job is read again: it may have come far since it was begun."""
        jobs = await self._journal.get([begun.id])
        if not jobs or jobs[0].state in (State.DONE, State.CANCELLED, State.FAILED):
            return
        job = jobs[0]
        code = getattr(failure, "code", None)
        if job.pin.kind is not begun.pin.kind and code in (Code.SOURCE_CHANGED, Code.SOURCE_LOST):
            return  # there is a copy of it meanwhile, from which it goes on
        if job.state is State.VERIFIED and code is Code.DISK_FAILED:
            return  # the store has it whole, and waits for the catalog: its source is needed no more
        try:
            await self._follow(job, failure)
        except Superseded:
            return
        except StoreError as again:
            self._meter.retried(again.fault)
            trouble = Trouble(Code.STORE_UNAVAILABLE, again.message, TABLE[Code.STORE_UNAVAILABLE].hint)
            await self._finish.postpone(job, trouble, LATER_MS, blocked=False)

    async def _follow(self, job: Job, failure: Exception) -> None:
        if isinstance(failure, MLDashError) and job.state is not State.VERIFIED:
            trouble = Trouble(failure.code, failure.message, failure.hint or "")
            await self._finish.fail(job, trouble)
            return
        if not isinstance(failure, StoreError):
            log.error("file_stumbled", extra={"id": job.id, "path": job.record.path}, exc_info=failure)
            self._meter.retried(DEFECT)
            trouble = Trouble(Code.INTERNAL, f"{type(failure).__name__}: {failure}", TABLE[Code.INTERNAL].hint)
            await self._finish.postpone(job, trouble, LATER_MS, blocked=False)
            return
        decision = decide(failure.fault, failure.message, job.attempt + 1, self._clock.jitter())
        if decision.next is not Next.BLOCK:
            event = {"id": job.id, "next": decision.next, "fault": failure.fault, "error": failure}
            log.info("file_retry", extra=event)
        if decision.next is Next.FAIL:
            await self._finish.fail(job, decision.trouble)
            return
        self._meter.retried(failure.fault)
        if (held := self._breaker.failed(job, failure.fault, decision.trouble)) is not None:
            await self._finish.postpone(job, held, HOLD_MS, blocked=True, counts=False)
            self._breaker.check(job)
        elif decision.next is Next.RESTART and job.state in (State.SENDING, State.COMPLETING):
            await self._finish.requeue(job, decision.trouble, decision.delay_ms)
        else:
            blocked = decision.next is Next.BLOCK
            await self._finish.postpone(job, decision.trouble, decision.delay_ms, blocked=blocked)


LATER_MS = 5_000
"""How long a file waits after a failure that has no rule of its own."""
