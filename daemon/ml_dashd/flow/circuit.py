"""What waits while the store is away: one file asks now and then, and with the first answer all go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from itertools import groupby

from ml_dashd.core.circuit import HOLD_MS, STORE, Circuits, Extent
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.retry import Fault
from ml_dashd.core.states import State
from ml_dashd.ports import Clock, Journal

log = logging.getLogger("ml_dashd.flow")

AT_ONCE = 256
"""Files that are put off, or let go, in one transaction: a hand-off waits behind a few ms of it."""
STUMBLED_S = 5.0


class Breaker:
    """The circuits, and the journal's rows that wait behind them.

    A row that waits is blocked, with the trouble that opened the circuit, and put off for HOLD_MS; its attempts are not
    counted.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._circuits = Circuits()
        self._changed = asyncio.Event()
        self._mended: set[Extent] = set()
        self._probing = False
        self._order = asyncio.Lock()
        """A file is put off before those of its circuit are let go, or not at all."""

    def opened(self) -> Sequence[Extent]:
        """The circuits that are open."""
        return self._circuits.opened()

    def count(self) -> dict[str, int]:
        """How many are open: of the store, and of experiments."""
        opened = self._circuits.opened()
        return {"store": opened.count(STORE), "experiment": len(opened) - opened.count(STORE)}

    @property
    def probing(self) -> bool:
        """Whether a probe is under way, or due now."""
        return self._probing or self._circuits.ripe(self._clock.monotonic()) is not False

    def allows(self, job: Job) -> bool:
        """Whether this file may go on now. One that was deleted may: often nothing of it is in the store."""
        return job.state is State.VERIFIED or job.cancel_requested or self._circuits.holds(job.record.group) is None

    def answered(self, job: Job) -> None:
        """The store has done something for this file: those that waited go on."""
        self._close(self._circuits.answered(job.record.group))

    def failed(self, job: Job, fault: Fault, trouble: Trouble) -> Trouble | None:
        """A file has failed; the trouble of the circuit behind which it is to wait now, by which it is let go again.

        That may be another than its own: behind an experiment's circuit a file may meet a server that hangs up.
        """
        before = set(self._circuits.opened())
        now, jitter = self._clock.monotonic(), self._clock.jitter()
        self._close(self._circuits.failed(job.record.group, fault, trouble, now, jitter))
        for extent in set(self._circuits.opened()) - before:
            log.warning("circuit_opened", extra={"of": _name(extent), "code": trouble.code, "error": trouble.message})
            self._changed.set()
        held = self._circuits.holds(job.record.group)
        return None if held is None else held[1]

    async def hold(self, jobs: Sequence[Job]) -> None:
        """Puts off files that are not allowed to go on, as long as that is so."""
        async with self._order:
            behind = [(job, held) for job in jobs if (held := self._circuits.holds(job.record.group)) is not None]
            for trouble, some in groupby(behind, key=lambda each: each[1][1]):
                ids = [job.id for job, _ in some]
                await self._journal.hold(ids, self._clock.now_ms() + HOLD_MS, trouble)

    def let_go(self, job: Job) -> None:
        """What is blocked as this file was, runs now, as far as no open circuit holds it up."""
        self._let_go([STORE, job.record.group])

    def check(self, job: Job) -> None:
        """After a file was put off: should its circuit have closed meanwhile, it is let go as all others were."""
        if self._circuits.holds(job.record.group) is None:
            self.let_go(job)

    def hasten(self) -> None:
        """The probes are due now."""
        self._circuits.hasten(self._clock.monotonic())
        self._changed.set()

    async def run(
        self, begin: Callable[[Job], asyncio.Task[None]], running: Collection[int], wake: Callable[[], None]
    ) -> None:
        """Probes and lets go, until it is cancelled. `wake` is called when files may go on, or have to be put off."""
        started = False
        while True:
            try:
                if not started:  # what an earlier daemon has put off is tried
                    await self._journal.retry_blocked()
                    started = True
                    wake()
                await self._step(begin, running, wake)
            except Exception:
                log.exception("circuit_stumbled")
                await self._clock.sleep(STUMBLED_S)

    async def _step(
        self, begin: Callable[[Job], asyncio.Task[None]], running: Collection[int], wake: Callable[[], None]
    ) -> None:
        self._changed.clear()
        if self._mended:
            await self._release(wake)
            return
        extent = self._circuits.ripe(self._clock.monotonic())
        if isinstance(extent, bool):
            await self._wait()
            return
        job = await self._journal.held(extent, list(running))
        if job is None:  # all were stored, given up or deleted
            self._circuits.drop(extent)
            self._close([extent])
        else:
            await self._probe(extent, begin(job))
        wake()

    async def _probe(self, extent: Extent, task: asyncio.Task[None]) -> None:
        """Until the probe has ended, or the store has answered it: it may be a large file."""
        self._probing = True
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while not task.done() and self._circuits.is_open(extent):
                await self._changed.wait()
                self._changed.clear()
        finally:
            self._probing = False
        self._circuits.probed(extent, self._clock.monotonic(), self._clock.jitter())

    async def _release(self, wake: Callable[[], None]) -> None:
        async with self._order:
            extent = self._mended.pop()
            try:
                while await self._journal.release(extent, AT_ONCE) == AT_ONCE:
                    wake()
            except BaseException:
                self._mended.add(extent)
                raise
        wake()

    async def _wait(self) -> None:
        due = self._circuits.next_s()
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - self._clock.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            return

    def _close(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            log.info("circuit_closed", extra={"of": _name(extent)})
        self._let_go(extents)

    def _let_go(self, extents: Sequence[Extent]) -> None:
        if extents:
            self._mended.update(extents)
            self._changed.set()


def _name(extent: Extent) -> str:
    return "the store" if extent is None else "/".join(extent)
