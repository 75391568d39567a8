"""Versions beyond those that are kept: on request, and, where [retention] asks for it, by themselves.

The catalog lists what is stored and nothing else, so what is on its way counts for nothing. A version is deleted only
as it was read: one that is tagged in this moment stays. Files of sets are left to flow/prune_sets.py.

[retention] looks through all that is listed, which one node does for a fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ml_dash.errors import Code, error
from ml_dash.messages import Prune as Request
from ml_dashd.core import cursors, names
from ml_dashd.core.access import Policy
from ml_dashd.core.model import FileRecord, Scope, Selection
from ml_dashd.core.retention import Rule, Sieve
from ml_dashd.core.sets import SetSelection, SetState
from ml_dashd.flow.browse import PAGE_BYTES, Browse, answer_bytes
from ml_dashd.flow.prune_sets import PruneSets, Wanted, is_of_sets
from ml_dashd.flow.rounds import Turn, take
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Catalog, Clock, Faults, Journal, Rounds, Session

log = logging.getLogger("ml_dashd.flow")

PAGE = 500
"""Records that are looked at in one step, and the most that a step deletes."""
PRUNES = (1, 8)
"""Steps at once, of one user and of all: each may look through a whole experiment."""
PAUSE_S = 3600.0
"""Between two looks of [retention] at everything that is listed: what is one too many costs space, and no more."""
LEASE_MS = 15 * 60_000
"""Whose turn it is has lost it when it is not heard of for so long; a page takes moments."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a step has deleted, or would have; and where the next one begins, None at the end."""

    records: Sequence[FileRecord]
    cursor: str | None


