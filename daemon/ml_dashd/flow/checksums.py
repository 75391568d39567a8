"""Which checksum a store verifies: asked once, and remembered across restarts."""

from __future__ import annotations

import asyncio

from ml_dashd.core.model import Algorithm
from ml_dashd.ports import Journal, Store


class Checksums:
    """The store's answer, from memory, the journal or the store."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._asking = asyncio.Lock()
        self._answer: Algorithm | None = None

    async def algorithm(self) -> Algorithm:
        """The algorithm to use. Raises StoreError when the store has to be asked and does not answer."""
        async with self._asking:
            if self._answer is None:
                name = f"checksum of {self._store.url}"
                known = await self._journal.setting(name)
                self._answer = await self._store.prepare(Algorithm(known) if known else None)
                if known != self._answer:
                    await self._journal.set_setting(name, self._answer)
            return self._answer
