"""A duplicate's way to the store: its object is made within the store, of another file's object.

No byte passes here, so what proves the object is what is known of the source: its CRC64NVME, or an ETag that is its
MD5, where the store states one; else the bytes are read back and their SHA-256 is compared (flow/verify.py).
"""

from __future__ import annotations

import asyncio
import base64
import re

from ml_dash.errors import Code, error
from ml_dashd.core.checksum import Digest, encode_crc
from ml_dashd.core.model import Algorithm, FileRecord, Job, SentPart
from ml_dashd.core.plan import MIB, Part, part_size, parts
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.states import State
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.pace import Pace
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Faults, Journal, Store

PART_BYTES = 512 * MIB
"""Of a copy in parts: a server copies as much in seconds, and 100 GB are 187 of them."""
AT_ONCE = 4
_MD5 = re.compile(r"[0-9a-f]{32}")


class Copier:
    """Takes duplicates to the store. It holds no state of its own: the journal has it all."""

    def __init__(
        self,
        *,
        journal: Journal,
        store: Store,
        finish: Finish,
        checksums: Checksums,
        verify: Verify,
        pace: Pace,
        faults: Faults,
    ) -> None:
        self._journal = journal
        self._store = store
        self._finish = finish
        self._checksums = checksums
        self._verifier = verify
        self._pace = pace
        self._faults = faults

    async def send(self, job: Job) -> Job:
        """From the queue to VERIFIED, or, in parts, to COMPLETING. Raises OBJECT_MISSING where the source is gone."""
        algorithm = await self._checksums.algorithm()
        try:
            if job.record.size_bytes <= self._store.copy_bytes:
                return await self._in_one(job, algorithm)
            return await self._in_parts(job, algorithm)
        except StoreError as failure:
            if failure.fault is not Fault.MISSING:
                raise
            what = f"the object of which {job.record.path} is a duplicate is gone: {failure.message}"
            raise error(Code.OBJECT_MISSING, what) from failure

    async def _in_one(self, job: Job, algorithm: Algorithm) -> Job:
        begun = job.state is State.SENDING
        if not begun:
            key = self._store.key(job.record)
            job = await self._journal.advance(job, State.SENDING, key=key, algorithm=algorithm)
        target = job.target
        # What an earlier try has made is asked for first: the answer may have been lost, or the daemon killed.
        if not begun or await self._store.head(target.key, glance=True) is None:
            self._faults.at("duplicate.before_copy")
            await self._store.copy(job.pin.source, target)
            self._faults.at("duplicate.after_copy")
        self._pace.answered(job)
        evidence = await self._store.head(target.key)
        if evidence is None:
            raise StoreError(Fault.TRANSIENT, "copied, but the store does not show the object yet")
        expected = _expected(job.record, algorithm)
        changes = await self._verifier.changes(job, evidence, expected, job.record.sha256 or "")
        self._faults.at("duplicate.before_verified")
        return await self._journal.advance(job, State.VERIFIED, **changes)

    async def _in_parts(self, job: Job, algorithm: Algorithm) -> Job:
        """Rules 2 and 4, as for what is sent.

        A part that the store lists with its size is the source's: this upload gets bytes from nowhere else, and the
        whole object is verified.
        """
        if job.state is State.QUEUED:
            job = await self._begin(job, algorithm)
        plan = {part.number: part for part in parts(job.record.size_bytes, job.part_size)}
        listed = await self._listed(job)
        missing = [part for part in plan.values() if not _has(part, listed)]
        try:
            await self._copy_all(job, missing)
        except StoreError as failure:
            if failure.fault is not Fault.UNSUPPORTED:
                raise
            await self._finish.abort_all(job)  # some servers copy objects of any size, and no parts
            return await self._in_one(job, algorithm)
        listed = await self._listed(job)
        if any(not _has(part, listed) for part in plan.values()):
            raise StoreError(Fault.TRANSIENT, "the store does not list every part that it has copied")
        self._faults.at("duplicate.before_completing")
        proof = _expected(job.record, job.algorithm).proof
        return await self._journal.advance(job, State.COMPLETING, proof=proof)

    async def _begin(self, job: Job, algorithm: Algorithm) -> Job:
        """Only a CRC64NVME of the whole is known before; another checksum would have to be stated for each part."""
        ours = Algorithm.CRC64NVME if _expected(job.record, algorithm).algorithm is Algorithm.CRC64NVME else None
        if job.part_size:
            await self._finish.abort_all(job)
        job = await self._journal.note(
            job,
            key=self._store.key(job.record),
            part_size=part_size(job.record.size_bytes, min(PART_BYTES, self._store.copy_bytes)),
            algorithm=ours or Algorithm.NONE,
        )
        self._faults.at("duplicate.before_begin")
        upload_id = await self._store.begin(job.target)
        self._faults.at("duplicate.after_begin")
        return await self._journal.advance(job, State.SENDING, upload_id=upload_id)

    async def _copy_all(self, job: Job, missing: list[Part]) -> None:
        turn = asyncio.Semaphore(AT_ONCE)

        async def copy(part: Part) -> None:
            async with turn:
                await self._store.copy_part(job.pin.source, job.target, job.upload_id or "", part)
                self._faults.at("duplicate.after_part")
                self._pace.answered(job)

        try:
            async with asyncio.TaskGroup() as group:
                for part in missing:
                    group.create_task(copy(part))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _listed(self, job: Job) -> dict[int, SentPart]:
        listed = await self._store.list_parts(job.target, job.upload_id or "", job.part_size)
        return {part.number: part for part in listed}


def _has(part: Part, listed: dict[int, SentPart]) -> bool:
    found = listed.get(part.number)
    return found is not None and found.size_bytes == part.size_bytes


def _expected(record: FileRecord, algorithm: Algorithm) -> Digest:
    """What the store is to state of the object. Before it is verified, the record's ETag is the source's."""
    size, crc64 = record.size_bytes, record.crc64nvme
    if algorithm is Algorithm.CRC64NVME and crc64 is not None:
        return Digest(size, crc64, algorithm, encode_crc(crc64, 8))
    if algorithm is Algorithm.MD5 and _MD5.fullmatch(record.etag or ""):
        return Digest(size, crc64 or 0, algorithm, base64.b64encode(bytes.fromhex(record.etag or "")).decode())
    return Digest(size, crc64 or 0, Algorithm.NONE, None)
