"""Shares of sets, brought to the catalog once their files are listed; and sets that do not become complete.

A share is in the journal before its rank is told that it is ended, and stays there until the catalog has it. The
catalog takes it in one transaction, the last one of a set with all its files (rule 9): whoever dies in between repeats
it.
"""

from __future__ import annotations

import asyncio
import logging

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job
from ml_dashd.core.sets import Delivery, SetKey, SetState, Verdict, called, mismatch
from ml_dashd.core.states import State
from ml_dashd.flow.bell import Bell
from ml_dashd.ports import Catalog, Clock, Faults, Journal, JournalError

log = logging.getLogger("ml_dashd.flow")

LOOK_AGAIN_S = 0.02
"""Shares are looked at at most this often, however often the bell rings."""
AGAIN_S = 5.0
"""After a catalog that did not answer."""
PAUSE_S = 600.0
"""Between two looks for sets that do not become complete."""
REPORT_S = 900.0
"""A set to which nothing has come for so long is reported: ranks of a job save within minutes of each other."""
BATCH = 100
REFUSED = 1000
"""Refusals that are remembered for who waits."""


class Deliver:
    """Brings shares to the catalog, beside the worker, from the start to the end."""

    def __init__(
        self, *, journal: Journal, catalog: Catalog, bell: Bell, clock: Clock, faults: Faults, keep_s: float
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._keep_s = keep_s
        self._waiting: dict[str, Delivery] = {}
        self._stuck: set[str] = set()
        self._refused: dict[str, MLDashError] = {}
        self._added = asyncio.Event()

    async def load(self) -> None:
        """Takes up what the journal has, at the start."""
        for delivery in await self._journal.shares():
            self._waiting[delivery.share.key] = delivery
        self._added.set()

    async def add(self, delivery: Delivery) -> None:
        """Takes a share that is ended. It outlives the daemon and the machine when this returns. Idempotent."""
        self._faults.at("sets.before_journal")
        await self._journal.end_share(delivery)
        self._faults.at("sets.after_journal")
        self._waiting[delivery.share.key] = delivery
        self._added.set()

    def waits(self, share_key: str) -> bool:
        """Whether a share is still to be brought to the catalog."""
        return share_key in self._waiting

    def refusal(self, share_key: str) -> MLDashError | None:
        """Why the catalog did not take a share, as far as this daemon remembers."""
        return self._refused.get(share_key)

    def check(self, delivery: Delivery) -> None:
        """Raises SET_MISMATCH where a share on its way to the same set is of another world_size."""
        for other in self._waiting.values():
            if other.key == delivery.key and other.share.world_size != delivery.share.world_size:
                raise mismatch(delivery.key, delivery.share, other.share.world_size)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as both:  # it ends once both have: neither meets a closed journal
            both.create_task(self._bring())
            both.create_task(self._watch())

    async def _bring(self) -> None:
        while True:
            await self._added.wait()
            rung, pause = self._bell.listen(), LOOK_AGAIN_S
            try:
                await self.once()
            except JournalError as failure:
                log.info("share_postponed", extra={"error": failure})
                pause = AGAIN_S
            except Exception:
                log.exception("share_stumbled")
                pause = AGAIN_S
            if not self._waiting:
                self._added.clear()
                continue
            await self._clock.sleep(pause)
            if pause == LOOK_AGAIN_S:
                await self._bell.wait(rung, AGAIN_S)

    async def once(self) -> None:
        """Delivers what can be, the shares of a set in the order in which they were ended.

        Else a rank that saves the set again could replace its share before another's first one is there. One that is
        stuck holds up its own rank alone: the others are not to wait for it.
        """
        held: set[object] = set()
        for delivery in list(self._waiting.values()):
            if not held.isdisjoint((delivery.key, _place(delivery))):
                continue
            if not await self._one(delivery):
                held.add(_place(delivery) if delivery.share.key in self._stuck else delivery.key)

    async def _one(self, delivery: Delivery) -> bool:
        """Whether it waits no more."""
        job = await self._journal.holdup(delivery.ids)
        if job is not None and (job.cancel_requested or job.state is State.CANCELLED):
            await self._refuse(delivery, error(Code.SET_INCOMPLETE, f"a file of {_said(delivery)} was deleted"))
            return True
        if job is not None and job.state is State.FAILED:
            return await self._wait_for_failed(delivery, job)
        await self._note_stuck(delivery, stuck=False)
        if job is not None:
            return False
        await self._deliver(delivery)
        return True

    async def _deliver(self, delivery: Delivery) -> None:
        self._faults.at("sets.before_deliver")
        outcome = await self._catalog.sets.deliver(delivery, self._clock.now_ms())
        self._faults.at("sets.after_deliver")
        if outcome.verdict is Verdict.MISMATCH:
            await self._refuse(delivery, mismatch(delivery.key, delivery.share, outcome.record.world_size))
            return
        if outcome.verdict is Verdict.LOST:
            await self._refuse(delivery, error(Code.SET_INCOMPLETE, f"a file of {_said(delivery)} was deleted"))
            return
        await self._let_go(delivery)
        record, where = outcome.record, _where(delivery.key)
        if record.state is SetState.COMPLETE:
            event = {
                "set": where, "attempt": record.key.attempt, "ranks": record.world_size, "files": record.files,
                "bytes": record.size_bytes,
            }  # fmt: skip
            log.info("set_complete", extra=event)
        elif record.state is SetState.OVERTAKEN:
            log.info("set_overtaken", extra={"set": where, "attempt": record.key.attempt, "files": record.files})

    async def _wait_for_failed(self, delivery: Delivery, failed: Job) -> bool:
        """Until it is tried again; a later share of the rank takes its place."""
        if not await self._note_stuck(delivery, stuck=True):
            event = {
                "set": _where(delivery.key), "attempt": delivery.key.attempt, "rank": delivery.share.rank,
                "id": failed.id, "path": failed.record.path,
            }  # fmt: skip
            log.warning("share_stuck", extra=event)
        later = [each for each in self._waiting.values() if _place(each) == _place(delivery)]
        if later[-1] is delivery:
            return False
        await self._refuse(delivery, error(Code.SET_INCOMPLETE, f"{_said(delivery)} was saved again"))
        return True

    async def _note_stuck(self, delivery: Delivery, *, stuck: bool) -> bool:
        """Returns what was known of it before."""
        key = delivery.share.key
        before = key in self._stuck
        if before is not stuck:
            await self._journal.note_stuck(key, stuck=stuck)
            (self._stuck.add if stuck else self._stuck.discard)(key)
            self._bell.ring()
        return before

    async def _refuse(self, delivery: Delivery, why: MLDashError) -> None:
        """The set does not get this share. Its files stay pending, until they are cleaned away."""
        self._refused[delivery.share.key] = why
        if len(self._refused) > REFUSED:
            del self._refused[next(iter(self._refused))]
        await self._let_go(delivery)
        event = {
            "set": _where(delivery.key), "attempt": delivery.key.attempt, "rank": delivery.share.rank,
            "code": why.code, "error": why.message,
        }  # fmt: skip
        log.warning("share_refused", extra=event)

    async def _let_go(self, delivery: Delivery) -> None:
        await self._journal.forget_share(delivery.share.key)
        self._faults.at("sets.after_forget")
        self._waiting.pop(delivery.share.key, None)
        self._stuck.discard(delivery.share.key)
        self._bell.ring()

    # ---- sets that do not become complete

    async def _watch(self) -> None:
        """Reports and cleans them, now and every ten minutes."""
        while True:
            try:
                await self.clean()
            except JournalError as failure:
                log.info("sets_not_cleaned", extra={"error": failure})
            except Exception:
                log.exception("sets_stumbled")
            await self._clock.sleep(min(PAUSE_S, max(1.0, self._keep_s)))

    async def clean(self) -> None:
        """Says once of a set that nothing comes any more; after [retention] incomplete_sets its files are deleted."""
        now, sets = self._clock.now_ms(), self._catalog.sets
        for record in await sets.report(now - int(REPORT_S * 1000), now, BATCH):
            event = {
                "set": _where(record.key), "attempt": record.key.attempt, "ranks": record.delivered,
                "of": record.world_size, "missing": ",".join(map(str, record.missing)),
            }  # fmt: skip
            log.warning("set_incomplete", extra=event)
        before_ms = now - int(self._keep_s * 1000)
        while dropped := await sets.abandon(before_ms, now, BATCH):
            for record in dropped:
                event = {
                    "set": _where(record.key), "attempt": record.key.attempt, "ranks": record.delivered,
                    "of": record.world_size, "files": record.files,
                }  # fmt: skip
                log.warning("set_dropped", extra=event)
        while strays := await sets.strays(before_ms, BATCH):
            self._faults.at("sets.before_clean")
            await self._catalog.delete([record.id for record in strays], now)
            self._faults.at("sets.after_clean")
            log.info("set_files_deleted", extra={"files": len(strays), "first": strays[0].id, "path": strays[0].path})


def _place(delivery: Delivery) -> tuple[object, int]:
    return delivery.key, delivery.share.rank


def _said(delivery: Delivery) -> str:
    return f"rank {delivery.share.rank} of {called(delivery.key)}"


def _where(key: SetKey) -> str:
    return f"{key.namespace}/{key.project}/{key.experiment}: {key.name}"
