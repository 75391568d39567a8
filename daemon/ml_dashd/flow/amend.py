"""What is said of a file, changed: wherever the file is by then, and never taken back by its own commit.

A file that is on its way is amended in the journal, whose row goes to the catalog with its words. A commit that was
under way with the old ones finds another revision in the journal, and lists the file once more (flow/finish.py). A file
that is finished is amended in the catalog, where a commit that comes late leaves a higher revision alone.
"""

from __future__ import annotations

from ml_dash.errors import Code, error
from ml_dash.messages import DESCRIBED_BYTES, Update
from ml_dashd.core import names
from ml_dashd.core.access import Right
from ml_dashd.core.model import Amendment, FileRecord
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.browse import Browse, Seen, unknown
from ml_dashd.ports import Catalog, Clock, Journal, Session


class Amend:
    """Changes descriptions, tags, bindrs and metadata."""

    def __init__(self, *, browse: Browse, journal: Journal, catalog: Catalog, bell: Bell, clock: Clock) -> None:
        self._browse = browse
        self._journal = journal
        self._catalog = catalog
        self._bell = bell
        self._clock = clock

    async def run(self, session: Session, message: Update) -> Seen:
        """The file as it is now. Raises UNKNOWN_FILE, ACCESS_DENIED, or what is wrong with the words."""
        seen = await self._browse.find(session, message.id, Right.CHANGE)
        words = Amendment(
            description=message.description,
            tags=None if message.tags is None else names.tags(message.tags, "tags"),
            bindrs=None if message.bindrs is None else names.tags(message.bindrs, "bindrs"),
            metadata=names.metadata(message.metadata),
        )
        _check_size(seen.record, words)
        job = await self._journal.amend(message.id, words)
        if job is None:
            if await self._catalog.amend(message.id, words, self._clock.now_ms()) is None:
                raise unknown(message.id)
            job = await self._browse.find(session, message.id, Right.CHANGE)
        self._bell.ring()
        return job


def _check_size(record: FileRecord, words: Amendment) -> None:
    """A record travels in one frame: what was said before and now counts together, as at the hand-off."""
    description = record.description if words.description is None else words.description
    metadata = record.metadata if words.metadata is None else words.metadata
    tags = record.tags if words.tags is None else words.tags
    bindrs = record.bindrs if words.bindrs is None else words.bindrs
    size = sum(len(text.encode()) for text in (record.path, description or "", metadata or "", *tags, *bindrs))
    if size > DESCRIBED_BYTES:
        what = f"description, tags, bindrs and metadata of {record.path} would take {size} bytes"
        raise error(Code.INVALID_ARGUMENT, what, f"at most {DESCRIBED_BYTES}: shorten them")
