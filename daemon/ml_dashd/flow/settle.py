"""Sources onto stable storage. Those that come together share the sync of their folder, which costs a whole commit."""

from __future__ import annotations

import asyncio

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Pin
from ml_dashd.ports import Faults, Pins, Threads


class Settle:
    """Brings pinned sources to stable storage."""

    def __init__(self, pins: Pins, disk: Threads, faults: Faults) -> None:
        self._pins = pins
        self._disk = disk
        self._faults = faults
        self._waiting: list[tuple[Pin, asyncio.Future[None]]] = []
        self._syncing: asyncio.Task[None] | None = None
        self._failure: MLDashError | None = None

    async def settle(self, pin: Pin, file_id: int) -> None:
        """Returns when the source's bytes, and its folder's entry for it, survive a reboot. Idempotent.

        Raises DISK_FAILED where the disk refuses. A folder that it has refused once is not tried again: the kernel
        states such an error once, and would then say that all is well.
        """
        if self._failure is not None:
            raise self._failure
        self._faults.at("settle.before_sync")
        try:
            await self._disk.run(self._pins.sync, pin, file_id)
        except OSError as failure:
            raise error(Code.DISK_FAILED, f"{pin.source or 'the spool'} can't be synced: {failure}") from failure
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pin, synced))
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_folders(), name="sync folders")
        await synced
        self._faults.at("settle.after_sync")

    async def _sync_folders(self) -> None:
        """A sync covers what was there when it began, so whoever comes during one is served by the next."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._disk.run(self._pins.sync_folders, [pin for pin, _ in batch])
            except (OSError, MLDashError) as failure:
                self._failure = error(Code.DISK_FAILED, f"the spool's folder can't be synced: {failure}")
            for _, synced in batch:
                if synced.done():  # whoever waited was cancelled
                    continue
                if self._failure is None:
                    synced.set_result(None)
                else:
                    synced.set_exception(self._failure)
        self._syncing = None
