"""What is asked of sets: a rank's share begins and ends; which sets there are, and their files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core import cursors, names
from ml_dashd.core import sets as core
from ml_dashd.core.access import Policy, Right
from ml_dashd.core.model import Job
from ml_dashd.core.sets import Delivery, SetKey, SetRecord, SetSelection, SetState
from ml_dashd.flow.bell import Bell, longest_wait_ms
from ml_dashd.flow.browse import PAGE_BYTES, answer_bytes
from ml_dashd.flow.deliver import Deliver
from ml_dashd.flow.shares import key_of, share_of
from ml_dashd.flow.shown import Shown
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Catalog, Clock, Faults, Journal, JournalError, Session

LOOK_AGAIN_S = 0.5
"""Who waits for a set looks at the catalog this often: other nodes ring no bell here."""
LOOKS = (2, 64)
"""Looks at once, of one user and of all."""
INCOMPLETE = (SetState.OPEN, SetState.OVERTAKEN)
GONE = {
    SetState.OVERTAKEN: "was overtaken by a newer attempt that was saved at the same time",
    SetState.DROPPED: "was given up, or deleted",
}
SAMPLE = 16
"""Incomplete sets that a report names."""
Reply = tuple[m.Message, Sequence[int]]


class FileSets:
    """Answers what is asked of sets. A set is its owner's, as files are."""

    def __init__(
        self,
        *,
        shown: Shown,
        journal: Journal,
        catalog: Catalog,
        deliver: Deliver,
        bell: Bell,
        clock: Clock,
        faults: Faults,
        policy: Policy,
    ) -> None:
        self._journal = journal
        self._catalog = catalog
        self._deliver = deliver
        self._bell = bell
        self._clock = clock
        self._faults = faults
        self._policy = policy
        self._shown = shown
        self._looks = Turns(*LOOKS)
        self.answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {
            m.OpenSet: self._open,
            m.EndShare: self._end,
            m.ListSets: self._list,
            m.SetFiles: self._files,
            m.DropSet: self._drop,
        }

    # ---- a rank's share

    async def _open(self, session: Session, message: m.OpenSet, *_: Any) -> Reply:
        """The catalog knows from here on that the set is under way; one that is away is told when the share comes."""
        delivery = self._delivery(session, message)
        self._deliver.check(delivery)
        try:
            opened = await self._catalog.sets.open(delivery.key, delivery.share, self._clock.now_ms())
        except JournalError as away:
            if away.code is not Code.CATALOG_UNREACHABLE:
                raise
        else:
            if opened.world_size != delivery.share.world_size:
                raise core.mismatch(delivery.key, delivery.share, opened.world_size)
        return m.Done(request=message.request), ()

    async def _end(self, session: Session, message: m.EndShare, *_: Any) -> Reply:
        begun = self._delivery(session, message)
        self._deliver.check(begun)
        ids = await self._members(begun)
        if len(ids) < message.files:
            what = (
                f"{message.files} files of rank {begun.share.rank} were handed over, and {len(ids)} of them are there"
            )
            raise error(Code.SET_INCOMPLETE, what)
        if len(ids) > core.MAX_FILES:
            what = f"rank {begun.share.rank} of {core.called(begun.key)} has {len(ids)} files"
            raise error(Code.INVALID_ARGUMENT, what, f"at most {core.MAX_FILES}: put many into one")
        await self._deliver.add(Delivery(begun.key, begun.share, ids))
        return m.Done(request=message.request), ()

    async def _members(self, begun: Delivery) -> tuple[int, ...]:
        """A share's files: the journal has those of a day, the catalog all that are listed."""
        jobs = await self._journal.of_share(begun.share.key)
        gone = {job.id for job in jobs if job.cancel_requested or job.record.deleted_ms is not None}
        found = {job.id for job in jobs if _owner_and_place(job) == _owner_and_place(begun)}
        try:
            found.update(await self._catalog.sets.members(begun.key, begun.share.key))
        except JournalError as away:
            if away.code is not Code.CATALOG_UNREACHABLE:
                raise
        return tuple(sorted(found - gone))

    def _delivery(self, session: Session, message: m.OpenSet | m.EndShare) -> Delivery:
        share = share_of(message.place, message.share, session.uid)
        place = message.place
        experiment = names.clean_experiment(place.namespace, place.project, place.experiment)
        self._policy.check_write(session.uid, experiment[0])
        return Delivery(SetKey(session.uid, *experiment, share.name, share.attempt), share, ())

    # ---- questions

    async def incomplete(self, session: Session) -> tuple[m.SetRecord, ...]:
        """The newest sets that are not complete, as far as the caller may read them; none where nobody can be asked."""
        if self._catalog.trouble() is not None:
            return ()
        selection = SetSelection((SetState.OPEN,), self._policy.scope(session.uid), limit=SAMPLE)
        try:
            return tuple(map(_set_record, await self._catalog.sets.select(selection)))
        except JournalError:
            return ()

    async def _list(self, session: Session, message: m.ListSets, *_: Any) -> Reply:
        if message.share is not None:
            return await self._wait(session, message, key_of(session.uid, message.share)), ()
        place = message.place
        (before,) = (None,) if message.cursor is None else cursors.read(message.cursor, cursors.number)
        limit = max(1, min(message.page_size, m.SETS))
        selection = SetSelection(
            INCOMPLETE if message.incomplete else (SetState.COMPLETE,),
            self._policy.scope(session.uid),
            experiment=names.clean_experiment(place.namespace, place.project, place.experiment),
            prefix="/".join(names.clean(place.prefix, "the prefix")),
            before=before,
            limit=limit,
        )
        async with self._looks.of(session.uid):
            found = await self._catalog.sets.select(selection)
        cursor = cursors.write(found[-1].number) if len(found) == limit else None
        return m.Sets(request=message.request, sets=tuple(map(_set_record, found)), cursor=cursor), ()

    async def _wait(self, session: Session, message: m.ListSets, share_key: str) -> m.Sets:
        """Raises SET_INCOMPLETE, or SET_MISMATCH, where the share is in no set and will be in none."""
        deadline = self._clock.monotonic() + longest_wait_ms(message.timeout_ms) / 1000
        while True:
            rung = self._bell.listen()
            waits = self._deliver.waits(share_key)  # asked first: what is delivered meanwhile is found below
            async with self._looks.of(session.uid):
                found = await self._catalog.sets.holding(share_key)
            if found is not None and not self._policy.may(Right.READ, session.uid, found.key):
                found = None
            if found is None and not waits:
                raise self._deliver.refusal(share_key) or error(
                    Code.SET_INCOMPLETE, "that share is in no set: it was saved again, or given up"
                )
            if found is not None and found.state in GONE:
                raise error(Code.SET_INCOMPLETE, f"{core.called(found.key)} {GONE[found.state]}")
            left = deadline - self._clock.monotonic()
            if left <= 0 or (found is not None and found.state is not SetState.OPEN):
                return m.Sets(request=message.request, sets=() if found is None else (_set_record(found),))
            await self._bell.wait(rung, min(left, LOOK_AGAIN_S))

    async def _files(self, session: Session, message: m.SetFiles, *_: Any) -> Reply:
        record = await self._find(session, message.id)
        (after,) = (0,) if message.after is None else cursors.read(message.after, cursors.number)
        limit = max(1, min(message.page_size, 1000))
        async with self._looks.of(session.uid):
            found = await self._catalog.sets.files(record.id, after, limit)
        weight, last, jobs = 0, None, list[Job]()
        for each in found:
            last, weight = each.id, weight + answer_bytes(each)
            if each.deleted_ms is None:
                jobs.append(Job.stored(each))
            if weight >= PAGE_BYTES:
                break
        at_end = len(found) < limit and (not found or last == found[-1].id)
        cursor = None if at_end or last is None else cursors.write(last)
        return m.Page(request=message.request, records=self._shown.records(jobs), cursor=cursor), ()

    async def _drop(self, session: Session, message: m.DropSet, *_: Any) -> Reply:
        record = await self._find(session, message.id)
        if not self._policy.may(Right.CHANGE, session.uid, record.key):
            what = f"{core.called(record.key)} belongs to uid {record.key.owner_uid}, not {session.uid}"
            raise error(Code.ACCESS_DENIED, what, "ask its owner, or one of the admins named in [access]")
        self._faults.at("sets.before_drop")
        await self._catalog.sets.drop(record.id, self._clock.now_ms())
        self._faults.at("sets.after_drop")
        self._bell.ring()
        return m.Done(request=message.request), ()

    async def _find(self, session: Session, set_id: str) -> SetRecord:
        async with self._looks.of(session.uid):
            record = await self._catalog.sets.get(set_id)
        if record is None or not self._policy.may(Right.READ, session.uid, record.key):
            raise error(Code.NO_MATCH, f"no set has the id {set_id}", "list them with checkpoints()")
        return record


def _owner_and_place(of: Job | Delivery) -> tuple[object, ...]:
    """Whose it is, and of which experiment: nobody's file gets into another's set, or into that of another place."""
    whose = of.key if isinstance(of, Delivery) else of.record
    return whose.owner_uid, whose.namespace, whose.project, whose.experiment


def _set_record(record: SetRecord) -> m.SetRecord:
    key = record.key
    return m.SetRecord(
        id=record.id,
        namespace=key.namespace,
        project=key.project,
        experiment=key.experiment,
        name=key.name,
        attempt=key.attempt,
        number=record.number,
        world_size=record.world_size,
        state=record.state,
        opened_ms=record.opened_ms,
        updated_ms=record.updated_ms,
        files=record.files,
        size_bytes=record.size_bytes,
        ranks=record.delivered,
        completed_ms=record.completed_ms,
        missing=record.missing,
    )
