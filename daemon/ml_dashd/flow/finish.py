"""The end of a file: in the catalog, failed, or cancelled. Then its source is let go, and who waits is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from ml_dash.errors import Code
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Target, Trouble
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.states import State
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.outbox import AwayError, Outbox
from ml_dashd.flow.verify import digest_of
from ml_dashd.flow.whole import whole
from ml_dashd.ports import Catalog, Clock, Faults, Journal, Meter, Pins, Store, Superseded, TakenError, Threads

log = logging.getLogger("ml_dashd.flow")

_FOR_GOOD = (Fault.GONE, Fault.REFUSED, Fault.CORRUPT, Fault.MISSING, Fault.UNSUPPORTED)
"""What a store says of a Complete that no repetition changes."""
SAVE_AGAIN = "save it again; a copy of this machine's state folder gives out the same ids: give each its own"


class Finish:
    """Ends files."""

    def __init__(
        self,
        *,
        journal: Journal,
        store: Store,
        catalog: Catalog,
        pins: Pins,
        threads: Threads,
        bell: Bell,
        clock: Clock,
        faults: Faults,
        meter: Meter,
        outbox: Outbox,
    ) -> None:
        self._journal = journal
        self._store = store
        self._catalog = catalog
        self._pins = pins
        self._threads = threads
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._meter = meter
        self._outbox = outbox
        self._cleaning: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """One hand a file: a deletion that is on its way must not meet the object of its next try."""
        self._complained: set[Code] = set()
        """What the log has been told of: one line a cause, not one a file."""

    async def commit(self, jobs: Sequence[Job]) -> None:
        """`list_all`; while the catalog is away, the outbox keeps the files, and does so later."""
        try:
            if (trouble := self._outbox.trouble) is not None:
                raise AwayError(trouble)  # noqa: TRY301 as the catalog itself would say it
            await self.list_all(jobs)
        except AwayError as away:
            await self._outbox.put(jobs, away.trouble)

    async def list_all(self, jobs: Sequence[Job]) -> None:
        """Lists verified files (rule 6), lets their sources go (rule 7), and tells who waits (rule 8).

        One of which something else is said meanwhile is listed again, with that; one that was deleted is taken back,
        be it here, in the moment in which it was listed, too, or in the catalog by whoever knew it before; one whose id
        another file has fails. Raises AwayError.
        """
        deleted: list[Job] = []
        while True:
            deleted += [job for job in jobs if job.cancel_requested]
            jobs = [job for job in jobs if not job.cancel_requested]
            if not jobs:
                break
            self._faults.at("finish.before_catalog")
            gone, others = await self._commit(jobs)
            self._faults.at("finish.after_catalog")
            left = await whole(self._end([job for job in jobs if job.id not in gone and job.id not in others]))
            deleted += [job for job in jobs if job.id in gone]
            for job in [job for job in jobs if job.id in others]:
                await self._refuse(job, others[job.id])
            jobs = await self._amended(left)
        for job in deleted:
            await self._take_back(job)

    async def _commit(self, jobs: Sequence[Job]) -> tuple[set[int], dict[int, FileRecord]]:
        """The ids of those that were deleted, and the files that have the ids of others."""
        try:
            return set(await self._outbox.ask(self._catalog.commit([job.listed for job in jobs]))), {}
        except TakenError as taken:
            return set(taken.gone), {record.id: record for record in taken.others}

    async def _refuse(self, job: Job, other: FileRecord) -> None:
        """Its id is another file's, as where a machine was copied while it ran. What that one has is not touched."""
        what = f"{job.record.path}: another file has the id {job.id}, and this one can't be listed"
        with suppress(Superseded):  # by another hand
            await self.fail(job, Trouble(Code.ID_TAKEN, what, SAVE_AGAIN), owns_key=other.key != job.record.key)

    async def _amended(self, ids: Sequence[int]) -> list[Job]:
        """Those that are to be listed otherwise, or no more; the others have come to their end meanwhile."""
        now = await self._journal.get(ids) if ids else []
        return [job for job in now if job.state is State.VERIFIED]

    async def _end(self, jobs: Sequence[Job]) -> list[int]:
        """Returns the ids of those that are not DONE."""
        done = await self._journal.advance_all(jobs, State.DONE)
        self._faults.at("finish.before_release")
        await self._release(done)
        self._faults.at("finish.after_release")
        for job in done:
            self._meter.stored(job.record.size_bytes)
        _log_stored(done)
        self._bell.ring()
        self._faults.at("finish.after_notify")
        ended = {job.id for job in done}
        return [job.id for job in jobs if job.id not in ended]

    async def fail(self, job: Job, trouble: Trouble, *, owns_key: bool = True) -> None:
        """Gives a file up. A source that is still whole stays pinned, so that it can be tried again.

        One that is not is let go; of a slot, which is another save's by then, the journal is told first. Where the key
        is another file's, what the store has there stays.
        """
        lost = trouble.code in (Code.SOURCE_CHANGED, Code.SOURCE_LOST)
        failed = await whole(self._fail(job, trouble, {} if owns_key else {"key": None, "part_size": 0}, lost=lost))
        if failed.cancel_requested:  # deleted in this moment: back to the queue, which discards it
            await self._journal.advance(failed, State.QUEUED)
            return
        if not lost:
            self._pins.note_failed(failed.pin, job.id)
        self._meter.failed(trouble.code)
        event = {"id": job.id, "code": trouble.code, "path": job.record.path, "error": trouble.message}
        log.warning("file_failed", extra=event)
        self._bell.ring()
        try:
            await self.clean(replace(failed, upload_id=job.upload_id))
        except StoreError as later:
            log.info("clean_postponed", extra={"id": job.id, "error": later})

    async def _fail(self, job: Job, trouble: Trouble, changes: dict[str, Any], *, lost: bool) -> Job:
        if lost and job.pin.kind is PinKind.SLOT:
            changes = {**changes, "pin": Pin(PinKind.NONE)}
        failed = await self._journal.advance(
            job, State.FAILED, trouble=trouble, blocked=False, upload_id=None, **changes
        )
        if lost:
            await self._release([job])
        return failed

    async def clean(self, job: Job) -> None:
        """Removes what the store has of a failed file, such as an object from before a crash: nobody would list it.

        Its key is forgotten then; until that is so, the sweep comes back to it.
        """
        if job.record.key is None:
            return
        async with self._cleaning.setdefault(job.id, asyncio.Lock()):
            (now,) = await self._journal.get([job.id]) or [job]
            if now.state is State.FAILED and now.record.key is not None:
                await self._clean(job, now.record.key)

    async def _clean(self, job: Job, key: str) -> None:
        try:
            if job.part_size:
                await self.abort_all(job)
            await self._store.delete(key)
        except StoreError as refused:
            if refused.fault is not Fault.DENIED:
                raise
            log.warning("object_left", extra={"key": key, "error": refused})
        await self._journal.note(job, key=None, part_size=0)

    async def discard(self, job: Job) -> None:
        """Takes back a file that was deleted on its way, or gave way to a newer one: nothing of it stays anywhere.

        One that may be listed waits in the outbox while the catalog is away.
        """
        try:
            await self._take_back(job)
        except AwayError as away:
            await self._outbox.put([job], away.trouble)

    async def _take_back(self, job: Job) -> None:
        now = self._clock.now_ms()
        if job.state is State.VERIFIED:  # it may have been listed in the moment in which it was deleted
            await self._unlist(job, now)  # rule 6: before its object goes
        if job.record.key is not None:
            if job.part_size:
                await self.abort_all(job)
            await self._store.delete(job.record.key)
        self._faults.at("finish.before_cancelled")
        job = await whole(self._cancel(job, now))
        if job.superseded_by is None:
            self._meter.cancelled()
        else:
            self._meter.superseded()
        log.info("file_cancelled", extra={"id": job.id, "path": job.record.path})
        self._bell.ring()

    async def _cancel(self, job: Job, now_ms: int) -> Job:
        """In a drain a file that is no longer among the foremost steps back, as this one does by this very step."""
        cancelled = await self._journal.advance(job, State.CANCELLED, deleted_ms=now_ms, trouble=None)
        await self._release([cancelled])
        return cancelled

    async def _unlist(self, job: Job, now_ms: int) -> None:
        """Not the file of another, which has its id."""
        there = await self._outbox.ask(self._catalog.get([job.id]))
        if [found for found in there if found.identity == job.record.identity]:
            await self._outbox.ask(self._catalog.delete([job.id], now_ms))

    async def abort_all(self, job: Job) -> None:
        """Aborts the file's multipart upload, and those too that a crash kept out of the journal."""
        if job.upload_id is not None:
            await self._store.abort(self._target(job), job.upload_id)
        await self._end_strays(job)

    async def clear(self, job: Job) -> None:
        """Removes what may have come after a file was ended: an upload, or a cancelled file's object."""
        if job.state is State.CANCELLED and job.record.key is not None:
            await self._store.delete(job.record.key)
        if job.part_size:
            await self._end_strays(job, kept=job.upload_id if job.state is State.DONE else None)

    async def _end_strays(self, job: Job, kept: str | None = None) -> None:
        """Aborts every multipart upload that the store lists for the file's key: it holds the id, so they are ours.

        The one that is `kept` has become the object, if there is one. A server that dies within Complete may list it
        all the same (Swift removes its marker last), and to abort it would take the object's parts away: it is
        completed once more, which ends it.
        """
        target = self._target(job)
        for upload in [each async for each in self._store.uploads(target.key)]:
            if upload.upload_id == kept and await self._store.head(target.key, glance=True) is not None:
                await self._complete_again(job, target, upload.upload_id)
            else:
                log.info("orphan_aborted", extra={"id": job.id, "upload": upload.upload_id})
                await self._store.abort(target, upload.upload_id)

    async def _complete_again(self, job: Job, target: Target, upload_id: str) -> None:
        """One that the store does not take again stays as it is, listed: the object is worth more."""
        try:
            parts = await self._store.list_parts(target, upload_id, job.part_size)
            await self._store.complete(target, upload_id, parts, digest_of(job))
        except StoreError as refused:
            if refused.fault not in _FOR_GOOD:
                raise
            log.warning("upload_left", extra={"id": job.id, "upload": upload_id, "error": refused})
        else:
            log.info("upload_ended", extra={"id": job.id, "upload": upload_id})

    async def tidy(self, job: Job) -> None:
        """Removes what earlier tries at a stored file have begun after all, or not quite ended.

        The file is whole without it, so a store that refuses holds nothing up; the sweep asks again.
        """
        try:
            await self._end_strays(job, kept=job.upload_id)
        except StoreError as refused:
            log.info("clean_postponed", extra={"id": job.id, "error": refused})

    async def requeue(self, job: Job, trouble: Trouble, delay_ms: int) -> None:
        """Back to the queue, for a new upload."""
        await self._journal.advance(
            job,
            State.QUEUED,
            attempt=job.attempt + 1,
            not_before_ms=self._clock.now_ms() + delay_ms,
            trouble=trouble,
            upload_id=None,
            proof=None,
        )

    async def postpone(self, job: Job, trouble: Trouble, delay_ms: int, *, blocked: bool, counts: bool = True) -> None:
        """The same step again, later. Behind an open circuit it `counts` for nothing: it is the store that is tried."""
        await self._journal.note(
            job,
            attempt=job.attempt + counts,
            not_before_ms=self._clock.now_ms() + delay_ms,
            trouble=trouble,
            blocked=blocked,
        )
        if blocked and trouble.code not in self._complained:
            self._complained.add(trouble.code)
            event = {"id": job.id, "code": trouble.code, "error": trouble.message}
            log.warning("file_blocked", extra=event)
        self._bell.ring()

    def mended(self, job: Job) -> None:
        """What held files up is mended, as this one shows."""
        if self._complained:
            log.info("store_mended", extra={"id": job.id})
        self._complained.clear()

    async def _release(self, jobs: Sequence[Job]) -> None:
        """The journal itself lets go of the bytes that it holds."""
        kept = [job for job in jobs if job.pin.kind is not PinKind.INLINE]

        def release() -> None:
            for job in kept:
                self._pins.release(job.pin, job.id)

        if kept:
            await self._threads.run(release)

    def _target(self, job: Job) -> Target:
        key = job.record.key or self._store.key(job.record)
        return Target(key, job.id, job.record.size_bytes, job.record.content_type)


def _log_stored(jobs: Sequence[Job]) -> None:
    """One line for a file, and one for files that came together."""
    if len(jobs) == 1:
        event = {"id": jobs[0].id, "bytes": jobs[0].record.size_bytes, "path": jobs[0].record.path}
        log.info("file_stored", extra=event)
    elif jobs:
        total = sum(job.record.size_bytes for job in jobs)
        log.info("files_stored", extra={"files": len(jobs), "bytes": total, "first": jobs[0].id, "last": jobs[-1].id})
