"""Which checksum a store verifies: found out once, remembered across restarts, and found out anew every day."""

from __future__ import annotations

import asyncio
import logging

from ml_dashd.core import capabilities
from ml_dashd.core.capabilities import Capabilities
from ml_dashd.core.model import Algorithm
from ml_dashd.core.retry import StoreError
from ml_dashd.flow.scratch import Scratch
from ml_dashd.ports import Clock, Journal, JournalError, Prober, Store

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 3600.0
"""Between looks at whether what is known is a day old."""


class Checksums:
    """The store's answer, from memory, the journal or the store.

    Without a `prober` nothing is found out: the store is a folder, or the settings name the checksum.
    """

    def __init__(
        self, journal: Journal, store: Store, scratch: Scratch, clock: Clock, prober: Prober | None = None
    ) -> None:
        self._journal = journal
        self._store = store
        self._scratch = scratch
        self._clock = clock
        self._prober = prober
        self._asking = asyncio.Lock()
        self._answer: Algorithm | None = None

    async def algorithm(self) -> Algorithm:
        """The algorithm to use. Raises StoreError when the store has to be asked and does not answer."""
        async with self._asking:
            if self._answer is None:
                chosen = None
                if (prober := self._prober) is not None:
                    chosen = (await self._known(prober) or await self._find_out(prober)).chosen()
                self._answer = await self._store.prepare(chosen)
            return self._answer

    async def known(self) -> Capabilities | None:
        """What was found out before; None where nothing was, or nothing is to be."""
        return None if self._prober is None else await self._known(self._prober)

    async def capabilities(self) -> Capabilities | None:
        """What is known, or is found out now; None where there is nothing to be. Raises StoreError."""
        if self._prober is not None:
            await self.algorithm()
        return await self.known()

    async def run(self) -> None:
        """Finds out anew what is older than a day, beside the uploads. What fails leaves what is known as it is."""
        while self._prober is not None:
            try:
                await self.renew(self._prober)
            except (StoreError, JournalError) as failure:
                log.info("capabilities_not_renewed", extra={"error": failure})
            except Exception:
                log.exception("capabilities_not_renewed")
            await self._clock.sleep(LOOK_S)

    async def renew(self, prober: Prober) -> None:
        """Asks the store again, if it was ever asked and a day has passed. Raises StoreError, JournalError."""
        known = await self._known(prober)
        if known is not None and known.is_due(self._clock.now_ms()):
            found = await self._find_out(prober)
            # Files that are under way keep the checksum with which they were begun.
            self._answer = await self._store.prepare(found.chosen())

    async def _known(self, prober: Prober) -> Capabilities | None:
        text = await self._journal.setting(_name(prober))
        return None if text is None else capabilities.loads(text)

    async def _find_out(self, prober: Prober) -> Capabilities:
        async with self._scratch.number() as number:
            found = await prober.probe(self._store.scratch(number), self._clock.now_ms())
        await self._journal.set_setting(_name(prober), capabilities.dumps(found))
        log.info("capabilities_found", extra={"place": prober.place, "checksum": found.chosen()})
        return found


def _name(prober: Prober) -> str:
    return f"capabilities of {prober.place}"
