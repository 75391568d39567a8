"""Small files, many at a time: one commit, one look into the journal, serves them all.

Each goes the way of flow/upload.py: its key is journaled before it is sent (rule 2), its object is verified by the
store's own answer (rule 5), and the catalog comes after that (rule 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_dash.errors import Code, error
from ml_dashd.core.model import Algorithm, Job, PinKind
from ml_dashd.core.plan import MIB
from ml_dashd.core.retry import StoreError
from ml_dashd.core.states import State
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.single import Single
from ml_dashd.ports import Faults, Journal, Store

TOGETHER_BYTES = 4 * MIB
"""The largest file that goes with others: of larger ones the commits are a small part, and each can be taken back."""
CHUNK, CHUNK_BYTES = 128, 16 * MIB
"""Files that share their commits, and their bytes. Several chunks are under way at once, so that the line is busy while
one is committed."""
SENDERS = 32
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
        single: Single,
        faults: Faults,
    ) -> None:
        self._journal = journal
        self._store = store
        self._finish = finish
        self._checksums = checksums
        self._single = single
        self._faults = faults

    @staticmethod
    def takes(job: Job) -> bool:
        """Whether a file can go this way from where it stands."""
        here = job.state in (State.QUEUED, State.SENDING) and not job.cancel_requested
        return here and job.pin.kind is not PinKind.OBJECT and job.record.size_bytes <= TOGETHER_BYTES

    @staticmethod
    def chunks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Parts files in those that go together, in their order."""
        chunk: list[Job] = []
        size_bytes = 0
        for job in jobs:
            if chunk and (len(chunk) == CHUNK or size_bytes + job.record.size_bytes > CHUNK_BYTES):
                yield chunk
                chunk, size_bytes = [], 0
            chunk.append(job)
            size_bytes += job.record.size_bytes
        if chunk:
            yield chunk

    async def run(self, jobs: Sequence[Job]) -> list[Stumble]:
        """Takes files to their end; returns those that stumbled. Raises what keeps all of them from going on."""
        try:
            algorithm = await self._checksums.algorithm()
        except StoreError as away:
            return [(job, await self._single.reason(job, away)) for job in jobs]
        inline = [job.id for job in jobs if job.pin.kind is PinKind.INLINE]
        contents = await self._journal.contents(inline) if inline else {}
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
            outcome = await self._outcome(job, contents)
            if isinstance(outcome, Exception):
                stumbled.append((job, outcome))
            else:
                proved.append((job, outcome))

    async def _outcome(self, job: Job, contents: Mapping[int, bytes]) -> dict[str, Any] | Exception:
        """What the journal is to note of one file, or its failure; what follows then is the worker's to decide.

        It is no part of `_send`: a failure holds the frames that it passed, and would hold the list that it is in.
        """
        try:
            return await self._put(job, contents)
        except Exception as failure:  # noqa: BLE001 whatever it is
            return failure

    async def _put(self, job: Job, contents: Mapping[int, bytes]) -> dict[str, Any]:
        """Stores one file and returns what the journal is to note of it."""
        content = contents.get(job.id, b"")
        if job.pin.kind is PinKind.INLINE and job.id not in contents:
            path = job.record.path
            raise error(Code.SOURCE_LOST, f"the journal no longer has the content of {path} (file {job.id})")
        return await self._single.put(job, content)

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
