"""The examination that `ml-dash doctor` asks for: every call to the store is made once, then the machine is looked at.

What it makes in the store is removed, after a crash by the next start. Each step has its time; one that fails is a
line, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ml_dash.errors import TABLE, MLDashError
from ml_dashd.core import checkup
from ml_dashd.core.checksum import combine, digest
from ml_dashd.core.checkup import Check
from ml_dashd.core.model import Algorithm, Evidence, Target, Trouble
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.health import Health, waits
from ml_dashd.flow.lease import NodeNumber
from ml_dashd.flow.scratch import Scratch
from ml_dashd.ports import Catalog, Clock, Examiner, Journal, JournalError, Machine, Pins, Store, Threads

T = TypeVar("T")

log = logging.getLogger("ml_dashd.flow")

STEP_S = 20.0
"""For a call, or a look at a disk: twice what a connection may take to come about."""
PROBE_S = 120.0
"""To find out what a server does takes 5 MiB."""
STORE_S = 400.0
"""All calls, each in its time."""
COMMITS = 9
BODY = memoryview(b"ml-dash doctor was here, and this will be gone in a moment\n")


class Doctor:
    """Examines the daemon.

    `quota_bytes` and `named` are settings: spool.quota, and whether store.checksum is one. `place` is the catalog's,
    for people.
    """

    def __init__(
        self,
        *,
        store: Store,
        examiner: Examiner | None,
        checksums: Checksums,
        scratch: Scratch,
        journal: Journal,
        catalog: Catalog,
        place: str,
        pins: Pins,
        machine: Machine,
        threads: Threads,
        health: Health,
        clock: Clock,
        number: NodeNumber | None,
        quota_bytes: int,
        named: bool,
    ) -> None:
        self._store = store
        self._examiner = examiner
        self._checksums = checksums
        self._scratch = scratch
        self._journal = journal
        self._catalog = catalog
        self._place = place
        self._pins = pins
        self._machine = machine
        self._threads = threads
        self._health = health
        self._clock = clock
        self._number = number
        self._quota_bytes = quota_bytes
        self._named = named

    async def run(self) -> list[Check]:
        """All checks, in an order for people."""
        return [
            *await self._step("store", self._examine_store, STORE_S),
            *await self._step("disks", lambda: self._threads.run(self._machine.disks)),
            *await self._step("spool quota", self._examine_quota),
            *await self._step("journal", self._examine_journal),
            checkup.intake_check(self._refusing()),
            *await self._step("catalog", self._examine_catalog),
            *self._examine_number(),
            *await self._step("limits", lambda: self._threads.run(self._machine.limits)),
        ]

    def _refusing(self) -> Trouble | None:
        """Why files are not taken in; what keeps them from being stored, or listed, has a line of its own."""
        trouble = self._health.trouble()
        return None if waits(trouble) else trouble

    def _examine_number(self) -> list[Check]:
        """Of a fleet's node."""
        number = self._number
        if number is None:
            return []
        held = 0 if number.lease is None else number.lease.number
        return [checkup.node_check(held, number.left_s(), number.trouble())]

    async def _step(
        self, name: str, work: Callable[[], Awaitable[list[Check]]], seconds: float = STEP_S
    ) -> list[Check]:
        try:
            async with asyncio.timeout(seconds):
                return await work()
        except TimeoutError:
            return [
                checkup.bad(name, f"no answer for {seconds:g} s", "see what its disk, or the network, is busy with")
            ]
        except JournalError as failure:
            return [checkup.bad(name, f"{failure.code}: {failure}", TABLE[failure.code].hint)]
        except (OSError, StoreError, MLDashError) as failure:
            return [checkup.bad(name, str(failure) or type(failure).__name__, "see the daemon's log")]

    # ---- the store

    async def _examine_store(self) -> list[Check]:
        calls = Calls(self._store, self._examiner)
        if self._examiner is None:
            async with self._scratch.number() as number:
                await calls.make_of_folder(number)
            return calls.checks
        reach = await self._examiner.reach()
        checks = checkup.reach_checks(reach)
        if not reach.answered or reach.provider is None:
            refused = reach.failure if reach.failure and reach.failure.fault is Fault.CREDENTIALS else None
            if reach.provider is None or refused is not None:
                checks.append(checkup.credentials_check(reach.provider, refused))
            return [*checks, *calls.none_of_them("the server was not reached")]
        async with self._scratch.number() as number:
            await calls.make(number)
        checks.append(checkup.credentials_check(reach.provider, calls.refused_as(Fault.CREDENTIALS)))
        if calls.refused_as(Fault.CREDENTIALS) is None:
            checks.append(checkup.bucket_check(calls.refused_as(Fault.NO_BUCKET)))
        checksum = await self._step("checksum", lambda: self._examine_checksum(calls), PROBE_S)
        return [*checks, *calls.checks, *checksum]

    async def _examine_checksum(self, calls: Calls) -> list[Check]:
        reached = calls.first_failure is None or calls.first_failure.fault is Fault.DENIED
        if await self._checksums.known() is None and (not reached or any(check.failed for check in calls.checks)):
            return [checkup.none("checksum", "not tried: the calls above come first")]
        found = await self._checksums.capabilities()
        chosen = await self._checksums.algorithm()
        checks = [checkup.checksum_check(chosen, named=self._named)]
        return checks if found is None else [*checks, checkup.capabilities_check(found)]

    # ---- the rest

    async def _examine_quota(self) -> list[Check]:
        return [checkup.quota_check(await self._threads.run(self._pins.spool_bytes), self._quota_bytes)]

    async def _examine_journal(self) -> list[Check]:
        took = []
        for _ in range(COMMITS):
            began = self._clock.monotonic()
            await self._journal.probe()
            took.append(self._clock.monotonic() - began)
        return [checkup.commit_check(took)]

    async def _examine_catalog(self) -> list[Check]:
        began = self._clock.monotonic()
        await self._catalog.get([1])
        took = (self._clock.monotonic() - began) * 1000
        return [checkup.ok("catalog", f"{self._place} answers in {took:.1f} ms")]


