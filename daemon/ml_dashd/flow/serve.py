"""What each message means: from the wire to the flow and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dash.wire import VERSION
from ml_dashd.core.model import Job
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.amend import Amend
from ml_dashd.flow.assemble import Spans
from ml_dashd.flow.bell import longest_wait_ms
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.duplicate import Duplicate
from ml_dashd.flow.fetch import Fetch
from ml_dashd.flow.health import Health
from ml_dashd.flow.inbox import Adoption, unknown
from ml_dashd.flow.operations import Identity
from ml_dashd.flow.prune import Prune
from ml_dashd.flow.shown import Shown
from ml_dashd.flow.warm import Warm
from ml_dashd.ports import Journal, JournalError, Line, Ready, Session, Slots, Threads

_NOTHING_TAKEN = {Code.DISK_FAILED: "see the daemon's log; nothing was taken, so try again"}
MAX_SPANS = 32
"""Ranges of a download that Progress names. There are more only where a daemon with smaller ones has begun it."""
Reply = tuple[m.Message, Sequence[int]]


class Serve:
    """Answers requests; each method is one message's. `others` answer the rest; `sessions` notes who is there."""

    def __init__(
        self,
        *,
        identity: Identity,
        sessions: set[int],
        shown: Shown,
        accept: Accept,
        browse: Browse,
        amend: Amend,
        duplicate: Duplicate,
        prune: Prune,
        fetch: Fetch,
        inbox: Adoption | None,
        journal: Journal,
        slots: Slots,
        warm: Warm,
        threads: Threads,
        health: Health,
        others: Mapping[type[m.Message], Callable[..., Awaitable[Reply]]],
    ) -> None:
        self._identity = identity
        self._sessions = sessions
        self._shown = shown
        self._accept = accept
        self._browse = browse
        self._amend = amend
        self._duplicate = duplicate
        self._prune = prune
        self._fetch = fetch
        self._inbox = inbox
        self._journal = journal
        self._slots = slots
        self._warm = warm
        self._threads = threads
        self._health = health
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
            m.Update: self._update,
            m.Duplicate: self._duplicate_file,
            m.Prune: self._prune_versions,
            m.FindHanded: self._find_handed,
            **others,
        }

    async def handle(self, session: Session, message: m.Message, descriptors: Sequence[int], line: Line) -> Reply:
        self._sessions.add(session.number)
        try:
            return await self._answers[type(message)](session, message, descriptors, line)
        except JournalError as failure:
            raise error(failure.code, str(failure), _NOTHING_TAKEN.get(failure.code)) from None

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

    async def _upload(self, session: Session, message: m.Upload, descriptors: Sequence[int], line: Line) -> Reply:
        answer = self._early(message, line)
        return self._accepted(message, await self._accept.upload(session, message, descriptors[0], answer=answer))

    async def _put(self, session: Session, message: m.Put, _: Sequence[int], line: Line) -> Reply:
        return self._accepted(message, await self._accept.put(session, message, self._early(message, line)))

    async def _put_many(self, session: Session, message: m.PutMany, descriptors: Sequence[int], _: Line) -> Reply:
        jobs = await self._accept.put_many(session, message, descriptors)
        return m.AcceptedMany(request=message.request, records=self._shown.records(jobs)), ()

    async def _duplicate_file(self, session: Session, message: m.Duplicate, *_: Any) -> Reply:
        return self._accepted(message, await self._duplicate.run(session, message))

    async def _commit_slot(self, session: Session, message: m.CommitSlot, _: Sequence[int], line: Line) -> Reply:
        return self._accepted(message, await self._accept.commit(session, message, self._early(message, line)))

    async def _find_handed(self, session: Session, message: m.FindHanded, *_: Any) -> Reply:
        """The caller's own alone: a key is looked up with the uid that the kernel states."""
        if self._inbox is not None:
            return self._accepted(message, await self._inbox.find(session.uid, message.key))
        job = await self._journal.handed(session.uid, message.key)
        if job is None:
            raise unknown()
        return self._accepted(message, job)

    def _early(self, message: m.Message, line: Line) -> Ready:
        """The answer to a hand-off, from the journal's thread: two turns of the loop, which may be busy, sooner."""
        return lambda jobs: line.early(self._accepted(message, jobs[0])[0])

    def _accepted(self, message: m.Message, job: Job) -> Reply:
        return m.Accepted(request=message.request, record=self._shown.record(job)), ()

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
        return m.Page(request=message.request, records=self._shown.records(found), cursor=cursor), ()

    async def _get(self, session: Session, message: m.Get, *_: Any) -> Reply:
        found, cursor = await self._browse.get_page(session, message.ids)
        return m.Page(request=message.request, records=self._shown.records(found), cursor=cursor), ()

    async def _wait(self, session: Session, message: m.Wait, *_: Any) -> Reply:
        timeout_ms = longest_wait_ms(message.timeout_ms)
        if message.place is not None:
            pending, failed = await self._browse.wait_all(session, message.place, timeout_ms)
            reached = 0
        else:
            reached, pending, failed = await self._browse.wait(session, message.ids, message.until, timeout_ms)
        return m.Waited(
            request=message.request, reached=reached, pending=pending, failed=self._shown.samples(failed[:16])
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
        return m.Pruned(request=message.request, records=self._shown.records(stored), cursor=pruned.cursor), ()

    async def _fetch_file(self, session: Session, message: m.Fetch, descriptors: Sequence[int], line: Line) -> Reply:
        async def report(done: int, total: int, spans: Spans) -> None:
            have = tuple(offset for span in spans[:MAX_SPANS] for offset in span)
            await line.report(m.Progress(request=message.request, done_bytes=done, total_bytes=total, have=have))

        size, sha256 = await self._fetch.run(session, message.id, descriptors[0], message.have, report)
        return m.Fetched(request=message.request, size_bytes=size, sha256=sha256), ()
