"""Files as their clients see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ml_dash import messages as m
from ml_dash.errors import TABLE
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.states import State
from ml_dashd.core.supersede import trouble_of
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.shares import shown_share
from ml_dashd.ports import Pins

MAX_SAID = 2000
"""Characters of what is said of one file of many."""
SENT = (State.COMPLETING, State.VERIFIED, State.DONE)


class Shown:
    """Makes records of them: what journal or catalog have, and what is known beside that of one on its way."""

    def __init__(self, pins: Pins, bell: Bell) -> None:
        self._pins = pins
        self._bell = bell

    def samples(self, jobs: Sequence[Job]) -> tuple[m.Record, ...]:
        """Records that say which files they are and what troubles them, without what may be long."""
        return tuple(
            replace(record, description=None, tags=(), bindrs=(), metadata=None) for record in self.records(jobs)
        )

    def records(self, jobs: Sequence[Job]) -> tuple[m.Record, ...]:
        return tuple(self.record(job) for job in jobs)

    def record(self, job: Job) -> m.Record:
        """A file as the client sees it. What is stored needs no pin and is on disk."""
        record, trouble = job.record, trouble_of(job)
        cancelled = job.cancel_requested and job.state is not State.DONE
        return m.Record(
            id=record.id,
            namespace=record.namespace,
            project=record.project,
            experiment=record.experiment,
            path="/" + record.prefix,
            filename=record.filename,
            size_bytes=record.size_bytes,
            content_type=record.content_type,
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
            state=State.CANCELLED if cancelled else job.state,
            ack="disk" if job.on_disk else "memory",
            pin="lease" if self._pins.leased(job.id) else job.pin.kind,
            description=record.description,
            tags=record.tags,
            bindrs=record.bindrs,
            metadata=record.metadata,
            sha256=record.sha256,
            uploaded_ms=record.uploaded_ms,
            deleted_ms=record.deleted_ms,
            sent_bytes=record.size_bytes if job.state in SENT else self._bell.sent.get(job.id, 0),
            attempt=job.attempt,
            error_code=trouble.code if trouble else None,
            error_message=trouble.message if trouble else None,
            error_hint=(trouble.hint or TABLE[trouble.code].hint) if trouble else None,
            share=shown_share(record.share),
            pending=record.pending,
        )


def refusals(refused: Sequence[tuple[Job, Trouble]]) -> tuple[m.Refusal, ...]:
    """Files of which a request was refused, and why."""
    return tuple(
        m.Refusal(
            id=job.id,
            path=job.record.path,
            code=trouble.code,
            message=trouble.message[:MAX_SAID],
            hint=trouble.hint[:MAX_SAID],
        )
        for job, trouble in refused
    )
