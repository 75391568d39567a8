"""Versions on their way in whose place a newer one has come: dropped, once the newer one is in the journal."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from ml_dashd.core.model import FileRecord, Job
from ml_dashd.core.supersede import Rule, newest_of_each_path
from ml_dashd.flow.bell import Bell
from ml_dashd.ports import Faults, Journal, JournalError

log = logging.getLogger("ml_dashd.flow")


class Supersede:
    """Drops them. `cancel` takes back jobs whose end the journal has noted."""

    def __init__(
        self,
        *,
        journal: Journal,
        rule: Rule,
        bell: Bell,
        faults: Faults,
        cancel: Callable[[list[Job]], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._rule = rule
        self._bell = bell
        self._faults = faults
        self._cancel = cancel

    def asked(self, record: FileRecord, *, by_caller: bool) -> bool:
        """Whether a file takes the place of older versions: its caller says so, or the settings.

        One of a set does not: until the set is complete, nobody sees it.
        """
        return record.share is None and (by_caller or self._rule.asks(record))

    async def run(self, jobs: Iterable[Job]) -> None:
        """Drops what gives way to these. Idempotent: again when they outlive more than before, and after a crash.

        They are the daemon's whatever comes of this: where the journal refuses, what is older is sent, too.
        """
        try:
            for newer in newest_of_each_path(jobs):
                await self._run(newer)
        except JournalError as failure:
            log.warning("supersede_stumbled", extra={"error": failure})

    async def _run(self, newer: Job) -> None:
        older = [job for job in await self._journal.older(newer) if self._rule.gives_way(job, newer)]
        if not older:
            return
        self._faults.at("supersede.before_drop")
        dropped = await self._journal.supersede(older, newer.id)
        self._faults.at("supersede.after_drop")
        for job in dropped:
            event = {"id": job.id, "by": newer.id, "path": job.record.path}
            log.info("file_superseded", extra=event)
        await self._cancel(dropped)
        self._bell.ring()
