"""A source that becomes the object: a store on its file system takes the file, or its blocks, and copies nothing.

What is adopted is read and hashed as any other source, and the store's list of parts, read from what it then has,
proves that both are the same. The pin stays until the file is in the catalog (rule 7): a crash finds the source where
it was.
"""

from __future__ import annotations

import logging
import os

from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.flow.settle import Settle
from ml_dashd.ports import Offer, Pins, Store, Threads

log = logging.getLogger("ml_dashd.flow")

_OURS = (PinKind.SLOT, PinKind.COPY, PinKind.REFLINK)
_OFFERED = (*_OURS, PinKind.LINK, PinKind.FD)


class Adopting:
    """Begins adoptions."""

    def __init__(self, store: Store, pins: Pins, threads: Threads, settle: Settle) -> None:
        self._store = store
        self._pins = pins
        self._threads = threads
        self._settle = settle

    async def begin(self, job: Job) -> Adoption:
        """Of a file whose upload is begun. Raises StoreError."""
        device = await self._store.device() if job.pin.kind in _OFFERED else None
        return Adoption(job, device, self._store, self._pins, self._threads, self._settle)


class Adoption:
    """One file's."""

    def __init__(
        self, job: Job, device: int | None, store: Store, pins: Pins, threads: Threads, settle: Settle
    ) -> None:
        self._job = job
        self._device = device
        """None once there is nothing to ask for any more."""
        self._store = store
        self._pins = pins
        self._threads = threads
        self._settle = settle
        self._done = False

    async def attempt(self) -> bool:
        """Whether the store has the source; asked again for each part, since a trainer may end meanwhile.

        Raises StoreError, or SOURCE_LOST.
        """
        if self._device is None:
            return self._done
        device, offers = self._device, list[Offer | None]()
        try:
            await self._threads.run(lambda: offers.append(self._pins.offer(self._job, device)))
            if (offer := offers[0]) is None:
                return False
            self._done = await self._store.adopt(self._job.target, self._job.upload_id or "", offer)
        finally:
            for made in offers:  # one that came too late for whoever asked, too
                if made is not None:
                    os.close(made.descriptor)
        self._device = None
        if self._done:
            event = {"id": self._job.id, "bytes": self._job.record.size_bytes, "pin": self._job.pin.kind}
            log.info("file_adopted", extra=event)
        return self._done

    async def settle(self) -> None:
        """Brings an adopted file to stable storage as the source that it is.

        The disk states a failure once: heard by the store alone, it would not be known that the source is lost, too.
        Raises DISK_FAILED, or StoreError where the disk could not be asked.
        """
        if self._done and self._job.pin.kind in _OURS:
            try:
                await self._settle.content(self._job.pin, self._job.id)
            except OSError as unasked:
                raise StoreError(Fault.TRANSIENT, f"the source could not be synced: {unasked}") from unasked
