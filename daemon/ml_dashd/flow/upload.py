"""One file, from the queue to the catalog: read this from top to bottom.

Each step leaves a state in the journal from which the next start resumes; the rules are those of DURABILITY.md.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from ml_dashd.core import checksum
from ml_dashd.core.checksum import Digest, Digester, has_part
from ml_dashd.core.fair import Claim
from ml_dashd.core.model import Algorithm, Evidence, Job, PinKind, SentPart
from ml_dashd.core.plan import Part, part_size, parts
from ml_dashd.core.retry import Fault, Next, StoreError, decide
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.flow.adopt import Adopting
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.copying import Copier
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.pace import FairBuffers, Pace
from ml_dashd.flow.single import Single
from ml_dashd.flow.sources import changed, check_handed, crc64_of, open_source
from ml_dashd.flow.verify import Verify, digest_of
from ml_dashd.ports import Clock, Faults, Journal, Meter, Pins, Source, Store, Threads

PARTS_AT_ONCE = 16
"""Parts of one file that are read and sent; how many of them are, depends on the memory and the pace (flow/pace.py)."""
UNHASHED_AT_ONCE = 3
"""Of these one is hashed, one is next, and one is read: where the hash is what takes longest, more would only wait."""
PART_ATTEMPTS = 6
"""Tries at a part before the file steps back and lets others go first."""


class Uploader:
    """Takes files to the store. It holds no state of its own: the journal has it all."""

    def __init__(
        self,
        *,
        journal: Journal,
        store: Store,
        pins: Pins,
        threads: Threads,
        buffers: FairBuffers,
        pace: Pace,
        finish: Finish,
        checksums: Checksums,
        verify: Verify,
        single: Single,
        copier: Copier,
        adopting: Adopting,
        bell: Bell,
        clock: Clock,
        faults: Faults,
        meter: Meter,
        part_bytes: int,
    ) -> None:
        self._journal = journal
        self._store = store
        self._pins = pins
        self._threads = threads
        self._buffers = buffers
        self._pace = pace
        self._finish = finish
        self._checksums = checksums
        self._verifier = verify
        self._single = single
        self._copier = copier
        self._adopting = adopting
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._meter = meter
        self._part_bytes = part_bytes

    async def run(self, job: Job) -> None:
        """Takes a file from where it stands to its end. Raises StoreError, or the error that ends it."""
        try:
            await self._run(job)
        finally:
            self._bell.sent.pop(job.id, None)

    async def _run(self, job: Job) -> None:
        if job.cancel_requested:
            await self._finish.discard(job)
            return
        if job.state in (State.QUEUED, State.SENDING):
            job = await self._send(job)
        if job.state is State.COMPLETING:
            job = await self._complete(job)
        if job.state is State.VERIFIED:
            await self._finish.commit([job])

    async def _send(self, job: Job) -> Job:
        if job.pin.kind is PinKind.OBJECT:
            return await self._copier.send(job)
        algorithm = await self._algorithm(job)
        if job.record.size_bytes <= self._store.single_bytes:
            return await self._send_whole(job, algorithm)
        source = await open_source(job, self._journal, self._pins, self._threads)
        try:
            fresh = job.state is State.QUEUED
            if fresh:
                job = await self._begin(job, algorithm)
            return await self._send_parts(job, source, fresh=fresh)
        finally:
            source.close()

    async def _algorithm(self, job: Job) -> Algorithm:
        try:
            return await self._checksums.algorithm()
        except StoreError as away:
            raise await self._single.reason(job, away) from None

    async def _send_whole(self, job: Job, algorithm: Algorithm) -> Job:
        """A file in one request. The small ones among them go many at a time, in the same steps (flow/batch.py)."""
        content = await self._journal.content(job) if job.pin.kind is PinKind.INLINE else b""
        if job.state is State.QUEUED:
            key = self._store.key(job.record)
            job = await self._journal.advance(job, State.SENDING, key=key, algorithm=algorithm)
        return await self._verified(job, await self._single.put(job, content))

    # ---- a file in parts

    async def _begin(self, job: Job, algorithm: Algorithm) -> Job:
        """Begins a multipart upload. What an earlier attempt began and could not journal is aborted first."""
        key = self._store.key(job.record)
        attempt = job.attempt
        if job.part_size:
            await self._finish.abort_all(job)
            attempt = max(1, attempt)  # its request may be on its way still: see `_complete`
        size = part_size(job.record.size_bytes, self._part_bytes)
        job = await self._journal.note(job, key=key, part_size=size, algorithm=algorithm, attempt=attempt)
        self._faults.at("upload.before_begin")
        upload_id = await self._store.begin(job.target)
        self._faults.at("upload.after_begin")
        self._pace.answered(job)
        # Rule 2: the upload's id is journaled before any part is sent.
        return await self._journal.advance(job, State.SENDING, upload_id=upload_id)

    async def _send_parts(self, job: Job, source: Source, *, fresh: bool) -> Job:
        """Reads the source once, in order, and sends each part that the store does not list with our bytes.

        A store on the source's file system adopts it instead, where it can (flow/adopt.py), before it or midway.

        Three things go on at once, each with parts of its own: reading, the whole file's SHA-256 (it takes as long as
        all the rest), and sending.
        """
        upload_id = job.upload_id or ""
        listed, journaled = {}, {}
        if not fresh:
            listed = _by_number(await self._store.list_parts(job.target, upload_id, job.part_size))
            journaled = _by_number(await self._journal.parts(job))
        sha256, hashing = hashlib.sha256(), self._threads.strand()
        digests: list[Digest] = []
        adoption = await self._adopting.begin(job)
        turn, unhashed = asyncio.Semaphore(PARTS_AT_ONCE), asyncio.Semaphore(UNHASHED_AT_ONCE)
        self._bell.sent[job.id] = 0
        try:
            async with asyncio.TaskGroup() as sending:
                for part in parts(source.size_bytes, job.part_size):
                    await turn.acquire()
                    await unhashed.acquire()
                    adopted = await adoption.attempt()
                    buffer = await self._buffers.take(part.size_bytes, Claim.of(Lane.LARGE, job))
                    digest = await self._read(job, source, part, buffer, journaled.get(part.number))
                    digests.append(digest)
                    there = adopted or has_part(listed.get(part.number), digest, journaled.get(part.number))
                    hashed = hashing.submit(sha256.update, buffer)
                    hashed.add_done_callback(lambda _: unhashed.release())
                    task = sending.create_task(self._take_part(job, part, buffer, digest, hashed, there=there))
                    task.add_done_callback(partial(self._part_ended, turn, buffer))
        except ExceptionGroup as failures:
            raise _first(failures) from None
        whole = checksum.combine(digests, job.algorithm)
        await self._settle_source(job, source, whole, sha256.hexdigest())
        await adoption.settle()
        job = await self._evidence_parts(job, digests, whole, sha256.hexdigest())
        self._pins.done_reading(job.id)
        return job

    async def _take_part(
        self, job: Job, part: Part, buffer: memoryview, digest: Digest, hashed: asyncio.Future[None], *, there: bool
    ) -> bool:
        """Sends a part, unless it is there, while it is hashed. False where something may still hold its buffer."""
        unheld = there or await self._send_part(job, part, buffer, digest)
        await hashed
        self._bell.sent[job.id] += part.size_bytes
        return unheld

    def _part_ended(self, turn: asyncio.Semaphore, buffer: memoryview, task: asyncio.Task[bool]) -> None:
        """A task that is cancelled before its first step gives nothing back itself."""
        clean = not task.cancelled() and task.exception() is None and task.result()
        self._buffers.give_back(buffer, clean=clean)
        turn.release()

    async def _send_part(self, job: Job, part: Part, buffer: memoryview, digest: Digest) -> bool:
        """Sends a part and journals it. False where a connection that broke may still hold the buffer."""
        for attempt in count(1):
            try:
                self._faults.at("upload.before_part")
                async with self._pace.turn(job, Lane.LARGE, part.size_bytes, f"part {part.number}"):
                    sent = await self._store.send_part(job.target, job.upload_id or "", part, buffer, digest)
                break
            except StoreError as failure:
                await self._wait_or_raise(failure, attempt)
        self._faults.at("upload.after_part")
        self._meter.sent(part.size_bytes)
        await self._journal.add_part(job, sent)
        self._faults.at("upload.part_journaled")
        return attempt == 1

    async def _wait_or_raise(self, failure: StoreError, attempt: int) -> None:
        decision = decide(failure.fault, failure.message, attempt, self._clock.jitter())
        if decision.next is not Next.RETRY or attempt >= PART_ATTEMPTS:
            raise failure
        self._meter.retried(failure.fault)
        await self._clock.sleep(decision.delay_ms / 1000)

    async def _evidence_parts(self, job: Job, digests: Sequence[Digest], whole: Digest, sha256: str) -> Job:
        """Rules 3 and 4: the store itself lists every part, of our size, with our checksum or the ETag it gave us."""
        listed = _by_number(await self._store.list_parts(job.target, job.upload_id or "", job.part_size))
        # Where the store states them the journal has nothing to add: ten thousand parts are some megabytes.
        stated = all(part.checksum is not None for part in listed.values())
        journaled = {} if stated else _by_number(await self._journal.parts(job))
        for number, digest in enumerate(digests, start=1):
            if not has_part(listed.get(number), digest, journaled.get(number)):
                raise StoreError(Fault.CORRUPT, f"the store does not list part {number} as it was sent")
        self._faults.at("upload.before_completing")
        return await self._journal.advance(
            job, State.COMPLETING, sha256=sha256, crc64nvme=whole.crc64nvme, proof=whole.proof
        )

    async def _complete(self, job: Job) -> Job:
        """Makes the object. Whatever came of an earlier try is asked of the store first, never inferred.

        Where there was one, what it may have left is ended: the uploads of a file that had a smooth way need no look.
        """
        await self._checksums.algorithm()  # after a restart the store does not know yet what it is to state
        evidence = await self._head_if_allowed(job.record.key or "")
        smooth = evidence is None and job.trouble is None and job.attempt == 0
        if evidence is None:
            evidence = await self._complete_now(job)
        if not smooth:
            await self._finish.tidy(job)
        return await self._verify(job, evidence, digest_of(job), job.record.sha256 or "")

    async def _head_if_allowed(self, key: str) -> Evidence | None:
        """AWS answers for an object that is not there with a denial to whom may not list the bucket."""
        try:
            return await self._store.head(key)
        except StoreError as refused:
            if refused.fault is not Fault.DENIED:
                raise
            return None

    async def _complete_now(self, job: Job) -> Evidence:
        target, upload_id = job.target, job.upload_id or ""
        listed = await self._store.list_parts(target, upload_id, job.part_size)
        failure: StoreError | None = None
        self._faults.at("upload.before_complete")
        try:
            await self._store.complete(target, upload_id, listed, digest_of(job))
        except StoreError as ambiguous:
            failure = ambiguous
        self._faults.at("upload.after_complete")
        evidence = await self._store.head(target.key)
        if evidence is not None and failure is not None:
            await self._finish.tidy(job)
        if evidence is None and failure is not None and failure.fault is Fault.CORRUPT:
            raise StoreError(Fault.GONE, failure.message)  # the parts are not what they should be: another upload
        if evidence is None:
            raise failure or StoreError(Fault.TRANSIENT, "completed, but the store does not show the object yet")
        return evidence

    async def _verify(self, job: Job, evidence: Evidence, sent: Digest, sha256: str) -> Job:
        return await self._verified(job, await self._verifier.changes(job, evidence, sent, sha256))

    async def _verified(self, job: Job, changes: dict[str, Any]) -> Job:
        self._faults.at("upload.before_verified")
        return await self._journal.advance(job, State.VERIFIED, **changes)

    async def _read(self, job: Job, source: Source, part: Part, buffer: memoryview, earlier: SentPart | None) -> Digest:
        """Fills a buffer: its checksum, over the very bytes that are then hashed and sent (rule 14).

        Where the part was sent before, what is read now must be what was read then: a write through mmap, or one whose
        times were put back, is seen by this alone. The buffer of a read that fails is not lost.
        """
        digester = Digester(job.algorithm)
        try:
            await self._threads.run(source.read, part.offset, buffer, (digester,))
            digest = digester.digest()
            _check_same(job, digest, earlier)
        except BaseException:
            self._buffers.give_back(buffer, clean=False)
            raise
        return digest

    async def _settle_source(self, job: Job, source: Source, read: Digest, sha256: str) -> None:
        """Refuses a source that is not what it was. One that may have been written to unseen is read once more.

        What is the same both times was the same in between: one content, and no mixture of two.
        """
        untouched = await self._threads.run(source.check)
        if not untouched and await crc64_of(source, self._threads) != read.crc64nvme:
            raise changed(job)
        check_handed(job, sha256)


def _check_same(job: Job, digest: Digest, earlier: SentPart | None) -> None:
    if earlier is not None and earlier.crc64nvme not in (None, digest.crc64nvme):
        raise changed(job)


def _by_number(some: Sequence[SentPart]) -> dict[int, SentPart]:
    return {part.number: part for part in some}


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """One of the failures of parts that were sent at once: the others are of the same kind, or follow from it."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
