"""Store and catalog compared on request, for an operator: a step a request, each by what the last one has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core.access import Policy
from ml_dashd.core.reconcile import Finding
from ml_dashd.core.retry import StoreError, decide
from ml_dashd.flow.reconcile import Reconcile
from ml_dashd.ports import Clock, Line, Session

Reply = tuple[m.Message, Sequence[int]]
LONGEST = 1000
"""Characters of what a server says."""
LONGEST_KEY = 4096
PROGRESS_S = 0.5


class Findings:
    """Answers with them."""

    def __init__(self, *, reconcile: Reconcile, policy: Policy, clock: Clock) -> None:
        self._reconcile = reconcile
        self._policy = policy
        self._clock = clock
        self.answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {m.Reconcile: self._step}

    async def _step(self, session: Session, message: m.Reconcile, _: Sequence[int], line: Line) -> Reply:
        """For admins: it names everybody's files, and changes what is listed."""
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not compare the store with the catalog"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        read = [0]

        def arrived(size_bytes: int) -> None:
            read[0] += size_bytes

        telling = asyncio.create_task(self._tell(message.request, read, line))
        try:
            step = await self._reconcile.step(message.cursor, mend=not message.dry_run, arrived=arrived)
        except StoreError as failure:
            trouble = decide(failure.fault, failure.message, 1, 0.0).trouble
            raise error(trouble.code, trouble.message, trouble.hint) from None
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
        return m.Reconciled(
            request=message.request,
            objects=step.objects,
            records=step.records,
            uploads=step.uploads,
            waiting=step.waiting,
            findings=tuple(map(_shown, step.findings)),
            cursor=step.cursor,
        ), ()

    async def _tell(self, request: int, read: Sequence[int], line: Line) -> None:
        """A step that reads files back may take long: whoever waits hears that it goes on."""
        while True:
            await self._clock.sleep(PROGRESS_S)
            await line.report(m.Progress(request=request, done_bytes=read[0], total_bytes=read[0]))


def _shown(finding: Finding) -> m.Finding:
    return m.Finding(
        what=finding.kind,
        outcome=finding.outcome,
        key=finding.key[:LONGEST_KEY],
        size_bytes=finding.size_bytes,
        message=finding.message[:LONGEST],
        hint=finding.hint,
        id=finding.file_id,
        path=finding.path,
        upload=finding.upload_id[:LONGEST_KEY],
        code=finding.code,
    )
