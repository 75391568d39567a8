"""Sources onto stable storage. Those that come together share the sync of their folder, which costs a whole commit."""

from __future__ import annotations

import asyncio

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Pin, PinKind
from ml_dashd.flow.health import Health
from ml_dashd.ports import Faults, Pins, SyncRefusedError, Threads


class Settle:
    """Brings pinned sources to stable storage."""

    def __init__(self, pins: Pins, disk: Threads, health: Health, faults: Faults) -> None:
        self._pins = pins
        self._disk = disk
        self._health = health
        self._faults = faults
        self._waiting: list[tuple[Pin, asyncio.Future[None]]] = []
        self._syncing: asyncio.Task[None] | None = None

    async def settle(self, pin: Pin, file_id: int) -> None:
        """Returns when the source's bytes, and its folder's entry for it, survive a reboot. Idempotent.

        Raises DISK_FAILED where the disk refuses; where it is the spool's, nothing is taken in any more. Raises OSError
        where it could not be asked, for want of a descriptor, say: that is no word of the disk's.
        """
        await self.content(pin, file_id)
        await self.entry(pin)

    async def content(self, pin: Pin, file_id: int) -> None:
        """The source's bytes alone. After a refusal they can't be trusted: the kernel may have dropped them."""
        try:
            await self._disk.run(self._pins.sync, pin, file_id)
        except SyncRefusedError as refusal:
            raise self._refused(pin, refusal) from refusal

    async def entry(self, pin: Pin) -> None:
        """The folder's entry alone. A folder whose sync was refused once is not asked again: it would say yes."""
        self._health.check()
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pin, synced))
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_folders(), name="sync folders")
        await synced
        self._faults.at("settle.after_sync")

    def _refused(self, pin: Pin, refusal: SyncRefusedError) -> MLDashError:
        what = f"{pin.source or 'the spool'} can't be synced: {refusal}"
        if pin.kind is PinKind.FD:  # it lies on another disk
            return error(Code.DISK_FAILED, what)
        return self._health.disk_failed(what)

    async def _sync_folders(self) -> None:
        """A sync covers what was there when it began, so whoever comes during one is served by the next."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failed: Exception | None = None
            try:
                await self._disk.run(self._pins.sync_folders, [pin for pin, _ in batch])
            except SyncRefusedError as refusal:
                failed = self._health.disk_failed(f"the spool's folder can't be synced: {refusal}")
            except Exception as failure:  # noqa: BLE001 theirs to judge, whatever it is
                failed = failure
            for _, synced in batch:
                if synced.done():  # whoever waited was cancelled
                    continue
                if failed is None:
                    synced.set_result(None)
                else:
                    synced.set_exception(failed)
        self._syncing = None
