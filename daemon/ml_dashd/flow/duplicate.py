"""A new file of what another one holds: of its object where it is stored, of its pin where it is on its way.

A stored source is referred to in the journal, and flow/reclaim.py keeps its bytes, deleted or not, until the duplicate
has its own. The order is what makes that safe: the journal has the duplicate before the source is looked at once more.
"""

from __future__ import annotations

from contextlib import suppress

from ml_dash.errors import Code, MLDashError, error
from ml_dash.messages import Duplicate as Request
from ml_dashd.core.access import Right
from ml_dashd.core.model import Job, Pin, PinKind
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.browse import Browse, Seen
from ml_dashd.flow.worker import Worker
from ml_dashd.ports import Journal, Session, Superseded

GONE = (Code.SOURCE_CHANGED, Code.SOURCE_LOST)
"""Of a file that failed so, nothing is left that could be duplicated."""
ATTEMPTS = 5
"""At a source that comes to its end, and lets its pin go, while it is pinned again."""


class Duplicate:
    """Takes duplicates in."""

    def __init__(self, *, browse: Browse, accept: Accept, journal: Journal, worker: Worker) -> None:
        self._browse = browse
        self._accept = accept
        self._journal = journal
        self._worker = worker

    async def run(self, session: Session, message: Request) -> Job:
        """The job of the new file. Raises UNKNOWN_FILE where the source is deleted.

        Idempotent by the message's key, whatever has become of the source since the first answer, which may be lost.
        """
        known = await self._journal.handed(session.uid, message.key)
        if known is not None and known.state is not State.CANCELLED:
            return known
        for _ in range(ATTEMPTS):
            source = await self._browse.find(session, message.source, Right.READ)
            if source.trouble is not None and source.trouble.code in GONE:
                raise error(source.trouble.code, source.trouble.message)
            if source.state is State.DONE or source.pin.kind is PinKind.OBJECT:
                return await self._refer(session, message, source)
            try:
                return await self._accept.adopt(session, message, source, self._is_pinned)
            except MLDashError as failure:
                if failure.code is not Code.SOURCE_LOST or source.state not in UNFINISHED:
                    raise
        raise error(Code.SOURCE_LOST, f"{source.record.path} (file {source.id}) is not to be had")

    async def _refer(self, session: Session, message: Request, source: Seen) -> Job:
        job = await self._accept.refer(session, message, source)
        try:
            now = await self._browse.find(session, source.id, Right.READ)
        except MLDashError:
            await self._worker.cancel(await self._journal.cancel([job.id]))
            raise
        if now.state is not source.state and now.state is State.DONE:
            # A duplicate that has its own object by now no longer keeps its source's.
            with suppress(Superseded):
                job = await self._journal.note(job, pin=Pin(PinKind.OBJECT, source=now.record.key or ""))
        return job

    async def _is_pinned(self, source: Job) -> bool:
        """Whether what was pinned again is what the source has: its own pin was kept until now."""
        return any(
            job.state not in (State.DONE, State.CANCELLED) and job.pin.kind is not PinKind.NONE
            for job in await self._journal.get([source.id])
        )
