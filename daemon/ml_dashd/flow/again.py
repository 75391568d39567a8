"""Files that failed, or wait for an operator, are tried again because somebody asks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ml_dash.errors import TABLE, Code, MLDashError, error
from ml_dash.messages import MANY
from ml_dashd.core.access import Policy, Right
from ml_dashd.core.model import EVERYBODY, Job, Scope, Trouble
from ml_dashd.core.retry import StoreError, decide
from ml_dashd.core.states import State
from ml_dashd.core.supersede import trouble_of
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.sources import open_source
from ml_dashd.flow.worker import Worker
from ml_dashd.ports import Journal, Pins, Session, Superseded, Threads

log = logging.getLogger("ml_dashd.flow")

HOPELESS = (Code.SOURCE_CHANGED, Code.SOURCE_LOST, Code.DISK_FAILED, Code.ID_TAKEN)
"""Of these failures nothing is left that could be sent: what the disk could not keep may read as anything. With another
file's id nothing can be listed."""

Refused = tuple[Job, Trouble]


class Again:
    """Sends files back to the queue."""

    def __init__(
        self,
        *,
        browse: Browse,
        journal: Journal,
        pins: Pins,
        threads: Threads,
        finish: Finish,
        worker: Worker,
        policy: Policy,
    ) -> None:
        self._browse = browse
        self._journal = journal
        self._pins = pins
        self._threads = threads
        self._finish = finish
        self._worker = worker
        self._policy = policy

    async def run(self, session: Session, ids: Sequence[int]) -> tuple[int, list[Refused]]:
        """Tries these files again; how many go on, and what keeps the others. Idempotent.

        Raises UNKNOWN_FILE, and ACCESS_DENIED where one is not the caller's; then nothing is tried.
        """
        found = await self._browse.get(session, ids)
        known = {job.id for job in found}
        if missing := [one for one in ids if one not in known]:
            raise error(Code.UNKNOWN_FILE, f"no file has the id {missing[0]}")
        for job in found:
            if not self._policy.may(Right.CHANGE, session.uid, job.record):
                what = f"{job.record.path} (file {job.id}) belongs to uid {job.record.owner_uid}, not {session.uid}"
                raise error(Code.ACCESS_DENIED, what, "ask its owner, or one of the admins named in [access]")
        return await self._try_all(found)

    async def run_all(self, session: Session) -> tuple[int, list[Refused]]:
        """Tries everything again that failed or is blocked, as far as it is the caller's; names at most MANY others."""
        scope = EVERYBODY if self._policy.is_admin(session.uid) else Scope(session.uid)
        files, refused, last = 0, list[Refused](), 0
        while jobs := await self._journal.stuck(scope, last, MANY):
            last = jobs[-1].id
            more, others = await self._try_all(jobs)
            files += more
            refused += others[: MANY - len(refused)]
        return files, refused

    async def _try_all(self, jobs: Sequence[Job]) -> tuple[int, list[Refused]]:
        refused = [(job, trouble) for job in jobs if (trouble := await self._try(job)) is not None]
        self._worker.hasten_probes()
        return len(jobs) - len(refused), refused

    async def _try(self, job: Job) -> Trouble | None:
        """Lets one go on; why not."""
        if job.state is State.DONE:
            return Trouble(Code.ALREADY_STORED, "it is stored", "there is nothing to try")
        if job.state is State.CANCELLED or job.cancel_requested:
            gone = None if job.superseded_by is None else trouble_of(job)
            return gone or Trouble(Code.CANCELLED, "it was deleted", TABLE[Code.CANCELLED].hint)
        if job.state is not State.FAILED:
            await self._worker.hurry(job)
            return None
        if job.trouble is not None and job.trouble.code in HOPELESS:
            return job.trouble
        return await self._requeue(job)

    async def _requeue(self, job: Job) -> Trouble | None:
        """FAILED → QUEUED, where its source is there and nothing of the last try is in the store any more."""
        try:
            (await open_source(job, self._journal, self._pins, self._threads)).close()
            await self._finish.clean(job)
            await self._journal.advance(
                job,
                State.QUEUED,
                attempt=0,
                not_before_ms=0,
                trouble=None,
                upload_id=None,
                proof=None,
            )
        except Superseded:
            return None  # it is on its way, or deleted, by another hand
        except StoreError as away:
            return decide(away.fault, away.message, 1, 0.0).trouble
        except MLDashError as lost:
            return Trouble(lost.code, lost.message, lost.hint)
        log.info("file_tried_again", extra={"id": job.id, "path": job.record.path})
        return None
