"""Store and catalog compared, in steps: two lists in the order of their keys, read side by side, a page of each.

What a step finds is looked at again before anything is done: the lists are not of one moment, and files come and go
meanwhile. Each thing that is done may be done twice, so a step may end anywhere, and be taken again by anybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from urllib.parse import quote, unquote

from ml_dash.errors import Code
from ml_dashd.core import cursors
from ml_dashd.core.model import Evidence, FileRecord, OpenUpload, Stored, Target, Trouble
from ml_dashd.core.names import id_of
from ml_dashd.core.reconcile import (
    LIFECYCLE,
    OLDER,
    RESTORE,
    SHARES_PARTS,
    Finding,
    Kind,
    Outcome,
    Rule,
    is_damaged,
    of_object,
    of_record,
    of_upload,
    recorded,
    suspect,
    why_not,
)
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.rounds import take
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Catalog, Clock, Faults, Journal, JournalError, Meter, Store, TakenError

log = logging.getLogger("ml_dashd.flow")

PAGE = 1000
STEP = 10_000
"""Keys that a step looks at: ten pages of the store's list, a second or two."""
FINDINGS = 200
"""What a step takes on at most: each may need a call or two."""
LOGGED = 100
"""Lines of a round: an emptied bucket would write one for each of its files. The command tells of all."""
LOOK_S = 3600.0
"""Between looks at whose turn it is."""
LEASE_MS = 6 * 3600 * 1000
"""How long a node has the turn between two steps, of which one may read two hundred large objects.

Two that look at once do each other's work, and no harm.
"""
FIRST_S = 60.0
"""After the start, which has other things to do."""
OBJECTS, UPLOADS = "objects", "uploads"
Pair = tuple[Stored | None, FileRecord | None]
T = TypeVar("T")
F = TypeVar("F", Finding, Finding | None)


@dataclass
class Step:
    """What a step has seen; with a cursor there is more. `waiting` are objects and uploads that are left alone."""

    findings: list[Finding] = field(default_factory=list)
    objects: int = 0
    records: int = 0
    uploads: int = 0
    waiting: int = 0
    cursor: str | None = None


