"""Files whose bytes the journal holds, many at a time: one commit, one look into the journal, serves them all.

Each goes the way of flow/upload.py: its key is journaled before it is sent (rule 2), its object is verified by the
store's own answer (rule 5), and the catalog comes after that (rule 6). Such a file's source can't change.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_dash.errors import Code, error
from ml_dashd.core.checksum import digest
from ml_dashd.core.model import Algorithm, Job, PinKind
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.pace import Pace
from ml_dashd.flow.upload import as_fault
from ml_dashd.flow.verify import Verify
from ml_dashd.ports import Faults, Journal, Meter, Store

CHUNK = 64
"""Files that share their commits. Several chunks are under way at once, so the line is busy while one is committed."""
SENDERS = 16
"""Requests of one chunk that are under way at once."""
SETTLE_S = 0.05
"""What is proved is listed this soon, however long another file of the chunk takes."""

Stumble = tuple[Job, Exception]
"""A file that did not get to its end, and why."""


class Batch:
    """Takes inline files to the store. It holds no state of its own: the journal has it all."""

    def __init__(
        self,
        *,
        journal: Journal,
        store: Store,
        finish: Finish,
        checksums: Checksums,
        verify: Verify,
        pace: Pace,
        faults: Faults,
        meter: Meter,
    ) -> None:
        self._journal = journal
        self._store = store
        self._finish = finish
        self._checksums = checksums
        self._verifier = verify
        self._pace = pace
        self._faults = faults
        self._meter = meter

    @staticmethod
    def takes(job: Job) -> bool:
        """Whether a file can go this way from where it stands."""
        here = job.state in (State.QUEUED, State.SENDING) and not job.cancel_requested
        return here and job.pin.kind is PinKind.INLINE

    async def run(self, jobs: Sequence[Job]) -> list[Stumble]:
        """Takes files to their end; returns those that stumbled. Raises what keeps all of them from going on."""
        algorithm = await self._checksums.algorithm()
        contents = await self._journal.contents([job.id for job in jobs])
        jobs = await self._begin(jobs, algorithm)
        stumbled: list[Stumble] = []
        try:
            await self._send_all(jobs, contents, stumbled)
        except ExceptionGroup as failures:  # of one: the senders keep theirs to themselves
            raise failures.exceptions[0] from None
        return stumbled

    async def _send_all(self, jobs: Sequence[Job], contents: Mapping[int, bytes], stumbled: list[Stumble]) -> None:
        proved: list[tuple[Job, dict[str, Any]]] = []
        left = iter(jobs)
        async with asyncio.TaskGroup() as group:
            senders = {
                group.create_task(self._send(left, contents, proved, stumbled)) for _ in range(min(SENDERS, len(jobs)))
            }
            while senders:
                _, senders = await asyncio.wait(senders, timeout=SETTLE_S)
                wave = proved.copy()
                proved.clear()
                await self._settle(wave)

    async def _begin(self, jobs: Sequence[Job], algorithm: Algorithm) -> list[Job]:
        """Rule 2: what may be in the store is known to the journal, whatever happens."""
        fresh = [job for job in jobs if job.state is State.QUEUED]
        changes = [{"key": self._store.key(job.record), "algorithm": algorithm} for job in fresh]
        begun = await self._journal.advance_all(fresh, State.SENDING, changes)
        return [*(job for job in jobs if job.state is State.SENDING), *begun]

    async def _send(
        self,
        left: Iterator[Job],
        contents: Mapping[int, bytes],
        proved: list[tuple[Job, dict[str, Any]]],
        stumbled: list[Stumble],
    ) -> None:
        for job in left:
            try:
                proved.append((job, await self._put(job, contents)))
            except Exception as failure:  # noqa: BLE001 one file's; what follows is the worker's to decide
                stumbled.append((job, failure))

    async def _put(self, job: Job, contents: Mapping[int, bytes]) -> dict[str, Any]:
        """Stores one file and returns what the journal is to note of it."""
        record = job.record
        if (content := contents.get(job.id)) is None:
            raise error(Code.SOURCE_LOST, f"the journal no longer has the content of {record.path} (file {job.id})")
        sha256, sent = hashlib.sha256(content).hexdigest(), digest(memoryview(content), job.algorithm)
        if sha256 != record.sha256:
            raise error(Code.SOURCE_CHANGED, f"{record.path} is not what was handed over: the journal's disk fails")
        self._faults.at("batch.before_put")
        try:
            async with (
                self._pace.turn(job, Lane.SMALL, len(content)) as deadline_s,
                asyncio.timeout(deadline_s),
            ):
                evidence = await self._store.put(job.target, memoryview(content), sent)
        except TimeoutError as late:
            raise as_fault(late, f"put {record.key}") from None
        self._faults.at("batch.after_put")
        self._meter.sent(record.size_bytes)
        return await self._verifier.changes(job, evidence, sent, sha256)

    async def _settle(self, wave: Sequence[tuple[Job, dict[str, Any]]]) -> None:
        """Lists what is proved; what was deleted meanwhile is taken back."""
        self._faults.at("batch.before_verified")
        verified = await self._journal.advance_all(
            [job for job, _ in wave], State.VERIFIED, [change for _, change in wave]
        )
        for job in verified:
            if job.cancel_requested:
                await self._finish.discard(job)
        await self._finish.commit([job for job in verified if not job.cancel_requested])
