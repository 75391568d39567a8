"""A file that goes in one request: read, sent, and proved by what the store answers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from ml_dash.errors import MLDashError
from ml_dashd.core.checksum import Digest, digest
from ml_dashd.core.fair import Claim
from ml_dashd.core.model import Evidence, Job, PinKind
from ml_dashd.core.retry import StoreError
from ml_dashd.core.schedule import Lane
from ml_dashd.flow.pace import FairBuffers, Pace
from ml_dashd.flow.sources import check_handed, open_source, read_whole
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Faults, Journal, Meter, Pins, Store, Threads


class Single:
    """Stores files. It holds no state of its own."""

    def __init__(
        self,
        *,
        journal: Journal,
        store: Store,
        pins: Pins,
        threads: Threads,
        buffers: FairBuffers,
        pace: Pace,
        verify: Verify,
        faults: Faults,
        meter: Meter,
    ) -> None:
        self._journal = journal
        self._store = store
        self._pins = pins
        self._threads = threads
        self._buffers = buffers
        self._pace = pace
        self._verifier = verify
        self._faults = faults
        self._meter = meter

    async def put(self, job: Job, content: bytes) -> dict[str, Any]:
        """Stores a file whose key is journaled (rule 2); returns what the journal notes of it as it becomes VERIFIED.

        `content` is what the journal holds of an inline one. Raises StoreError, or the error that ends the file.
        """
        if job.pin.kind is PinKind.INLINE:  # hashed here: a thread is not worth its while
            body = memoryview(content)
            sent, sha256 = digest(body, job.algorithm), hashlib.sha256(content).hexdigest()
            evidence = await self._send(job, body, sent, sha256)
        else:
            evidence, sent, sha256 = await self._read_and_send(job)
        self._meter.sent(job.record.size_bytes)
        return await self._verifier.changes(job, evidence, sent, sha256)

    async def reason(self, job: Job, away: StoreError) -> Exception:
        """Why a file can't go on while the store is away: that its source was changed meanwhile comes first."""
        try:
            (await open_source(job, self._journal, self._pins, self._threads)).close()
        except MLDashError as ended:
            return ended
        return away

    async def _read_and_send(self, job: Job) -> tuple[Evidence, Digest, str]:
        """Its memory is free again before the store's answer is weighed, which may take some to read the bytes back."""
        buffer = await self._buffers.take(job.record.size_bytes, Claim.of(Lane.SMALL, job))
        clean = False
        try:
            sent, sha256 = await read_whole(job, self._pins, self._threads, buffer)
            evidence = await self._send(job, buffer, sent, sha256)
            clean = True
        finally:
            self._buffers.give_back(buffer, clean=clean)
        self._pins.done_reading(job.id)
        return evidence, sent, sha256

    async def _send(self, job: Job, body: memoryview, sent: Digest, sha256: str) -> Evidence:
        check_handed(job, sha256)
        known = job if job.record.sha256 else replace(job, record=replace(job.record, sha256=sha256))
        self._faults.at("single.before_put")
        async with self._pace.turn(job, Lane.SMALL, len(body), f"put {job.record.key}"):
            evidence = await self._store.put(known.target, body, sent)
        self._faults.at("single.after_put")
        return evidence
