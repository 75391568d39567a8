"""Bytes of deleted files: removed from the store once nobody can want them back, the record kept as a tombstone.

First the object goes, then the catalog notes that it has: whoever dies in between finds the record again, and removing
an object twice does no harm. The note is a compare-and-set by the time of the deletion. The tombstone stays for good,
so that a commit that comes late, of a daemon that was away, finds it and takes its file back (flow/finish.py).

One node does it for a fleet: all of them would ask the store for the same objects at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ml_dashd.core.model import FileRecord
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.flow.rounds import Turn, take
from ml_dashd.ports import Catalog, Clock, Faults, Journal, JournalError, Rounds, Store

log = logging.getLogger("ml_dashd.flow")

BATCH = 100
"""Objects between two notes: what a crash has removed again."""
AT_ONCE = 8
"""Requests to the store: what 10,000 nodes delete is some hundred objects a second."""
PAUSE_S = 600.0
"""Between two looks, unless the grace is shorter: it is given in days."""
LEAST_PAUSE_S = 1.0
LEASE_MS = 15 * 60_000
"""Whose turn it is has lost it when it is not heard of for so long; a batch takes seconds."""


class Reclaim:
    """Runs beside the worker, from the start to the end."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        journal: Journal,
        store: Store,
        clock: Clock,
        faults: Faults,
        rounds: Rounds,
        holder: str,
        grace_s: float,
    ) -> None:
        self._catalog = catalog
        self._journal = journal
        self._store = store
        self._clock = clock
        self._faults = faults
        self._rounds = rounds
        self._holder = holder
        self._grace_s = grace_s
        self._pause_s = min(PAUSE_S, max(LEAST_PAUSE_S, grace_s))

    async def run(self) -> None:
        """Now, and then every ten minutes; with a short grace as often as that."""
        while True:
            pause_s = self._pause_s
            try:
                await self.once()
            except (StoreError, JournalError) as failure:
                log.info("reclaim_postponed", extra={"error": failure})
                pause_s *= 2  # another node, which the store may let do it, is the next
            except Exception:
                log.exception("reclaim_failed")
            await self._clock.sleep(pause_s)

    async def once(self) -> None:
        """Removes what was deleted longer ago than the grace, but for what a duplicate is still to be made of.

        Nothing while it is another node's turn. Raises StoreError where the store does not answer, or has refused some.
        Where it refuses a whole batch, no more of them are asked for.
        """
        every_ms = int(self._pause_s * 900)  # a little less than a pause: else a look could come a moment too early
        turn = await take(self._rounds, self._holder, self._clock, every_ms=every_ms, lease_ms=LEASE_MS)
        if turn is None:
            return
        try:
            if not await self._remove_all(turn):
                return
        except StoreError:
            await turn.end()  # the store may answer to another node
            raise
        await turn.end()

    async def _remove_all(self, turn: Turn) -> bool:
        """Whether it is this node's turn still."""
        refused: StoreError | None = None
        before_ms = self._clock.now_ms() - int(self._grace_s * 1000)
        after = (0, 0)
        while found := await self._catalog.deleted(before_ms, after, BATCH):
            after = (found[-1].deleted_ms or 0, found[-1].id)
            # Asked after the deletions were read: a duplicate that comes later finds its source deleted.
            wanted = await self._journal.referred()
            refused = await self._remove([record for record in found if record.key not in wanted]) or refused
            if not await turn.keep(""):
                return False
        if refused is not None:
            raise refused
        return True

    async def _remove(self, records: Sequence[FileRecord]) -> StoreError | None:
        """Returns what the store has said of one that it does not let go, such as an object with a legal hold."""
        if not records:
            return None
        gone: list[FileRecord] = []
        failures: list[StoreError] = []
        places = asyncio.Semaphore(AT_ONCE)

        async def remove(record: FileRecord) -> None:
            async with places:
                if all(failure.fault is Fault.DENIED for failure in failures):
                    try:
                        await self._remove_one(record)
                        gone.append(record)
                    except StoreError as failure:
                        failures.append(failure)

        try:
            await asyncio.gather(*map(remove, records))
        finally:
            if gone:
                await self._catalog.reclaimed(gone, self._clock.now_ms())
        away = next((failure for failure in failures if failure.fault is not Fault.DENIED), None)
        if away is not None:
            raise away
        if failures and not gone:
            raise failures[0]
        self._faults.at("reclaim.after_noted")
        size = sum(record.size_bytes for record in gone)
        log.info("bytes_reclaimed", extra={"files": len(gone), "bytes": size})
        return failures[0] if failures else None

    async def _remove_one(self, record: FileRecord) -> None:
        self._faults.at("reclaim.before_delete")
        await self._store.delete(record.key or "")
        self._faults.at("reclaim.after_delete")
