"""Sets beyond those that are kept: each is a version of its name, and goes as a whole, or stays.

A set goes where the pattern fits all of its files, and none of them has a tag that keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from ml_dashd.core import cursors, names
from ml_dashd.core.model import FileRecord
from ml_dashd.core.retention import Rule
from ml_dashd.core.sets import SetRecord, SetSelection, SetState, surplus
from ml_dashd.ports import Catalog, Clock, Faults

log = logging.getLogger("ml_dashd.flow")

PAGE = 100
"""Sets, and files of a set, that are looked at at once."""
MARK = "set"
"""How the cursors of sets begin; those of files begin with a count, or nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sets count, and which of them may go: those of which all files, below `prefix`, fit the pattern."""

    selection: SetSelection
    rule: Rule
    prefix: str = ""
    pattern: str | None = None


class PruneSets:
    """Deletes sets, softly: their bytes stay for store.delete_grace."""

    def __init__(self, *, catalog: Catalog, clock: Clock, faults: Faults) -> None:
        self._catalog = catalog
        self._clock = clock
        self._faults = faults

    async def begin(self, wanted: Wanted) -> str | None:
        """The cursor of the first step; None where there are no sets."""
        some = await self._catalog.sets.select(replace(wanted.selection, limit=1))
        return _next_below(some[0].number + 1) if some else None

    async def step(self, wanted: Wanted, cursor: str, *, dry_run: bool) -> tuple[list[FileRecord], str | None]:
        """Deletes the next set, or says of which files one consists that is deleted; and the next cursor."""
        _, set_id, after, number = cursors.read(cursor, str, str, cursors.number, cursors.number)
        if not set_id:
            going = await self._next(wanted, number)
            if going is None:
                return [], None
            set_id, number = going.id, going.number
            if not dry_run and not await self._drop(going, wanted.rule):
                return [], _next_below(number)
        files = await self._catalog.sets.files(set_id, after, PAGE)
        more = len(files) == PAGE
        return files, cursors.write(MARK, set_id, files[-1].id, number) if more else _next_below(number)

    async def run(self, wanted: Wanted) -> None:
        """Deletes all that are too many."""
        for record in await self._surplus(wanted):
            if await self._may_go(record, wanted):
                await self._drop(record, wanted.rule)

    async def _next(self, wanted: Wanted, below: int) -> SetRecord | None:
        """The newest that is too many, below a number."""
        for record in await self._surplus(wanted):
            if record.number < below and await self._may_go(record, wanted):
                return record
        return None

    async def _surplus(self, wanted: Wanted) -> list[SetRecord]:
        every = [record async for record in self._complete(wanted.selection)]
        return [*surplus(every, wanted.rule.keep_last)]

    async def _complete(self, selection: SetSelection) -> AsyncIterator[SetRecord]:
        selection = replace(selection, states=(SetState.COMPLETE,), limit=PAGE)
        while found := await self._catalog.sets.select(selection):
            for record in found:
                yield record
            selection = replace(selection, before=found[-1].number)

    async def _may_go(self, record: SetRecord, wanted: Wanted) -> bool:
        after = 0
        while files := await self._catalog.sets.files(record.id, after, PAGE):
            after = files[-1].id
            if any(self._stays(file, wanted) for file in files if file.deleted_ms is None):
                return False
        return True

    def _stays(self, file: FileRecord, wanted: Wanted) -> bool:
        fits = names.matches(file.path, wanted.prefix, wanted.pattern)
        return not fits or not wanted.rule.keep_tags.isdisjoint(file.tags)

    async def _drop(self, record: SetRecord, rule: Rule) -> bool:
        """One that is tagged in this moment stays."""
        self._faults.at("prune.before_set")
        gone = await self._catalog.sets.drop(record.id, self._clock.now_ms(), rule.keep_tags)
        self._faults.at("prune.after_set")
        if gone:
            event = {"set": record.key.name, "attempt": record.key.attempt, "files": record.files}
            log.info("set_pruned", extra=event)
        return gone


def is_of_sets(cursor: str | None) -> bool:
    """Whether a cursor of a Pruned is one of sets."""
    return cursor is not None and cursor.startswith(f"{MARK}\n")


def _next_below(number: int) -> str:
    """The cursor of a step that looks for the next set."""
    return cursors.write(MARK, "", 0, number)
