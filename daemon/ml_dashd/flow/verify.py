"""Rule 5: what a store answers is weighed, and only what proves the very bytes that were sent makes a file verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ml_dashd.core.checksum import Digest, Digester, proves
from ml_dashd.core.model import Algorithm, Evidence, Job, PinKind
from ml_dashd.core.plan import PART_BYTES, parts
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.ports import Buffers, Clock, Store, Threads

Arrived = Callable[[int], None]


def digest_of(job: Job) -> Digest:
    """What was sent, as the journal keeps it once every part was read."""
    return Digest(job.record.size_bytes, job.record.crc64nvme or 0, job.algorithm, job.proof)


class Verify:
    """Proves stored objects."""

    def __init__(self, store: Store, threads: Threads, buffers: Buffers, clock: Clock) -> None:
        self._store = store
        self._buffers = buffers
        self._threads = threads
        self._clock = clock

    async def changes(self, job: Job, evidence: Evidence, sent: Digest, sha256: str) -> dict[str, Any]:
        """What the journal notes of a file as it becomes VERIFIED. Raises GONE where its object is another.

        The proof is the store's own statement of size and checksum, or, where it makes none, the bytes read back.
        """
        key = job.record.key or ""
        proved = proves(evidence, sent)
        if proved is None and (stated := await self._store.head(key)) is not None:
            evidence, proved = stated, proves(stated, sent)
        if proved is None:
            read = await self.read_back(key, job.record.size_bytes)
            proved = read is not None and read[0] == sha256
        if not proved or evidence.file_id not in (None, job.id):
            await self._store.delete(key)
            raise StoreError(Fault.GONE, f"the stored object {key} is not what was sent; it goes up again")
        return {
            "sha256": sha256,
            # Of a duplicate, whose bytes do not pass here, it is as far known as the source's.
            "crc64nvme": job.record.crc64nvme if job.pin.kind is PinKind.OBJECT else sent.crc64nvme,
            "etag": evidence.etag,
            "uploaded_ms": self._clock.now_ms(),
            "attempt": 0,
            "blocked": False,
            "not_before_ms": 0,  # it may have been put off, and gone as a circuit's probe
            "trouble": None,
        }

    async def read_back(
        self, key: str, size_bytes: int, algorithm: Algorithm = Algorithm.NONE, arrived: Arrived | None = None
    ) -> tuple[str, Digest] | None:
        """The SHA-256 and the Digest of an object's bytes, all of them read; None where it ends before that size.

        `arrived` is told how many came, as they come. Raises StoreError.
        """
        sha256, digester = hashlib.sha256(), Digester(algorithm)

        def feed(piece: memoryview) -> None:
            sha256.update(piece)
            digester.update(piece)

        buffer = await self._buffers.take(min(size_bytes, PART_BYTES))
        try:
            for part in parts(size_bytes, PART_BYTES):
                piece = buffer[: part.size_bytes]
                await self._store.read(key, part.offset, piece, arrived or _unwatched)
                await self._threads.run(feed, piece)
        except StoreError as short:
            if short.fault is not Fault.CORRUPT:
                raise
            return None
        finally:
            self._buffers.give_back(buffer)
        return sha256.hexdigest(), digester.digest()


def _unwatched(size_bytes: int) -> None:
    """Nobody asked how far it is."""