class Prune:
    """Deletes versions, softly: their bytes stay for store.delete_grace."""

    def __init__(
        self,
        *,
        browse: Browse,
        journal: Journal,
        catalog: Catalog,
        policy: Policy,
        clock: Clock,
        faults: Faults,
        rounds: Rounds,
        holder: str,
    ) -> None:
        self._browse = browse
        self._journal = journal
        self._catalog = catalog
        self._policy = policy
        self._clock = clock
        self._faults = faults
        self._rounds = rounds
        self._holder = holder
        self._sets = PruneSets(catalog=catalog, clock=clock, faults=faults)
        self._turns = Turns(*PRUNES)

    async def run(self, session: Session, request: Request) -> Pruned:
        """One step of a request. Only the caller's own files count; for an admin those of each owner, by themselves."""
        if request.keep_last < 1:
            raise error(Code.INVALID_ARGUMENT, "keep_last is 0", "keep at least 1 version")
        scope = self._policy.scope(session.uid)
        if scope.owner_uid is not None:
            scope = Scope(scope.owner_uid)
        rule = Rule(request.keep_last, frozenset(request.keep_tags))
        sets = _sets(self._browse.selection(request.place, None, None, PAGE, scope), rule, request.pattern)
        if is_of_sets(request.cursor):
            async with self._turns.of(session.uid):
                return Pruned(*await self._sets.step(sets, request.cursor or "", dry_run=request.dry_run))
        kept, after = ({}, None) if request.cursor is None else _after(request.cursor)
        selection = self._browse.selection(request.place, request.pattern, after, PAGE, scope)
        sieve = Sieve(rule, selection.cursor[0] if selection.cursor else "", kept)
        async with self._turns.of(session.uid):
            pruned = await self._step(request, selection, sieve)
            return pruned if pruned.cursor is not None else replace(pruned, cursor=await self._sets.begin(sets))

    async def _step(self, request: Request, selection: Selection, sieve: Sieve) -> Pruned:
        prefix = "/".join(names.clean(request.place.prefix, "the prefix"))
        while True:
            batch = await self._catalog.select(selection)
            withdrawn = await self._withdrawn(batch)
            surplus, size = list[FileRecord](), 0
            at_end = len(batch) < PAGE
            for record in batch:
                if size >= PAGE_BYTES:  # all of them are named in one answer
                    at_end = False
                    break
                selection = replace(selection, cursor=(record.path, record.id))
                fits = record.share is None and names.matches(record.path, prefix, request.pattern)
                if fits and record.id not in withdrawn and sieve.is_surplus(record):
                    surplus.append(record)
                    size += answer_bytes(record)
            if at_end or surplus:
                gone = surplus if request.dry_run else await self._delete(surplus)
                return Pruned(gone, None if at_end else _cursor(sieve.kept, selection))

    async def retain(self, rule: Rule, pattern: str) -> None:
        """Applies a rule to everything that is listed and fits the pattern, every hour. Never ends."""
        while True:
            try:
                await self.retain_once(rule, pattern)
            except Exception:
                log.exception("retention_failed")
            await self._clock.sleep(PAUSE_S)

    async def retain_once(self, rule: Rule, pattern: str) -> None:
        """Applies it, from where the last one has stopped; nothing while it is another node's turn."""
        every_ms = int(PAUSE_S * 900)  # a little less than a pause: else a look could come a moment too early
        turn = await take(self._rounds, self._holder, self._clock, every_ms=every_ms, lease_ms=LEASE_MS)
        if turn is None:
            return
        left = sorted(await self._catalog.experiments())
        if turn.after:
            left = [each for each in left if each >= cursors.read(turn.after, str, str, str)]
        for experiment in left:
            if not await self._retain(Selection(*experiment, limit=PAGE), rule, pattern, turn):
                return
        await turn.end()

    async def _retain(self, selection: Selection, rule: Rule, pattern: str, turn: Turn) -> bool:
        """Whether it is this node's turn still."""
        sieve = Sieve(rule)
        place = cursors.write(selection.namespace, selection.project, selection.experiment)
        await self._sets.run(_sets(selection, rule, pattern))
        while batch := await self._catalog.select(selection):
            if not await turn.keep(place):
                return False
            selection = replace(selection, cursor=(batch[-1].path, batch[-1].id))
            withdrawn = await self._withdrawn(batch)
            single = [record for record in batch if record.share is None and record.id not in withdrawn]
            counted = [record for record in single if names.matches(record.path, "", pattern)]
            await self._delete([record for record in counted if sieve.is_surplus(record)])
        return True

    async def _withdrawn(self, records: Sequence[FileRecord]) -> set[int]:
        """Those that were deleted while they were listed, which the catalog may not know yet."""
        return await self._journal.withdrawn([record.id for record in records])

    async def _delete(self, records: Sequence[FileRecord]) -> Sequence[FileRecord]:
        if not records:
            return records
        now = self._clock.now_ms()
        self._faults.at("prune.before_delete")
        gone = set(await self._catalog.prune(records, now))
        self._faults.at("prune.after_delete")
        if gone:
            first = records[0]
            event = {"files": len(gone), "first": first.id, "path": first.path}
            log.info("versions_pruned", extra=event)
        return [replace(record, deleted_ms=now) for record in records if record.id in gone]


def _sets(selection: Selection, rule: Rule, pattern: str | None) -> Wanted:
    """The sets of the same place and the same people."""
    asked = SetSelection(
        (SetState.COMPLETE,),
        selection.scope,
        experiment=(selection.namespace, selection.project, selection.experiment),
        prefix=selection.prefix,
    )
    return Wanted(asked, rule, selection.prefix, pattern)


def _cursor(kept: dict[int, int], selection: Selection) -> str | None:
    """With how many versions of the last one's path are kept already, by their owner."""
    return None if selection.cursor is None else cursors.write(cursors.text_of(kept), *selection.cursor)


def _after(cursor: str) -> tuple[dict[int, int], tuple[str, int]]:
    kept, path, file_id = cursors.read(cursor, cursors.counts, str, cursors.number)
    return kept, (path, file_id)
