"""Sets of files in the catalog."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ml_dashd.core.model import FileRecord
from ml_dashd.core.sets import Delivered, Delivery, SetKey, SetRecord, SetSelection, Share


class Sets(Protocol):
    """What the catalog keeps of sets of files (core/sets.py). A call is one transaction."""

    async def open(self, key: SetKey, share: Share, at_ms: int) -> SetRecord:
        """The round that a share goes to now, begun where there is none. Idempotent.

        Where it is one of another world_size, the share can't go there.
        """

    async def deliver(self, delivery: Delivery, at_ms: int) -> Delivered:
        """Takes a share into its set, in the place of that rank's earlier one, whose files are deleted.

        With the last one all files of the set become visible, unless a newer attempt that was saved at the same time
        is. Idempotent by the share's key.
        """

    async def holding(self, share_key: str) -> SetRecord | None:
        """The set that has a share; None where none has, or has it no more."""

    async def members(self, key: SetKey, share_key: str) -> list[int]:
        """The ids of its owner's files, there, that bear a share's mark and are not deleted, in their order."""

    async def get(self, set_id: str) -> SetRecord | None:
        """The set of an id."""

    async def select(self, selection: SetSelection) -> list[SetRecord]:
        """Sets, the newest first."""

    async def files(self, set_id: str, after: int, limit: int) -> list[FileRecord]:
        """The files of a set's shares with ids above `after`, in their order, deleted ones too."""

    async def drop(self, set_id: str, at_ms: int, keep_tags: Collection[str] = ()) -> bool:
        """Deletes a set and its files together, unless one of these has one of the tags; whether it did."""

    async def report(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        """Open sets to which nothing came since then; each is returned once, and again when something has come."""

    async def abandon(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        """Drops open sets to which nothing came since then, and returns them as they were. Their files are strays."""

    async def strays(self, before_ms: int, limit: int) -> list[FileRecord]:
        """Files stored before then that are pending, and in no open set's shares."""
