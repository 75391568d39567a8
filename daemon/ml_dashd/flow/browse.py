"""What is there: journal and catalog seen as one, so that a node reads its own writes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from heapq import merge

from ml_dash.errors import Code, MLDashError, error
from ml_dash.messages import Place
from ml_dashd.core import names, narrow
from ml_dashd.core.access import Policy, Right
from ml_dashd.core.model import FileRecord, Job, Scope, Selection, Trouble
from ml_dashd.core.plan import MIB
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.sources import open_source, sha256_of
from ml_dashd.flow.turns import Turns
from ml_dashd.flow.worker import Worker
from ml_dashd.ports import Catalog, Clock, Journal, JournalError, Pins, Session, Threads

LOOK_AGAIN_S = 0.05
"""A waiting request looks at the journal at most this often, however often the bell rings."""
PAGE_BYTES = 2 * MIB
"""A page ends early when its texts grow past this."""
LOOKS = (2, 64)
"""Looks into journal and catalog at once, of one user and of all: a hand-off waits behind no user's thousand waits."""
HASHES = (2, 8)
"""Passes for a checksum at once, of one user and of all; each holds a source open and 4 MiB."""

Seen = Job
"""A file as a list shows it: a stored one is a Job in state DONE."""


class Browse:
    """Answers questions about files, and deletes them."""

    def __init__(
        self,
        *,
        journal: Journal,
        catalog: Catalog,
        pins: Pins,
        threads: Threads,
        worker: Worker,
        bell: Bell,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self._policy = policy
        self._looks = Turns(*LOOKS)
        self._hashes = Turns(*HASHES)
        self._journal = journal
        self._catalog = catalog
        self._pins = pins
        self._threads = threads
        self._worker = worker
        self._bell = bell
        self._clock = clock
        self._hashing: dict[int, asyncio.Task[None]] = {}
        self._changed: dict[int, Trouble] = {}
        """Sources that a hash pass found changed before their upload, which waits for the store, could."""

    # ---- lists

    async def page(
        self,
        session: Session,
        place: Place,
        pattern: str | None,
        cursor: str | None,
        size: int,
        *,
        latest: bool,
        tags: Sequence[str] = (),
        pending: bool = False,
    ) -> tuple[list[Seen], str | None]:
        """Files at or below a place that fit the pattern and have the tags, and the cursor of the next page.

        `latest` is of those: the newest that has the tags, not the newest if it has them.
        """
        scope = self._policy.scope(session.uid)
        selection = _selection(place, pattern, cursor, max(1, min(size, 1000)), scope, latest=latest, tags=tags)
        selection = replace(selection, pending=pending)
        prefix = "/".join(names.clean(place.prefix, "the prefix"))
        names.matches("", "", pattern)  # a bad pattern is an error even where nothing is listed
        found: list[Seen] = []
        weight, last_path = 0, selection.cursor[0] if latest and selection.cursor else None
        while True:
            async with self._looks.of(session.uid):
                batch = await self._batch(selection)
            for seen in batch:
                selection = replace(selection, cursor=(seen.record.path, seen.id))
                if seen.cancel_requested:
                    continue
                if latest and seen.record.path == last_path:
                    continue
                last_path = seen.record.path
                if not names.matches(last_path, prefix, pattern):
                    continue
                found.append(seen)
                weight += answer_bytes(seen.record)
                if len(found) >= size or weight >= PAGE_BYTES:
                    return found, _cursor(selection)
            if len(batch) < selection.limit:
                return found, None

    async def everywhere(self, session: Session, cursor: str | None, size: int) -> tuple[list[Seen], str | None]:
        """Stored files of all experiments, in the order of their ids, and the cursor of the next page."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
            raise error(Code.INVALID_ARGUMENT, "the cursor is not one that a page gave")
        limit = max(1, min(size, 1000))
        async with self._looks.of(session.uid):
            records = await self._catalog.newer(int(cursor or 0), self._policy.scope(session.uid), limit)
            withdrawn = await self._journal.withdrawn([record.id for record in records])
        found, weight = list[Seen](), 0
        for record in [record for record in records if record.id not in withdrawn]:
            found.append(Job.stored(record))
            weight += answer_bytes(record)
            if weight >= PAGE_BYTES:
                break
        if weight < PAGE_BYTES:
            return found, None if len(records) < limit else str(records[-1].id)
        return found, str(found[-1].id)

    async def moving(self, session: Session, most: int) -> list[Seen]:
        """The largest files that are under way now, as far as the caller may read them."""
        return await self.get(session, self._worker.under_way(most))

    def selection(self, place: Place, pattern: str | None, cursor: str | None, limit: int, scope: Scope) -> Selection:
        """What a list at this place asks the catalog for. Raises what is wrong with the words."""
        names.matches("", "", pattern)
        return _selection(place, pattern, cursor, limit, scope)

    async def get(self, session: Session, ids: Sequence[int]) -> list[Seen]:
        """The files of these ids; those that are not known, or that the caller may not read, are left out."""
        async with self._looks.of(session.uid):
            jobs = {job.id: job for job in await self._journal.get(ids)}
            stored = {record.id: Job.stored(record) for record in await self._listed(ids, jobs)}
        stored |= {
            one: _withdrawn(stored[one], job) for one, job in jobs.items() if one in stored and job.cancel_requested
        }
        seen = (stored.get(one) if one in stored and _is_over(jobs.get(one)) else jobs.get(one) for one in ids)
        return [each for each in seen if each is not None and self._may(Right.READ, session, each)]

    async def _listed(self, ids: Sequence[int], jobs: Mapping[int, Job]) -> list[FileRecord]:
        """What the catalog has of these.

        Of what is on its way the journal knows all; and while the catalog is away, of what was stored here lately.
        """
        over = [one for one in ids if _is_over(jobs.get(one))]
        try:
            return await self._catalog.get(over) if over else []
        except JournalError:
            if any(one not in jobs for one in over):
                raise
            return []

    async def find(self, session: Session, file_id: int, right: Right) -> Seen:
        """A file that is there, and to which the caller may do that. Raises UNKNOWN_FILE or ACCESS_DENIED."""
        for seen in await self.get(session, [file_id]):
            if seen.record.deleted_ms is None and not seen.cancel_requested and seen.state is not State.CANCELLED:
                self._check(right, session, seen)
                return seen
        raise unknown(file_id)

    def _check(self, right: Right, session: Session, seen: Seen) -> None:
        if not self._may(right, session, seen):
            what = f"{seen.record.path} (file {seen.id}) belongs to uid {seen.record.owner_uid}, not {session.uid}"
            raise error(Code.ACCESS_DENIED, what, "ask its owner, or one of the admins named in [access]")

    def _may(self, right: Right, session: Session, seen: Seen) -> bool:
        return self._policy.may(right, session.uid, seen.record)

    async def get_page(self, session: Session, ids: Sequence[int]) -> tuple[list[Seen], str | None]:
        """As many of them as fit into one answer, and the id from which to ask again."""
        found = await self.get(session, ids)
        weight = 0
        for count, seen in enumerate(found[:-1], start=1):
            weight += answer_bytes(seen.record)
            if weight >= PAGE_BYTES:
                return found[:count], str(found[count].id)
        return found, None

    async def delete(
        self, session: Session, ids: Sequence[int], *, unless_stored: bool = False
    ) -> tuple[list[int], int]:
        """Deletes files: one that is on its way is cancelled, a stored one is marked. Idempotent.

        Where one of them may not be deleted, or is stored and must not be, none is.
        """
        found = await self.get(session, ids)
        mine = [seen.id for seen in found]
        if len(mine) < len(set(ids)):
            raise unknown(next(one for one in ids if one not in mine))
        for seen in found:
            self._check(Right.CHANGE, session, seen)
            if unless_stored and seen.state is State.DONE:
                raise error(Code.ALREADY_STORED, f"{seen.record.path} (file {seen.id}) is stored")
        now = self._clock.now_ms()
        cancelled = await self._journal.cancel(mine)
        await self._worker.cancel(cancelled)
        if unless_stored:  # what was stored in this moment stays
            mine = [job.id for job in cancelled] + [seen.id for seen in found if seen.state is State.CANCELLED]
        else:
            # Who ends a file that was on its way takes it back by itself (flow/finish.py).
            on_their_way = {job.id for job in cancelled}
            if stored := [one for one in mine if one not in on_their_way]:
                await self._catalog.delete(stored, now)
        self._bell.ring()
        return mine, now

    async def _batch(self, selection: Selection) -> list[Seen]:
        """The next files of journal and catalog, merged.

        Journal first: what moves over meanwhile is then seen twice, not never. What was deleted while it was listed is
        in the catalog for a moment.
        """
        jobs = await self._journal.select(selection)
        records = await self._catalog.select(selection)
        withdrawn = await self._journal.withdrawn([record.id for record in records])
        known = {record.id for record in records}
        later = {job.id: job for job in jobs}
        stored = (
            Job.stored(_last_said(record, later.get(record.id)), gone=record.id in withdrawn) for record in records
        )
        moving = (job for job in jobs if job.id not in known)
        return list(merge(moving, stored, key=lambda seen: (seen.record.path, -seen.id)))[: selection.limit]

    # ---- waiting

    async def wait(
        self, session: Session, ids: Sequence[int], until: str, timeout_ms: int
    ) -> tuple[int, int, list[Seen]]:
        """How many of these files have reached `until`, how many not yet, and those that never will."""
        if until not in ("hashed", "on_disk", "stored"):
            raise error(Code.INVALID_ARGUMENT, f"until={until!r}", 'use "hashed", "on_disk" or "stored"')
        deadline = self._clock.monotonic() + timeout_ms / 1000
        while True:
            rung = self._bell.listen()
            seen = await self.get(session, ids)
            if len(seen) < len(set(ids)):
                raise unknown(next(one for one in ids if one not in {each.id for each in seen}))
            reached = [each for each in seen if _reached(each, until)]
            failed = [self._ended(each) for each in seen if each not in reached and self._never(each)]
            pending = [each for each in seen if each not in reached and not self._never(each)]
            if not pending or self._clock.monotonic() >= deadline:
                return len(reached), len(pending), failed
            if until == "hashed":
                self._hash(session, pending)
            await self._next_look(rung, deadline)

    async def wait_all(self, session: Session, place: Place, timeout_ms: int) -> tuple[int, list[Seen]]:
        """How many files of an experiment that the caller may read are on their way, and those that failed."""
        namespace, project, experiment = names.clean_experiment(place.namespace, place.project, place.experiment)
        selection = Selection(namespace, project, experiment, scope=self._policy.scope(session.uid))
        deadline = self._clock.monotonic() + timeout_ms / 1000
        while True:
            rung = self._bell.listen()
            async with self._looks.of(session.uid):
                pending, failed = await self._journal.unfinished(selection)
            if not pending or self._clock.monotonic() >= deadline:
                return pending, failed
            await self._next_look(rung, deadline)

    async def _next_look(self, rung: asyncio.Event, deadline: float) -> None:
        await self._bell.wait(rung, max(0.0, deadline - self._clock.monotonic()))
        await self._clock.sleep(LOOK_AGAIN_S)

    # ---- the second read that is permitted: a checksum that somebody waits for

    def _hash(self, session: Session, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.id not in self._hashing:
                task = asyncio.create_task(self._hash_one(session, job), name=f"hash {job.id}")
                self._hashing[job.id] = task
                task.add_done_callback(partial(self._hashed, job.id))

    def _hashed(self, file_id: int, _: asyncio.Task[None]) -> None:
        del self._hashing[file_id]

    async def _hash_one(self, session: Session, job: Job) -> None:
        """Reads the pinned source and journals its SHA-256; what is sent later is compared with it."""
        try:
            async with self._hashes.of(session.uid):
                source = await open_source(job, self._journal, self._pins, self._threads)
                try:
                    digest = await sha256_of(source, self._threads)
                finally:
                    source.close()
            await self._journal.set_sha256(job.id, digest)
        except Exception as failure:  # noqa: BLE001 the upload meets the same and reports it
            if isinstance(failure, MLDashError) and failure.code is Code.SOURCE_CHANGED:
                self._changed[job.id] = Trouble(failure.code, failure.message, failure.hint or "")
        self._bell.ring()

    def _never(self, seen: Seen) -> bool:
        """Whether it has ended without being stored, or will: the store may be too far away to be told."""
        if seen.state not in UNFINISHED:
            self._changed.pop(seen.id, None)
        return seen.cancel_requested or seen.state not in UNFINISHED or seen.id in self._changed

    def _ended(self, seen: Seen) -> Seen:
        trouble = self._changed.get(seen.id)
        return seen if trouble is None else replace(seen, state=State.FAILED, trouble=trouble)


def unknown(file_id: int) -> MLDashError:
    """The error of an id that no file has, as far as the caller may know."""
    return error(Code.UNKNOWN_FILE, f"no file has the id {file_id}")


def _selection(
    place: Place,
    pattern: str | None,
    cursor: str | None,
    limit: int,
    scope: Scope,
    *,
    latest: bool = False,
    tags: Sequence[str] = (),
) -> Selection:
    """What to ask journal and catalog for; the literal start of the pattern is a part of the prefix."""
    namespace, project, experiment = names.clean_experiment(place.namespace, place.project, place.experiment)
    prefix = "/".join(names.clean(place.prefix, "the prefix"))
    literal, rest = ("", None) if pattern is None else narrow.split(pattern)
    return Selection(
        namespace,
        project,
        experiment,
        prefix="/".join(part for part in (prefix, literal) if part),
        pattern=rest,
        latest=latest,
        cursor=_read_cursor(cursor),
        limit=limit,
        scope=scope,
        tags=tuple(dict.fromkeys(tags)),
    )


def _cursor(selection: Selection) -> str | None:
    """No path has a control character, so a newline parts it from the id."""
    return None if selection.cursor is None else f"{selection.cursor[0]}\n{selection.cursor[1]}"


def _read_cursor(cursor: str | None) -> tuple[str, int] | None:
    if cursor is None:
        return None
    path, _, number = cursor.partition("\n")
    if not number.isdigit():
        raise error(Code.INVALID_ARGUMENT, "the cursor is not one that a page gave")
    return path, int(number)


def _last_said(record: FileRecord, job: Job | None) -> FileRecord:
    """What is said of a listed file, as it was changed in the journal since: it is listed again with that."""
    if job is None or job.record.revision <= record.revision:
        return record
    said = job.record
    return replace(
        record,
        description=said.description,
        tags=said.tags,
        bindrs=said.bindrs,
        metadata=said.metadata,
        updated_ms=said.updated_ms,
        revision=said.revision,
    )


def _withdrawn(seen: Seen, job: Job) -> Seen:
    """A stored file that was deleted while it was listed, as it is in a moment."""
    record = seen.record
    return replace(seen, record=replace(record, deleted_ms=record.deleted_ms or job.record.updated_ms))


def _is_over(job: Job | None) -> bool:
    return job is None or job.state in (State.DONE, State.CANCELLED)


def _reached(seen: Seen, until: str) -> bool:
    if until == "hashed":
        return seen.record.sha256 is not None
    return seen.state is State.DONE or (until == "on_disk" and seen.on_disk)


def answer_bytes(record: FileRecord) -> int:
    """About how many bytes it takes in an answer."""
    texts = (record.path, record.metadata or "", record.description or "", *record.tags, *record.bindrs)
    return 256 + sum(len(text.encode()) for text in texts)