class Calls:
    """Every call that the daemon makes of a store, made once on a small object; `checks` tells how each fared."""

    def __init__(self, store: Store, examiner: Examiner | None) -> None:
        self._store = store
        self._examiner = examiner
        self._failures: dict[str, StoreError | None] = {}
        self.checks: list[Check] = []

    def none_of_them(self, because: str) -> list[Check]:
        """Where there is no use in trying."""
        return [checkup.untried(operation, self._store.url, because) for operation in checkup.OPERATIONS]

    def refused_as(self, fault: Fault) -> StoreError | None:
        """What the first call was refused with, if it is of this family."""
        failure = self.first_failure
        return failure if failure is not None and failure.fault is fault else None

    @property
    def first_failure(self) -> StoreError | None:
        """How the first call fared."""
        return next(iter(self._failures.values()), None)

    async def make_of_folder(self, number: int) -> None:
        """Those that a folder has."""
        target = Target(self._store.scratch(number), number, len(BODY), "text/plain", Algorithm.NONE)
        await self._make_whole(target)
        await self._try("DeleteObject", lambda: self._store.delete(target.key), "PutObject")

    async def make(self, number: int) -> None:
        """All of them, those that the daemon does without, too. None, where the first shows that all would fail."""
        target = Target(self._store.scratch(number), number, len(BODY), "text/plain", Algorithm.NONE)
        await self._try("ListMultipartUploads", lambda: self._list_uploads(target.key))
        first = self._failures["ListMultipartUploads"]
        if first is not None and first.fault is not Fault.DENIED:
            told = first.fault in (Fault.CREDENTIALS, Fault.NO_BUCKET)  # they have lines of their own
            others = self.none_of_them("the store has to be mended first")
            self.checks = others if told else [*self.checks, *others[1:]]
            return
        await self._try("ListBucket", lambda: self._store.head(target.key))
        await self._make_whole(target)
        await self._make_parts(target)
        await self._try("DeleteObject", lambda: self._store.delete(target.key), "PutObject")

    async def _make_whole(self, target: Target) -> None:
        sent = digest(BODY, Algorithm.NONE)
        await self._try("PutObject", lambda: self._store.put(target, BODY, sent))
        await self._try("HeadObject", lambda: self._look(target.key), "PutObject")
        await self._try("GetObject", lambda: self._read(target.key), "PutObject")

    async def _make_parts(self, target: Target) -> None:
        store, sent = self._store, digest(BODY, Algorithm.NONE)
        upload = await self._try("CreateMultipartUpload", lambda: store.begin(target)) or ""
        part = await self._try(
            "UploadPart",
            lambda: store.send_part(target, upload, Part(1, 0, len(BODY)), BODY, sent),
            "CreateMultipartUpload",
        )
        await self._try("ListParts", lambda: store.list_parts(target, upload, len(BODY)), "UploadPart")
        parts = [part] if part is not None else []
        whole = combine([sent], Algorithm.NONE)
        await self._try("CompleteMultipartUpload", lambda: store.complete(target, upload, parts, whole), "UploadPart")
        if self._examiner is not None and self._failures.get("CreateMultipartUpload", True) is None:
            await self._make_optional(self._examiner, target)
        await self._try("AbortMultipartUpload", lambda: self._abort(target), "ListParts")

    async def _make_optional(self, examiner: Examiner, target: Target) -> None:
        try:
            async with asyncio.timeout(STEP_S):
                upload = await self._store.begin(target)
                for operation, failure in (await examiner.optional(target.key, upload)).items():
                    self.checks.append(checkup.optional_check(operation, failure))
        except (StoreError, TimeoutError) as failure:
            log.info("examination_stumbled", extra={"error": failure})

    async def _try(self, operation: str, call: Callable[[], Awaitable[T]], needs: str = "") -> T | None:
        """Makes a call and notes how it went; not after the failure of one without which it can't be made."""
        url = self._store.url
        if needs and self._failures.get(needs, True) is not None:
            self.checks.append(checkup.untried(operation, url, f"{needs} failed"))
            return None
        result, failure = None, None
        try:
            async with asyncio.timeout(STEP_S):
                result = await call()
        except TimeoutError:
            failure = StoreError(Fault.TRANSIENT, f"no answer for {STEP_S:g} s")
        except StoreError as refused:
            failure = refused
        self._failures[operation] = failure
        self.checks.append(checkup.call_check(operation, failure, url))
        return result

    async def _list_uploads(self, key: str) -> list[str]:
        return [each.upload_id async for each in self._store.uploads(key)]

    async def _look(self, key: str) -> Evidence:
        if (stated := await self._store.head(key)) is None or stated.size_bytes != len(BODY):
            raise StoreError(Fault.TRANSIENT, f"what was just stored is stated as {stated}")
        return stated

    async def _read(self, key: str) -> None:
        read = memoryview(bytearray(len(BODY)))
        await self._store.read(key, 0, read, lambda _: None)
        if read != BODY:
            raise StoreError(Fault.CORRUPT, f"{len(read)} other bytes came back")

    async def _abort(self, target: Target) -> None:
        await self._store.abort(target, await self._store.begin(target))
