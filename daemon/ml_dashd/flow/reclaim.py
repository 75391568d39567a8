"""Bytes of deleted files: removed from the store once nobody can want them back, the record kept as a tombstone.

First the object goes, then the catalog notes that it has: whoever dies in between finds the record again, and removing
an object twice does no harm. The note is a compare-and-set by the time of the deletion. The tombstone stays for good,
so that a commit that comes late, of a daemon that was away, finds it and takes its file back (flow/finish.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ml_dashd.core.model import FileRecord
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.ports import Catalog, Clock, Faults, Journal, JournalError, Store

log = logging.getLogger("ml_dashd.flow")

BATCH = 100
"""Objects between two notes: what a crash has removed again."""
PAUSE_S = 600.0
"""Between two looks, unless the grace is shorter: it is given in days."""
LEAST_PAUSE_S = 1.0


class Reclaim:
    """Runs beside the worker, from the start to the end."""

    def __init__(
        self, *, catalog: Catalog, journal: Journal, store: Store, clock: Clock, faults: Faults, grace_s: float
    ) -> None:
        self._catalog = catalog
        self._journal = journal
        self._store = store
        self._clock = clock
        self._faults = faults
        self._grace_s = grace_s

    async def run(self) -> None:
        """Now, and then every ten minutes; with a short grace as often as that."""
        while True:
            try:
                await self.once()
            except (StoreError, JournalError) as failure:
                log.info("reclaim_postponed", extra={"error": failure})
            except Exception:
                log.exception("reclaim_failed")
            await self._clock.sleep(min(PAUSE_S, max(LEAST_PAUSE_S, self._grace_s)))

    async def once(self) -> None:
        """Removes what was deleted longer ago than the grace, but for what a duplicate is still to be made of.

        Raises StoreError where the store does not answer, or has refused some. Where it refuses a whole batch, no more
        of them are asked for.
        """
        refused: StoreError | None = None
        before_ms = self._clock.now_ms() - int(self._grace_s * 1000)
        after = (0, 0)
        while found := await self._catalog.deleted(before_ms, after, BATCH):
            after = (found[-1].deleted_ms or 0, found[-1].id)
            # Asked after the deletions were read: a duplicate that comes later finds its source deleted.
            wanted = await self._journal.referred()
            refused = await self._remove([record for record in found if record.key not in wanted]) or refused
        if refused is not None:
            raise refused

    async def _remove(self, records: Sequence[FileRecord]) -> StoreError | None:
        """Returns what the store has said of one that it does not let go, such as an object with a legal hold."""
        if not records:
            return None
        gone: list[FileRecord] = []
        refused: StoreError | None = None
        try:
            for record in records:
                self._faults.at("reclaim.before_delete")
                try:
                    await self._store.delete(record.key or "")
                except StoreError as failure:
                    if failure.fault is not Fault.DENIED:
                        raise
                    refused = failure
                    continue
                self._faults.at("reclaim.after_delete")
                gone.append(record)
        finally:
            if gone:
                await self._catalog.reclaimed(gone, self._clock.now_ms())
        if refused is not None and not gone:
            raise refused
        self._faults.at("reclaim.after_noted")
        size = sum(record.size_bytes for record in gone)
        log.info("bytes_reclaimed", extra={"files": len(gone), "bytes": size})
        return refused
