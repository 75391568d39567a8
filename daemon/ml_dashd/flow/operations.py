"""What is asked for whoever looks after the daemon: how it is, a drain, an examination, and files tried again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core.access import Policy
from ml_dashd.core.figures import Sending
from ml_dashd.flow.again import Again
from ml_dashd.flow.audit import Audit, Audited
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.doctor import Doctor
from ml_dashd.flow.drain import MAX_DRAIN_MS, Drain, Seen
from ml_dashd.flow.health import Health
from ml_dashd.flow.sets import FileSets
from ml_dashd.flow.shown import Shown, refusals
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Journal, Line, Pins, Session, Threads

REPORTS = (1, 2)
"""Reports of the daemon's state at once, of one user and of all: each looks through the queue and the spool."""
MOVING = 32
"""Files under way that a report names."""
NAMED = 50
"""Files that the answer to a Drain names; the manifest has the rest."""
Reply = tuple[m.Message, Sequence[int]]


@dataclass(slots=True)
class Identity:
    """What the daemon says of itself. Where its things lie changes with a root that is moved."""

    version: str
    pid: int
    embedded: bool
    store: str
    state_dir: str
    started_ms: int
    inbox: str = ""


class Operations:
    """Answers it. `sessions` are the numbers of the connections that there are; `stop` ends the daemon."""

    def __init__(
        self,
        *,
        identity: Identity,
        sessions: Collection[int],
        shown: Shown,
        browse: Browse,
        drain: Drain,
        doctor: Doctor,
        audit: Audit,
        again: Again,
        sets: FileSets,
        sending: Callable[[], Sending],
        limits: m.Limits,
        journal: Journal,
        pins: Pins,
        threads: Threads,
        health: Health,
        policy: Policy,
        stop: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._sessions = sessions
        self._shown = shown
        self._browse = browse
        self._drain = drain
        self._doctor = doctor
        self._audit = audit
        self._again = again
        self._sets = sets
        self._sending = sending
        self._limits = limits
        self._journal = journal
        self._pins = pins
        self._threads = threads
        self._health = health
        self._policy = policy
        self._stop = stop
        self._reports = Turns(*REPORTS)
        self.answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {
            m.Status: self._status,
            m.Drain: self._drain_queue,
            m.Examine: self._examine,
            m.Retry: self._retry,
            m.Verify: self._verify,
        }

    async def _status(self, session: Session, message: m.Status, *_: Any) -> Reply:
        """The counts are of everybody's files; those that are named are such as the caller may read."""
        me, trouble = self._identity, self._health.trouble()
        async with self._reports.of(session.uid):
            summary = await self._journal.summary(self._policy.scope(session.uid))
            spool_bytes = await self._threads.run(self._pins.spool_bytes)
        moving = await self._browse.moving(session, MOVING)
        return m.StatusReport(
            request=message.request,
            version=me.version,
            pid=me.pid,
            embedded=me.embedded,
            store=me.store,
            state_dir=me.state_dir,
            started_ms=me.started_ms,
            connections=len(self._sessions),
            spool_bytes=spool_bytes,
            counts=tuple(
                m.Count(state=one.state, files=one.files, size_bytes=one.size_bytes) for one in summary.counts
            ),
            oldest_ms=summary.oldest_ms,
            blocked=self._shown.samples(summary.blocked),
            failed=self._shown.samples(summary.failed),
            error_code=None if trouble is None else trouble.code,
            error_message=None if trouble is None else trouble.message,
            error_hint=None if trouble is None else trouble.hint,
            moving=self._shown.samples(moving),
            bytes_per_second=int(self._sending().bytes_per_second),
            superseded_files=summary.superseded,
            limits=self._limits,
            sets=await self._sets.incomplete(session),
        ), ()

    async def _drain_queue(self, session: Session, message: m.Drain, _: Sequence[int], line: Line) -> Reply:
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not drain this daemon"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        if message.deadline_ms > MAX_DRAIN_MS:
            what = f"a deadline of {message.deadline_ms} ms"
            raise error(Code.INVALID_ARGUMENT, what, f"at most {MAX_DRAIN_MS} ms, which is a day")

        async def report(seen: Seen) -> None:
            left = seen.left
            await line.report(
                m.Progress(
                    request=message.request,
                    done_bytes=seen.most_bytes - left.left_bytes,
                    total_bytes=seen.most_bytes,
                    done_files=seen.most_files - left.files,
                    total_files=seen.most_files,
                    held_files=left.held,
                )
            )

        outcome = await self._drain.run(message.deadline_ms / 1000, report, last=message.stop)
        if message.stop:
            self._stop()
        first = outcome.files[:NAMED]
        records = self._shown.samples([file.job for file in first])
        return m.Drained(
            request=message.request,
            left_files=outcome.left.files,
            left_bytes=outcome.left.left_bytes,
            failed_files=outcome.failed,
            manifest=f"{self._identity.state_dir}/{outcome.manifest}" if outcome.manifest else "",
            files=tuple(
                replace(record, sent_bytes=file.sent_bytes) for record, file in zip(records, first, strict=True)
            ),
        ), ()

    async def _examine(self, session: Session, message: m.Examine, *_: Any) -> Reply:
        """For admins: the answers name buckets, folders and what the store says."""
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not examine this daemon"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        async with self._reports.of(session.uid):
            checks = await self._doctor.run()
        return m.Examined(
            request=message.request,
            checks=tuple(
                m.Check(name=check.name, verdict=check.verdict, found=check.found, hint=check.hint) for check in checks
            ),
        ), ()

    async def _retry(self, session: Session, message: m.Retry, *_: Any) -> Reply:
        if message.everything:
            files, refused = await self._again.run_all(session)
        else:
            files, refused = await self._again.run(session, message.ids)
        return m.Retried(request=message.request, tried_files=files, refused=refusals(refused)), ()

    async def _verify(self, session: Session, message: m.Verify, _: Sequence[int], line: Line) -> Reply:
        async def report(seen: Audited) -> None:
            await line.report(
                m.Progress(
                    request=message.request,
                    done_bytes=seen.size_bytes,
                    total_bytes=seen.total_bytes,
                    done_files=seen.files,
                    total_files=seen.total_files,
                )
            )

        seen = await self._audit.run(session, message.ids, report)
        return m.Verified(
            request=message.request, read_files=seen.files, read_bytes=seen.size_bytes, damaged=refusals(seen.damaged)
        ), ()