class Reconcile:
    """Runs beside the worker, once in `every_s` in all of a fleet, and when somebody asks. 0 is never by itself.

    `obstacle` says why the store can't be looked at from here: then the turn is left to others.
    """

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        journal: Journal,
        checksums: Checksums,
        verify: Verify,
        clock: Clock,
        faults: Faults,
        meter: Meter,
        obstacle: Callable[[], Trouble | None],
        rule: Rule,
        holder: str,
        every_s: float,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._journal = journal
        self._checksums = checksums
        self._verify = verify
        self._clock = clock
        self._faults = faults
        self._meter = meter
        self._obstacle = obstacle
        self._rule = rule
        self._holder = holder
        self._every_s = every_s
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Looks now and then whether it is this node's turn. Never ends, unless it is never to be."""
        pause_s = min(FIRST_S, self._every_s)
        while self._every_s:
            await self._clock.sleep(pause_s * (0.5 + self._clock.jitter()))
            try:
                await self.once()
            except (StoreError, JournalError) as failure:
                log.info("reconcile_postponed", extra={"error": failure})
            except Exception:
                log.exception("reconcile_failed")
            pause_s = min(LOOK_S, self._every_s)

    async def once(self) -> None:
        """A whole round, from where the last one stopped, if one is due and nobody is at it. Raises as `step` does."""
        if (trouble := self._obstacle()) is not None:
            log.info("reconcile_postponed", extra={"error": trouble.message})
            return
        turn = await take(
            self._catalog.inventory, self._holder, self._clock, every_ms=int(self._every_s * 1000), lease_ms=LEASE_MS
        )
        if turn is None:
            return
        cursor, counts, seen = turn.after or None, Counter[str](), Step()
        while True:
            step = await self.step(cursor, mend=True)
            for finding in step.findings[: max(0, LOGGED - counts.total())]:
                _log(finding)
            counts.update(finding.kind for finding in step.findings)
            seen.objects, seen.records = seen.objects + step.objects, seen.records + step.records
            seen.waiting += step.waiting
            if (cursor := step.cursor) is None:
                break
            if not await turn.go_on(cursor):
                return
        await turn.end()
        event = {
            "objects": seen.objects,
            "records": seen.records,
            "waiting": seen.waiting,
            "findings": counts.total(),
            "kinds": ", ".join(f"{count} {kind}" for kind, count in counts.items()),
        }
        log.info("reconciled", extra=event)

    async def step(self, cursor: str | None, *, mend: bool, arrived: Callable[[int], None] | None = None) -> Step:
        """Looks at what follows the cursor, and mends it. `arrived` is told of bytes that are read for that.

        Raises StoreError, or JournalError where the catalog does not answer.
        """
        stage, after = (OBJECTS, "") if cursor is None else cursors.read(cursor, _stage, unquote)
        skip = cursors.read(cursor, _stage, cursors.number)[1] if cursor is not None and stage == UPLOADS else None
        async with self._stepping:
            if skip is None:
                step = await self._look_at_objects(after, mend=mend, arrived=arrived)
            else:
                step = await self._look_at_uploads(skip, mend=mend)
        if mend:
            for finding in step.findings:
                self._meter.found(finding.kind)
        return step

    # ---- objects and records

    async def _look_at_objects(self, after: str, *, mend: bool, arrived: Callable[[int], None] | None) -> Step:
        step, odd, at = Step(), list[tuple[Kind, Pair]](), after
        async for stored, record in self._pairs(after):
            step.objects, step.records = step.objects + (stored is not None), step.records + (record is not None)
            at = _key(stored) or _key(record)
            if (kind := suspect(stored, record)) is not None:
                odd.append((kind, (stored, record)))
            if len(odd) == FINDINGS or step.objects + step.records >= 2 * STEP:
                step.cursor = cursors.write(OBJECTS, quote(at))
                break
        else:
            step.cursor = cursors.write(UPLOADS, 0)
        alone = [stored for _, (stored, record) in odd if stored is not None and record is None]
        await self._look_at_alone(alone, step, mend=mend, arrived=arrived)
        doubted = [(kind, stored, record) for kind, (stored, record) in odd if record is not None]
        await self._look_at_doubted(doubted, step, mend=mend)
        return step

    async def _pairs(self, after: str) -> AsyncIterator[Pair]:
        """Objects and records by key; one that has no partner comes alone."""
        objects, records = _each(self._store.objects(after)), _each(self._records(after))
        stored, record = await anext(objects, None), await anext(records, None)
        while stored is not None or record is not None:
            mine, other = _key(stored), _key(record)
            first = min(key for key in (mine, other) if key)
            yield (stored if mine == first else None), (record if other == first else None)
            if mine == first:
                stored = await anext(objects, None)
            if other == first:
                record = await anext(records, None)

    async def _records(self, after: str) -> AsyncIterator[Sequence[FileRecord]]:
        while page := await self._catalog.inventory.records(after, PAGE):
            yield page
            after = _key(page[-1])

    async def _look_at_alone(
        self, found: Sequence[Stored], step: Step, *, mend: bool, arrived: Callable[[int], None] | None
    ) -> None:
        """Objects without a record. The journal is asked first: what leaves it is in the catalog by then."""
        known, there = await self._known([id_of(stored.key) or 0 for stored in found])
        for stored in found:
            file_id = id_of(stored.key) or 0
            finding = of_object(
                stored, there.get(file_id), known=file_id in known, rule=self._rule, now_ms=self._clock.now_ms()
            )
            if finding is not None and finding.outcome is Outcome.RECORDED:
                listing = partial(self._list, stored=stored, mend=mend, arrived=arrived)
                finding = await self._unless_denied(finding, listing)
            elif finding is not None and finding.outcome is Outcome.REMOVED and mend:
                finding = await self._unless_denied(finding, self._remove)
            if finding is None:
                step.waiting += 1
            else:
                step.findings.append(finding)

    async def _list(
        self, finding: Finding, stored: Stored, *, mend: bool, arrived: Callable[[int], None] | None
    ) -> Finding | None:
        """Records a file of which its object says enough; None where it is gone or listed by now."""
        stated = await self._store.head(stored.key, glance=True)
        if stated is None or stated.size_bytes != stored.size_bytes:
            return None
        if (reason := why_not(stored, stated, self._rule)) is not None:
            return replace(
                finding, outcome=Outcome.KEPT, message=f"no record names it, and {reason[0]}", hint=reason[1]
            )
        place = self._store.place(stored.key, stated.about.depth if stated.about else 0)
        if place is None:
            return replace(finding, outcome=Outcome.KEPT, message="no record names it, nor is it what its key says",
                           hint=OLDER)  # fmt: skip
        finding = replace(finding, path="/".join(part for part in place[3:] if part), message="no record names it")
        return await self._list_at(finding, stored, stated, place, arrived) if mend else finding

    async def _list_at(
        self,
        finding: Finding,
        stored: Stored,
        stated: Evidence,
        place: tuple[str, str, str, str, str],
        arrived: Callable[[int], None] | None,
    ) -> Finding | None:
        algorithm = await self._checksums.algorithm()
        read = await self._verify.read_back(stored.key, stored.size_bytes, algorithm, arrived)
        if read is None or is_damaged(stated, read[1], read[0]):
            what = "no record names it, and its bytes are not those that it was made of"
            return replace(finding, outcome=Outcome.KEPT, code=Code.CHECKSUM_MISMATCH, message=what, hint=RESTORE)
        record = recorded(stored, stated, place, read[1], read[0], self._clock.now_ms())
        if self._store.key(record) != stored.key:
            what = "no record names it, and what it says of itself is another file's"
            return replace(finding, outcome=Outcome.KEPT, message=what, hint=OLDER)
        self._faults.at("reconcile.before_record")
        try:
            gone = await self._catalog.commit([record])
        except TakenError:  # its own node has listed it in this moment, as it knows it
            return None
        self._faults.at("reconcile.after_record")
        what = "no record named it; description, tags and metadata are lost, unless its node comes back"
        return None if gone else replace(finding, message=what)

    async def _remove(self, finding: Finding) -> Finding | None:
        """Not what a duplicate in this node's journal is still to be made of."""
        if finding.key in await self._journal.referred():
            return None
        await self._store.delete(finding.key)
        return finding

    async def _look_at_doubted(
        self, found: Sequence[tuple[Kind, Stored | None, FileRecord]], step: Step, *, mend: bool
    ) -> None:
        """Records whose objects are not as they should be. The record is read once more after its object."""
        sizes = dict[int, int | None]()
        for kind, stored, record in found:
            if kind is Kind.FOUND and stored is not None:
                sizes[record.id] = stored.size_bytes
            else:
                stated = await self._store.head(_key(record), glance=True)
                sizes[record.id] = None if stated is None else stated.size_bytes
        there = {record.id: record for record in await self._catalog.get([*sizes])} if sizes else {}
        marks: dict[Outcome, list[FileRecord]] = {Outcome.MARKED: [], Outcome.UNMARKED: []}
        for now in there.values():
            if (finding := of_record(now, sizes[now.id])) is not None:
                step.findings.append(finding)
                marks.get(finding.outcome, []).append(now)
        if mend and marks[Outcome.MARKED]:
            await self._catalog.inventory.mark(marks[Outcome.MARKED], self._clock.now_ms())
        if mend and marks[Outcome.UNMARKED]:
            await self._catalog.inventory.mark(marks[Outcome.UNMARKED], None)

    # ---- uploads

    async def _look_at_uploads(self, skip: int, *, mend: bool) -> Step:
        """Those that were found before and are there still are passed over: so many of them."""
        step, kept = Step(), 0
        async for page in self._store.open_uploads():
            step.uploads += len(page)
            for orphan in await self._orphans(page, step):
                kept += 1
                if kept <= skip:
                    continue
                finding = await self._unless_denied(orphan, partial(self._abort, mend=mend))
                step.findings.append(finding)
                kept -= mend and finding.outcome is Outcome.ABORTED
                if len(step.findings) == FINDINGS:
                    step.cursor = cursors.write(UPLOADS, kept)
                    return step
        return step

    async def _orphans(self, page: Sequence[OpenUpload], step: Step) -> list[Finding]:
        known, there = await self._known([upload.file_id or 0 for upload in page])
        found = [
            of_upload(
                upload,
                there.get(upload.file_id or 0),
                known=upload.file_id in known,
                rule=self._rule,
                now_ms=self._clock.now_ms(),
            )
            for upload in page
        ]
        step.waiting += found.count(None)
        return [finding for finding in found if finding is not None]

    async def _abort(self, finding: Finding, *, mend: bool) -> Finding:
        """A server that died within Complete lists an upload whose parts are the object's by now (flow/finish.py).

        What a folder's daemon has begun lies apart from its objects: its key is no file's.
        """
        if finding.outcome is not Outcome.ABORTED:
            return finding
        if id_of(finding.key) is not None and await self._store.head(finding.key, glance=True) is not None:
            return replace(finding, outcome=Outcome.KEPT, message=SHARES_PARTS, hint=LIFECYCLE)
        if mend:
            await self._store.abort(Target(finding.key, finding.file_id, 0, ""), finding.upload_id)
        return finding

    async def _unless_denied(self, finding: Finding, act: Callable[[Finding], Awaitable[F]]) -> Finding | F:
        """What one object keeps from being read, or removed, is told of it; the others are looked at all the same."""
        try:
            return await act(finding)
        except StoreError as refused:
            if refused.fault is not Fault.DENIED:
                raise
            return replace(finding, outcome=Outcome.KEPT, message=f"{finding.message}; {refused.message}")

    async def _known(self, ids: Sequence[int]) -> tuple[set[int], dict[int, FileRecord]]:
        """Those that this node's journal has, and the records of those that the catalog has. 0 is no file's."""
        asked = [one for one in dict.fromkeys(ids) if one]
        if not asked:
            return set(), {}
        known = {job.id for job in await self._journal.get(asked)}
        return known, {record.id: record for record in await self._catalog.get(asked)}


async def _each(pages: AsyncIterator[Sequence[T]]) -> AsyncIterator[T]:
    async for page in pages:
        for one in page:
            yield one


def _key(one: Stored | FileRecord | None) -> str:
    return "" if one is None or one.key is None else one.key


def _stage(text: str) -> str:
    if text not in (OBJECTS, UPLOADS):
        raise ValueError(text)
    return text


def _log(finding: Finding) -> None:
    event = {
        "kind": finding.kind,
        "outcome": finding.outcome,
        "id": finding.file_id,
        "key": finding.key,
        "error": finding.message,
    }
    log.warning("mismatch", extra=event)
