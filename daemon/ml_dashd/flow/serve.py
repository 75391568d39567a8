"""What each message means: from the wire to the flow and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import TABLE, Code, error
from ml_dash.wire import VERSION
from ml_dashd.core.access import Policy
from ml_dashd.core.model import Job, Sending, Trouble
from ml_dashd.core.states import State
from ml_dashd.core.supersede import trouble_of
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.again import Again
from ml_dashd.flow.amend import Amend
from ml_dashd.flow.assemble import Spans
from ml_dashd.flow.audit import Audit, Audited
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.doctor import Doctor
from ml_dashd.flow.drain import MAX_DRAIN_MS, Drain, Seen
from ml_dashd.flow.duplicate import Duplicate
from ml_dashd.flow.fetch import Fetch
from ml_dashd.flow.health import Health
from ml_dashd.flow.inbox import Adoption, unknown
from ml_dashd.flow.nodes import Nodes
from ml_dashd.flow.prune import Prune
from ml_dashd.flow.runs import Experiments
from ml_dashd.flow.sets import FileSets, Show
from ml_dashd.flow.shares import shown_share
from ml_dashd.flow.turns import Turns
from ml_dashd.flow.warm import Warm
from ml_dashd.ports import Journal, JournalError, Pins, Send, Session, Slots, Threads

MAX_WAIT_MS = 60_000
REPORTS = (1, 2)
"""Reports of the daemon's state at once, of one user and of all: each looks through the queue and the spool."""
_NOTHING_TAKEN = {Code.DISK_FAILED: "see the daemon's log; nothing was taken, so try again"}
MOVING = 32
"""Files under way that a report names."""
NAMED = 50
"""Files that the answer to a Drain names; the manifest has the rest."""
MAX_SPANS = 32
"""Ranges of a download that Progress names. There are more only where a daemon with smaller ones has begun it."""
MAX_SAID = 2000
"""Characters of what is said of one file of many."""
SENT = (State.COMPLETING, State.VERIFIED, State.DONE)
Reply = tuple[m.Message, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What the daemon says of itself."""

    version: str
    pid: int
    embedded: bool
    store: str
    state_dir: str
    started_ms: int
    inbox: str = ""


class Serve:
    """Answers requests; each method is one message's. `stop` ends the daemon."""

    def __init__(
        self,
        *,
        identity: Identity,
        accept: Accept,
        browse: Browse,
        amend: Amend,
        duplicate: Duplicate,
        prune: Prune,
        fetch: Fetch,
        drain: Drain,
        doctor: Doctor,
        audit: Audit,
        again: Again,
        sending: Callable[[], Sending],
        limits: m.Limits,
        experiments: Experiments,
        nodes: Nodes,
        inbox: Adoption | None,
        sets: Callable[[Show], FileSets],
        stop: Callable[[], None],
        journal: Journal,
        pins: Pins,
        slots: Slots,
        warm: Warm,
        threads: Threads,
        bell: Bell,
        health: Health,
        policy: Policy,
    ) -> None:
        self._health = health
        self._identity = identity
        self._policy = policy
        self._reports = Turns(*REPORTS)
        self._accept = accept
        self._browse = browse
        self._amend = amend
        self._duplicate = duplicate
        self._prune = prune
        self._fetch = fetch
        self._drain = drain
        self._doctor = doctor
        self._audit = audit
        self._again = again
        self._sending = sending
        self._inbox = inbox
        self._limits = limits
        self._stop = stop
        self._journal = journal
        self._pins = pins
        self._slots = slots
        self._warm = warm
        self._threads = threads
        self._bell = bell
        self._sets = sets(self._records)
        self._sessions: set[int] = set()
        self._answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {
            m.Hello: self._hello,
            m.Upload: self._upload,
            m.Put: self._put,
            m.PutMany: self._put_many,
            m.RequestSlot: self._request_slot,
            m.GrowSlot: self._grow_slot,
            m.CommitSlot: self._commit_slot,
            m.ReleaseSlot: self._release_slot,
            m.List: self._list,
            m.Get: self._get,
            m.Wait: self._wait,
            m.Delete: self._delete,
            m.Fetch: self._fetch_file,
            m.Status: self._status,
            m.Drain: self._drain_queue,
            m.Examine: self._examine,
            m.Update: self._update,
            m.Duplicate: self._duplicate_file,
            m.Prune: self._prune_versions,
            m.Retry: self._retry,
            m.Verify: self._verify,
            m.FindHanded: self._find_handed,
            **experiments.answers,
            **nodes.answers,
            **self._sets.answers,
        }

    async def handle(self, session: Session, message: m.Message, descriptors: Sequence[int], send: Send) -> Reply:
        self._sessions.add(session.number)
        try:
            return await self._answers[type(message)](session, message, descriptors, send)
        except JournalError as failure:
            raise error(failure.code, str(failure), _NOTHING_TAKEN.get(failure.code)) from None

    def rename(self, store: str, state_dir: str) -> None:
        """What is said of where things lie, once a root was moved."""
        self._identity = replace(self._identity, store=store, state_dir=state_dir)

    def disconnected(self, session: Session) -> None:
        self._sessions.discard(session.number)
        self._warm.disconnected(session.number)
        self._slots.disconnect(session.number)

    async def _hello(self, _: Session, message: m.Hello, *__: Any) -> Reply:
        if not message.min_version <= VERSION <= message.max_version:
            raise error(
                Code.UNSUPPORTED_VERSION,
                f"the client speaks versions {message.min_version} to {message.max_version}, the daemon {VERSION}",
            )
        me = self._identity
        return m.Welcome(
            request=message.request,
            version=VERSION,
            daemon=me.version,
            embedded=me.embedded,
            store=me.store,
            inbox=me.inbox,
        ), ()

    # ---- hand-off

    async def _upload(self, session: Session, message: m.Upload, descriptors: Sequence[int], _: Send) -> Reply:
        return self._accepted(message, await self._accept.upload(session, message, descriptors[0]))

    async def _put(self, session: Session, message: m.Put, *_: Any) -> Reply:
        return self._accepted(message, await self._accept.put(session, message))

    async def _put_many(self, session: Session, message: m.PutMany, descriptors: Sequence[int], _: Send) -> Reply:
        jobs = await self._accept.put_many(session, message, descriptors)
        return m.AcceptedMany(request=message.request, records=self._records(jobs)), ()

    async def _duplicate_file(self, session: Session, message: m.Duplicate, *_: Any) -> Reply:
        return self._accepted(message, await self._duplicate.run(session, message))

    async def _commit_slot(self, session: Session, message: m.CommitSlot, *_: Any) -> Reply:
        return self._accepted(message, await self._accept.commit(session, message))

    async def _find_handed(self, session: Session, message: m.FindHanded, *_: Any) -> Reply:
        """The caller's own alone: a key is looked up with the uid that the kernel states."""
        if self._inbox is not None:
            return self._accepted(message, await self._inbox.find(session.uid, message.key))
        job = await self._journal.handed(session.uid, message.key)
        if job is None:
            raise unknown()
        return self._accepted(message, job)

    def _accepted(self, message: m.Message, job: Job) -> Reply:
        return m.Accepted(request=message.request, record=self._record(job)), ()

    async def _request_slot(self, session: Session, message: m.RequestSlot, *_: Any) -> Reply:
        self._health.check()  # before anything is written into it
        slot = await self._threads.run(self._slots.grant, session.number, message.size_bytes)
        granted = m.SlotGranted(request=message.request, slot=slot.number, capacity_bytes=slot.capacity_bytes)
        return granted, (() if slot.number in message.held else (slot.descriptor,))

    async def _grow_slot(self, session: Session, message: m.GrowSlot, *_: Any) -> Reply:
        slot = await self._threads.run(self._slots.grow, session.number, message.slot, message.size_bytes)
        return m.SlotGranted(request=message.request, slot=slot.number, capacity_bytes=slot.capacity_bytes), ()

    async def _release_slot(self, session: Session, message: m.ReleaseSlot, *_: Any) -> Reply:
        await self._threads.run(self._slots.give_back, session.number, message.slot)
        return m.Done(request=message.request), ()

    # ---- questions

    async def _list(self, session: Session, message: m.List, *_: Any) -> Reply:
        if message.everywhere:
            found, cursor = await self._browse.everywhere(session, message.cursor, message.page_size)
        else:
            found, cursor = await self._browse.page(
                session,
                message.place,
                message.pattern,
                message.cursor,
                message.page_size,
                latest=message.latest,
                tags=message.tags,
                pending=message.pending,
            )
        return m.Page(request=message.request, records=self._records(found), cursor=cursor), ()

    async def _get(self, session: Session, message: m.Get, *_: Any) -> Reply:
        found, cursor = await self._browse.get_page(session, message.ids)
        return m.Page(request=message.request, records=self._records(found), cursor=cursor), ()

    async def _wait(self, session: Session, message: m.Wait, *_: Any) -> Reply:
        timeout_ms = min(message.timeout_ms, MAX_WAIT_MS)
        if message.place is not None:
            pending, failed = await self._browse.wait_all(session, message.place, timeout_ms)
            reached = 0
        else:
            reached, pending, failed = await self._browse.wait(session, message.ids, message.until, timeout_ms)
        return m.Waited(
            request=message.request, reached=reached, pending=pending, failed=self._samples(failed[:16])
        ), ()

    async def _delete(self, session: Session, message: m.Delete, *_: Any) -> Reply:
        ids, at_ms = await self._browse.delete(session, message.ids, unless_stored=message.unless_stored)
        return m.Deleted(request=message.request, ids=tuple(ids), deleted_ms=at_ms), ()

    async def _update(self, session: Session, message: m.Update, *_: Any) -> Reply:
        return self._accepted(message, await self._amend.run(session, message))

    async def _prune_versions(self, session: Session, message: m.Prune, *_: Any) -> Reply:
        pruned = await self._prune.run(session, message)
        records = [replace(record, description=None, bindrs=(), metadata=None) for record in pruned.records]
        stored = [Job.stored(record) for record in records]
        return m.Pruned(request=message.request, records=self._records(stored), cursor=pruned.cursor), ()

    async def _fetch_file(self, session: Session, message: m.Fetch, descriptors: Sequence[int], send: Send) -> Reply:
        async def report(done: int, total: int, spans: Spans) -> None:
            have = tuple(offset for span in spans[:MAX_SPANS] for offset in span)
            await send(m.Progress(request=message.request, done_bytes=done, total_bytes=total, have=have))

        size, sha256 = await self._fetch.run(session, message.id, descriptors[0], message.have, report)
        return m.Fetched(request=message.request, size_bytes=size, sha256=sha256), ()

    async def _status(self, session: Session, message: m.Status, *_: Any) -> Reply:
        """The counts are of everybody's files; those that are named are such as the caller may read."""
        me, trouble = self._identity, self._health.trouble()
        async with self._reports.of(session.uid):
            summary = await self._journal.summary(self._policy.scope(session.uid))
            spool_bytes = await self._threads.run(self._pins.spool_bytes)
        moving = await self._browse.moving(session, MOVING)
        return m.StatusReport(
            request=message.request,
            version=me.version,
            pid=me.pid,
            embedded=me.embedded,
            store=me.store,
            state_dir=me.state_dir,
            started_ms=me.started_ms,
            connections=len(self._sessions),
            spool_bytes=spool_bytes,
            counts=tuple(
                m.Count(state=one.state, files=one.files, size_bytes=one.size_bytes) for one in summary.counts
            ),
            oldest_ms=summary.oldest_ms,
            blocked=self._samples(summary.blocked),
            failed=self._samples(summary.failed),
            error_code=None if trouble is None else trouble.code,
            error_message=None if trouble is None else trouble.message,
            error_hint=None if trouble is None else trouble.hint,
            moving=self._samples(moving),
            bytes_per_second=int(self._sending().bytes_per_second),
            superseded_files=summary.superseded,
            limits=self._limits,
            sets=await self._sets.incomplete(session),
        ), ()

    async def _drain_queue(self, session: Session, message: m.Drain, _: Sequence[int], send: Send) -> Reply:
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not drain this daemon"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        if message.deadline_ms > MAX_DRAIN_MS:
            what = f"a deadline of {message.deadline_ms} ms"
            raise error(Code.INVALID_ARGUMENT, what, f"at most {MAX_DRAIN_MS} ms, which is a day")

        async def report(seen: Seen) -> None:
            left = seen.left
            await send(
                m.Progress(
                    request=message.request,
                    done_bytes=seen.most_bytes - left.left_bytes,
                    total_bytes=seen.most_bytes,
                    done_files=seen.most_files - left.files,
                    total_files=seen.most_files,
                    held_files=left.held,
                )
            )

        outcome = await self._drain.run(message.deadline_ms / 1000, report, last=message.stop)
        if message.stop:
            self._stop()
        first = outcome.files[:NAMED]
        records = self._samples([file.job for file in first])
        return m.Drained(
            request=message.request,
            left_files=outcome.left.files,
            left_bytes=outcome.left.left_bytes,
            failed_files=outcome.failed,
            manifest=f"{self._identity.state_dir}/{outcome.manifest}" if outcome.manifest else "",
            files=tuple(
                replace(record, sent_bytes=file.sent_bytes) for record, file in zip(records, first, strict=True)
            ),
        ), ()

    async def _examine(self, session: Session, message: m.Examine, *_: Any) -> Reply:
        """For admins: the answers name buckets, folders and what the store says."""
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not examine this daemon"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        async with self._reports.of(session.uid):
            checks = await self._doctor.run()
        return m.Examined(
            request=message.request,
            checks=tuple(
                m.Check(name=check.name, verdict=check.verdict, found=check.found, hint=check.hint) for check in checks
            ),
        ), ()

    async def _retry(self, session: Session, message: m.Retry, *_: Any) -> Reply:
        if message.everything:
            files, refused = await self._again.run_all(session)
        else:
            files, refused = await self._again.run(session, message.ids)
        return m.Retried(request=message.request, tried_files=files, refused=_refusals(refused)), ()

    async def _verify(self, session: Session, message: m.Verify, _: Sequence[int], send: Send) -> Reply:
        async def report(seen: Audited) -> None:
            await send(
                m.Progress(
                    request=message.request,
                    done_bytes=seen.size_bytes,
                    total_bytes=seen.total_bytes,
                    done_files=seen.files,
                    total_files=seen.total_files,
                )
            )

        seen = await self._audit.run(session, message.ids, report)
        return m.Verified(
            request=message.request, read_files=seen.files, read_bytes=seen.size_bytes, damaged=_refusals(seen.damaged)
        ), ()

    def _samples(self, jobs: Sequence[Job]) -> tuple[m.Record, ...]:
        """Records that say which files they are and what troubles them, without what may be long."""
        return tuple(
            replace(record, description=None, tags=(), bindrs=(), metadata=None) for record in self._records(jobs)
        )

    def _records(self, jobs: Sequence[Job]) -> tuple[m.Record, ...]:
        return tuple(self._record(job) for job in jobs)

    def _record(self, job: Job) -> m.Record:
        """A file as the client sees it. What is stored needs no pin and is on disk."""
        record, trouble = job.record, trouble_of(job)
        cancelled = job.cancel_requested and job.state is not State.DONE
        return m.Record(
            id=record.id,
            namespace=record.namespace,
            project=record.project,
            experiment=record.experiment,
            path="/" + record.prefix,
            filename=record.filename,
            size_bytes=record.size_bytes,
            content_type=record.content_type,
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
            state=State.CANCELLED if cancelled else job.state,
            ack="disk" if job.on_disk else "memory",
            pin="lease" if self._pins.leased(job.id) else job.pin.kind,
            description=record.description,
            tags=record.tags,
            bindrs=record.bindrs,
            metadata=record.metadata,
            sha256=record.sha256,
            uploaded_ms=record.uploaded_ms,
            deleted_ms=record.deleted_ms,
            sent_bytes=record.size_bytes if job.state in SENT else self._bell.sent.get(job.id, 0),
            attempt=job.attempt,
            error_code=trouble.code if trouble else None,
            error_message=trouble.message if trouble else None,
            error_hint=(trouble.hint or TABLE[trouble.code].hint) if trouble else None,
            share=shown_share(record.share),
            pending=record.pending,
        )


def _refusals(refused: Sequence[tuple[Job, Trouble]]) -> tuple[m.Refusal, ...]:
    return tuple(
        m.Refusal(
            id=job.id,
            path=job.record.path,
            code=trouble.code,
            message=trouble.message[:MAX_SAID],
            hint=trouble.hint[:MAX_SAID],
        )
        for job, trouble in refused
    )
