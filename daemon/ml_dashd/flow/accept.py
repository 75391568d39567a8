"""Hand-off: pin the source, journal the file, and only then say that it is taken (rule 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from ml_dash.errors import Code, MLDashError, error
from ml_dash.messages import CommitSlot, Content, Described, Duplicate, Put, PutMany, Upload
from ml_dashd.core import names
from ml_dashd.core.access import Policy
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Protection
from ml_dashd.flow.arrivals import Arrivals
from ml_dashd.flow.copies import Copies
from ml_dashd.flow.health import Health
from ml_dashd.flow.overwrites import Overwrites
from ml_dashd.flow.pinning import Opened, Pinned, Pinning
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.shares import share_of
from ml_dashd.flow.supersede import Supersede
from ml_dashd.flow.warm import Warm
from ml_dashd.flow.write_back import WriteBack
from ml_dashd.ports import Clock, Faults, Handed, Ids, Journal, Meter, Ready, Session, Slots

DURABILITY = ("", "memory", "disk")
SNAPSHOT = ("", "copy")
PROTECT = ("", "lease")
_IN_THE_JOURNAL = (PinKind.INLINE, PinKind.OBJECT)
"""Pins that are nothing but their row."""


class Accept:
    """Takes files in. `wake` is called once a file is in the journal."""

    def __init__(
        self,
        *,
        journal: Journal,
        pinning: Pinning,
        slots: Slots,
        warm: Warm,
        meter: Meter,
        ids: Ids,
        clock: Clock,
        faults: Faults,
        settle: Settle,
        write_back: WriteBack,
        health: Health,
        copies: Copies,
        overwrites: Overwrites,
        supersede: Supersede,
        arrivals: Arrivals,
        policy: Policy,
        key_prefix: str,
        durability: str,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._pinning = pinning
        self._slots = slots
        self._warm = warm
        self._settle = settle
        self._write_back = write_back
        self._health = health
        self._copies = copies
        self._overwrites = overwrites
        self._supersede = supersede
        self._arrivals = arrivals
        self._policy = policy
        self._meter = meter
        self._ids = ids
        self._clock = clock
        self._faults = faults
        self._key_prefix = key_prefix
        self._durability = durability
        self._wake = wake
        self._closed = False

    def close(self) -> None:
        """Takes nothing more."""
        self._closed = True

    async def upload(
        self,
        session: Session,
        message: Upload,
        descriptor: int,
        numbered: tuple[int, int] | None = None,
        answer: Ready | None = None,
    ) -> Job:
        """Takes an open file. Idempotent by the message's key.

        `numbered` are the id and the time of one that was handed over before: in milliseconds since 1970, UTC.
        `answer` is called as soon as the file is in the journal, where the client is told of nothing that follows.
        """
        self._check(message.durability, message.snapshot, message.protect)
        record = self._describe(session, message.file, numbered)
        if message.origin is None:
            return await self._take(record, message, descriptor, None if message.protect else answer)
        record = self._arrivals.name(record, message.origin)
        async with self._arrivals.claim(record) as known:
            return known or await self._take(record, message, descriptor, None, message.origin.updated_ms)

    async def _take(
        self, record: FileRecord, message: Upload, descriptor: int, answer: Ready | None, said_ms: int | None = None
    ) -> Job:
        source, protection = Opened(descriptor, record.id, message.source), self._protection(message)

        def handed(pinned: Pinned) -> Handed:
            pin, content, size = pinned
            job = self._job(_sized(record, size, content), pin, message.file, said_ms=said_ms)
            if message.origin is not None:  # what is pushed from elsewhere is its whole history
                job = replace(job, supersedes=False)
            return Handed(job, message.key, content)

        kept = await self._pin_and_keep(source, protection, handed, answer)
        if kept is None:
            (pinned,) = await self._pinning.take_all(record.owner_uid, [source], protection)
            kept = await self._keep(handed(pinned), message.durability, answer)
        if message.protect:
            await self._overwrites.protect(kept)
        return kept

    async def _pin_and_keep(
        self, source: Opened, protection: Protection, handed: Callable[[Pinned], Handed], answer: Ready | None
    ) -> Job | None:
        """Pins and journals in one go: two waits for a thread less, of the three that a hand-off has.

        None where the pin might take longer than the journal, which would hold up others.
        """
        if protection is not Protection.RESTART or not self._pinning.is_quick(source):
            return None
        made: list[Handed] = []

        def make() -> Handed:
            if not made:
                made.append(_noted(handed(self._pinning.take(source, protection)), on_disk=False))
                self._faults.at("accept.pinned")
            return made[0]

        try:
            taken = await self._journal.accept_made(make, self._journaled(answer))
        except Exception as failure:
            await self._unkept(made)
            if not made and isinstance(failure, MLDashError) and failure.code is Code.RETRY_LATER:
                return None  # no descriptor is left to hold it with
            raise
        (job,) = await self._follow([taken], made)
        return job

    async def refer(self, session: Session, message: Duplicate, source: Job) -> Job:
        """Takes what a stored file holds: its object is copied later (flow/copying.py). Idempotent by the key."""
        self._check("", "")
        of = source.record
        record = replace(
            self._describe(session, message.file),
            size_bytes=of.size_bytes,
            sha256=of.sha256,
            crc64nvme=of.crc64nvme,
            etag=of.etag,
        )
        key = source.pin.source if source.pin.kind is PinKind.OBJECT else of.key or ""
        return await self._keep(Handed(self._job(record, Pin(PinKind.OBJECT, source=key), message.file), message.key))

    async def adopt(
        self, session: Session, message: Duplicate, source: Job, is_pinned: Callable[[Job], Awaitable[bool]]
    ) -> Job:
        """Takes what a file on its way holds, by a pin of its own. Idempotent by the key.

        Raises SOURCE_LOST where the source's pin was let go meanwhile.
        """
        self._check("", "")
        record = replace(self._describe(session, message.file), sha256=source.record.sha256)
        if source.pin.kind is PinKind.INLINE:
            content: bytes | None = await self._journal.content(source)
            pin, size = Pin(PinKind.INLINE), source.record.size_bytes
        else:
            pin, content, size = await self._pinning.adopt(session.uid, source, record.id)
            try:
                kept = await is_pinned(source)
            except Exception:  # the journal does not answer
                await self._pinning.let_go(pin, record.id)
                raise
            if not kept:
                await self._pinning.let_go(pin, record.id)
                raise error(Code.SOURCE_LOST, f"{source.record.path} was let go while it was duplicated")
        job = self._job(replace(record, size_bytes=size), pin, message.file, seal=source.seal)
        return await self._keep(Handed(job, message.key, content))

    async def put(self, session: Session, message: Put, answer: Ready) -> Job:
        """Takes content that came inside the message, `answer` as for `upload`. Idempotent by the message's key."""
        self._check("", "")
        return await self._keep(self._inline(self._describe(session, message.file), message), answer=answer)

    async def put_many(self, session: Session, message: PutMany, descriptors: Sequence[int]) -> list[Job]:
        """Takes several contents and open files, all or none. Idempotent by each one's key.

        Each file that has a source owns the next descriptor.
        """
        self._check("", "")
        if len(descriptors) != sum(1 for each in message.files if each.source):
            raise error(Code.PROTOCOL, "each file with a source needs its descriptor, and no other file has one")
        files = [(self._describe(session, each.file), each) for each in message.files]
        kept = {record.id: self._inline(record, each) for record, each in files if not each.source}
        opened = [(record, each) for record, each in files if each.source]
        sources = [Opened(at, record.id, each.source) for at, (record, each) in zip(descriptors, opened, strict=True)]
        pins = await self._pinning.take_all(session.uid, sources, self._protection())
        for (record, each), (pin, content, size) in zip(opened, pins, strict=True):
            kept[record.id] = Handed(self._job(_sized(record, size, content), pin, each.file), each.key, content)
        return await self._keep_all([kept[record.id] for record, _ in files])

    def _inline(self, record: FileRecord, given: Put | Content) -> Handed:
        """Content that came inside a message, which is as it was sent."""
        sha256 = hashlib.sha256(given.content)
        if sha256.digest() != given.sha256:
            raise error(Code.CHECKSUM_MISMATCH, f"{record.path} did not arrive as it was sent", "save it again")
        record = replace(record, size_bytes=len(given.content), sha256=sha256.hexdigest())
        return Handed(self._job(record, Pin(PinKind.INLINE), given.file, on_disk=True), given.key, given.content)

    async def commit(self, session: Session, message: CommitSlot, answer: Ready) -> Job:
        """Takes what was written into a slot, `answer` as for `upload`. Idempotent by the message's key."""
        try:
            self._check(message.durability, "")
            record = self._describe(session, message.file)
        except MLDashError:
            self._slots.give_back(session.number, message.slot)
            raise
        pin = self._slots.commit(session.number, message.slot, message.size_bytes, record.id)
        job = self._job(_sized(record, message.size_bytes, None), pin, message.file, seal=message.seal)
        kept = await self._keep(Handed(job, message.key), message.durability, answer)
        self._warm.saved(session.number, message.size_bytes)
        return kept

    async def _keep(self, one: Handed, durability: str = "", answer: Ready | None = None) -> Job:
        (job,) = await self._keep_all([one], durability, answer)
        return job

    async def _keep_all(self, handed: Sequence[Handed], durability: str = "", answer: Ready | None = None) -> list[Job]:
        """Journals what was pinned, all or none: from then on it is ours. What is not needed is let go of."""
        waits = self._waits_for_disk(durability)
        try:
            settled = [await self._on_disk(one, waits=waits) for one in handed]
            self._faults.at("accept.pinned")
            kept = await self._journal.accept_all(settled, self._journaled(answer))
        except Exception:  # not CancelledError: the journal goes on, and may take the files after all
            await self._unkept(handed)
            raise
        return await self._follow(kept, handed)

    async def _unkept(self, handed: Sequence[Handed]) -> None:
        """Lets go of what could not be journaled."""
        if not self._journal.unsure():  # else the next start may find them there; if not, it removes the pins
            for one in handed:
                await self._let_go(one.job)

    def _journaled(self, answer: Ready | None) -> Ready:
        """What happens in the journal's thread. A file that drops older ones is answered for after that."""

        def ready(jobs: Sequence[Job]) -> Callable[[], None]:
            send = None if answer is None or any(job.supersedes for job in jobs) else answer(jobs)

            def journaled() -> None:
                self._faults.at("accept.journaled")
                if send is not None:
                    send()

            return journaled

        return ready

    async def _follow(self, kept: Sequence[tuple[Job, bool]], handed: Sequence[Handed]) -> list[Job]:
        """What follows from it that files are in the journal."""
        for (job, new), one in zip(kept, handed, strict=True):
            if new:
                self._meter.accepted(job.record.size_bytes)
            elif job.id != one.job.id:
                await self._not_needed(one.job, job)
        self._wake()
        jobs = [job for job, _ in kept]
        for job in jobs:
            self._copies.add(job)
        await self._supersede.run(jobs)
        for job in jobs:
            if not job.on_disk:
                self._write_back.later(job)
        return jobs

    async def _on_disk(self, one: Handed, *, waits: bool) -> Handed:
        """With what is known of its content; `waits` for it to be on stable storage."""
        if waits and one.job.pin.kind not in _IN_THE_JOURNAL:
            await self._settle_first(one.job.pin, one.job.id)
        return _noted(one, on_disk=waits)

    async def _not_needed(self, again: Job, job: Job) -> None:
        """A request came again: the file has its pin. What a pin holds open may have ended with an earlier daemon."""
        if again.pin != job.pin:
            await self._let_go(again)
        elif job.pin.kind is PinKind.FD:
            await self._pinning.pass_on(again.id, job.id)

    async def _let_go(self, job: Job) -> None:
        if job.pin.kind not in _IN_THE_JOURNAL:
            await self._pinning.let_go(job.pin, job.id)

    async def _settle_first(self, pin: Pin, file_id: int) -> None:
        """Before the answer. What keeps the daemon from asking the disk, a want of descriptors, say, passes."""
        try:
            await self._settle.settle(pin, file_id)
        except OSError as failure:
            if isinstance(failure, MLDashError):
                raise
            what = f"{pin.source or 'the spool'} can't be synced now: {failure}"
            raise error(Code.RETRY_LATER, what, "it is tried again; see the daemon's log") from failure

    def _protection(self, message: Upload | None = None) -> Protection:
        if message is not None and message.snapshot == "copy":
            return Protection.COPY
        waits = self._waits_for_disk("" if message is None else message.durability)
        return Protection.REBOOT if waits else Protection.RESTART

    def _waits_for_disk(self, durability: str) -> bool:
        return (durability or self._durability) == "disk"

    def _check(self, durability: str, snapshot: str, protect: str = "") -> None:
        if self._closed:
            raise error(Code.SHUTTING_DOWN, "the daemon is being stopped")
        self._health.check()
        if durability not in DURABILITY:
            raise error(Code.INVALID_ARGUMENT, f"durability={durability!r}", 'use "memory" or "disk"')
        if snapshot not in SNAPSHOT:
            raise error(Code.INVALID_ARGUMENT, f"snapshot={snapshot!r}", 'use "copy", or leave it out')
        if protect not in PROTECT:
            raise error(Code.INVALID_ARGUMENT, f"protect={protect!r}", 'use "lease", or leave it out')

    def _job(self, record: FileRecord, pin: Pin, file: Described, **more: Any) -> Job:
        """What is journaled of a file that is taken in: its record, its source, and what was asked for."""
        supersedes = self._supersede.asked(record, by_caller=file.supersede)
        return Job(record, pin, priority=file.priority, supersedes=supersedes, **more)

    def _describe(self, session: Session, file: Described, numbered: tuple[int, int] | None = None) -> FileRecord:
        """The record of a new file, its names checked."""
        place = file.place
        namespace, project, experiment = names.clean_experiment(place.namespace, place.project, place.experiment)
        self._policy.check_write(session.uid, namespace)
        share = None if file.share is None else share_of(place, file.share, session.uid)
        prefix, filename = names.place(place.prefix if share is None else share.name, file.to)
        if numbered is None:
            now = self._clock.now_ms()
            numbered = self._ids.next(now), now
        file_id, now = numbered
        record = FileRecord(
            id=file_id,
            owner_uid=session.uid,
            namespace=namespace,
            project=project,
            experiment=experiment,
            prefix=prefix,
            filename=filename,
            size_bytes=0,
            content_type=names.content_type(filename),
            created_ms=now,
            updated_ms=now,
            description=file.description,
            tags=names.tags(file.tags, "tags"),
            bindrs=names.tags(file.bindrs, "bindrs"),
            metadata=names.metadata(file.metadata),
            share=share,
            pending=share is not None,
        )
        names.check_length(record, self._key_prefix)
        return record


def _noted(one: Handed, *, on_disk: bool) -> Handed:
    """With what is known of its content. The journal's own is on stable storage with its row."""
    on_disk = on_disk or one.job.pin.kind in _IN_THE_JOURNAL
    return one if one.job.on_disk else replace(one, job=replace(one.job, on_disk=on_disk))


def _sized(record: FileRecord, size_bytes: int, content: bytes | None) -> FileRecord:
    """The record with its size, and its SHA-256 where the bytes are at hand.

    Of a file that has one from elsewhere, what is sent is compared with it, as with any that somebody was told.
    """
    sha256 = record.sha256 if content is None else hashlib.sha256(content).hexdigest()
    if record.sha256 not in (None, sha256):
        raise error(Code.CHECKSUM_MISMATCH, f"{record.path} is not what was stored elsewhere", "see `ml-dash verify`")
    return replace(record, size_bytes=size_bytes, sha256=sha256)
