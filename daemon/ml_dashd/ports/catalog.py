"""What is stored, listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ml_dashd.core.model import Amendment, Experiment, FileRecord, Scope, Selection, Trouble
from ml_dashd.core.rounds import Round
from ml_dashd.ports.sets import Sets


class TakenError(Exception):
    """Other files have ids of those that were to be listed, for good. What else was in the call is listed.

    `others` are their records, `gone` what the call would have returned.
    """

    def __init__(self, others: Sequence[FileRecord], gone: Sequence[int]) -> None:
        super().__init__(f"other files have the ids {', '.join(str(record.id) for record in others)}")
        self.others = others
        self.gone = gone


def gone_of(records: Sequence[FileRecord], there: Sequence[FileRecord]) -> list[int]:
    """Those of the records to be listed that are deleted, by what the catalog has of their ids.

    Raises TakenError where an id is another file's.
    """
    mine = {record.id: record.identity for record in records}
    others = [found for found in there if found.identity != mine[found.id]]
    gone = [found.id for found in there if found.deleted_ms is not None and found.identity == mine[found.id]]
    if others:
        raise TakenError(others, gone)
    return gone


class Rounds(Protocol):
    """Whose turn it is at a chore that one daemon does for all that share the catalog (core/rounds.py)."""

    async def round(self) -> Round:
        """The round that was noted last."""

    async def turn(self, was: Round, now: Round) -> bool:
        """Notes a round in the place of the one that was read; False, and nothing done, where it is another by now."""


class Inventory(Rounds, Protocol):
    """What the catalog says of the store's objects, and whose turn it is to compare both (core/reconcile.py)."""

    async def records(self, after: str, limit: int) -> list[FileRecord]:
        """Records whose keys come after that one, in the order of their keys as UTF-8.

        Pending and deleted ones are among them, but for those whose bytes are noted as reclaimed.
        """

    async def mark(self, records: Sequence[FileRecord], missing_ms: int | None) -> None:
        """Notes since when the store has no object of these; None: it has. One that is marked stays so. Idempotent.

        Deleted ones are left as they are.
        """


class Catalog(Protocol):
    """What is stored. A record is in it only when its object is verified."""

    @property
    def sets(self) -> Sets:
        """The sets that its files belong to."""

    @property
    def inventory(self) -> Inventory:
        """What is compared with the store."""

    async def commit(self, records: Sequence[FileRecord]) -> list[int]:
        """Lists stored files; returns the ids of those that were deleted before, and stay so.

        Idempotent: upserts by id. Where it raises, some may be listed, and it is to be repeated. Of what
        is said of a file, the higher revision stays. One that is there and pending no more stays so. A record whose
        owner, key or SHA-256 is another is another file's, and stays as it is: raises TakenError.
        """

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        """The records of these ids, deleted ones too."""

    async def select(self, selection: Selection) -> list[FileRecord]:
        """Records that are not deleted, in the order of (path, newest first).

        All that are asked for, up to the limit; and perhaps some that do not fit the pattern.
        """

    async def newer(self, after: int, scope: Scope, limit: int) -> list[FileRecord]:
        """Records of the scope that are not deleted, of all experiments, with ids above `after`, in their order."""

    async def amend(self, file_id: int, words: Amendment, at_ms: int) -> FileRecord | None:
        """Changes what is said of a listed file; None where there is none, or it is deleted."""

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        """Marks records as deleted; returns the ids that are now. Idempotent: the first time stays."""

    async def prune(self, records: Sequence[FileRecord], at_ms: int) -> list[int]:
        """Marks as deleted those of these records that are as they were read; returns their ids."""

    async def experiments(self) -> list[Experiment]:
        """Those that have files which are not deleted."""

    async def deleted(self, before_ms: int, after: tuple[int, int], limit: int) -> list[FileRecord]:
        """Records deleted before then whose bytes may still be in the store, in the order of (time, id).

        `after` is the (time, id) of the last one seen.
        """

    async def reclaimed(self, records: Sequence[FileRecord], at_ms: int) -> None:
        """Notes that the store has no bytes of these any more, where they were deleted when they say. Idempotent."""

    def trouble(self) -> Trouble | None:
        """Why nothing can be listed now, and not by itself in a moment: its disk is full, or has failed."""

    async def close(self) -> None:
        """Lets go of files and connections."""
