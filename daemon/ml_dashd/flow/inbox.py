"""Files that clients have left in the inbox while the daemon was down are taken in as if they had come by the socket.

Each gets its id when it is seen, of the time at which it was handed over, before anything that is handed over later,
and for good: so versions are in the order of their hand-offs, whoever is killed. Taking them in goes on in the
background, each user's in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ml_dash.errors import Code, MLDashError, error
from ml_dash.messages import CommitSlot, Duplicate, Message, Put, PutMany, Upload, Wait, Waited
from ml_dashd.core.access import Policy
from ml_dashd.core.model import Job, Trouble
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.bell import longest_wait_ms
from ml_dashd.ports import (
    Catalog,
    Clock,
    Dropped,
    Faults,
    Ids,
    Inbox,
    Journal,
    JournalError,
    Line,
    Service,
    Session,
    Threads,
)

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 1.0
"""Between looks while nobody hands anything over."""
AGAIN_S = 5.0
"""After a file could not be taken in for want of room, say, the next try of its owner's files waits this long."""
TIDY_S = 3600.0
KEEP_NUMBERS_MS = 30 * 24 * 3_600_000
"""How long a file that was left is found by its key."""
FIND_S = 20.0
"""How long a question after a file waits for it to be taken in."""
HAND_OFFS = (Upload, Put, PutMany, CommitSlot, Duplicate)
QUICK_S = 0.005
"""A look that takes longer, in a folder that somebody has filled, is not repeated before ten times as long is over."""
FOR_GOOD = frozenset({
    Code.INVALID_PREFIX, Code.INVALID_PATH, Code.INVALID_METADATA, Code.INVALID_ARGUMENT, Code.NOT_A_FILE,
    Code.NOT_READABLE, Code.TOO_LARGE, Code.SOURCE_CHANGED, Code.SOURCE_LOST, Code.ACCESS_DENIED, Code.PROTOCOL,
})  # fmt: skip
"""Refusals that no time mends; after any other it is tried again."""


@dataclass(slots=True)
class _Waiting:
    dropped: Dropped
    file_id: int
    was_known: bool
    """Whether it had its id before: it may be taken in already."""
    done: asyncio.Event | None = None
    """Of those who ask for it."""


class Adoption:
    """Takes in what lies in the inbox."""

    def __init__(
        self,
        *,
        folder: Inbox,
        accept: Accept,
        journal: Journal,
        catalog: Catalog,
        ids: Ids,
        policy: Policy,
        threads: Threads,
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._folder = folder
        self._accept = accept
        self._journal = journal
        self._catalog = catalog
        self._ids = ids
        self._policy = policy
        self._threads = threads
        self._clock = clock
        self._faults = faults
        self._looking = asyncio.Lock()
        self._not_before = 0.0
        self._left_some = False
        self._told: str | None = None
        self._waiting: dict[tuple[int, bytes], _Waiting] = {}
        self._queues: dict[int, deque[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Gives ids to what has come, in the order of the hand-offs; and has it taken in.

        Raises RETRY_LATER where no id can be made, OSError where the folder, and JournalError where the journal fails.
        """
        async with self._looking:
            began = self._clock.monotonic()
            if began < self._not_before or not (self._left_some or self._folder.changed()):
                return
            self._left_some = True  # until they have their ids: who asks, and is gone by then, has them found once more
            found = await self._threads.run(self._folder.look)
            took_s = self._clock.monotonic() - began
            self._not_before = 0.0 if took_s < QUICK_S else began + 11 * took_s
            new = {(each.uid, each.key): each for each in found if (each.uid, each.key) not in self._waiting}
            known = await self._journal.numbers([*new]) if new else {}
            ids = {key: self._ids.next(each.handed_ms) for key, each in new.items() if key not in known}
            if ids:
                await self._journal.number(ids)
            for key, dropped in new.items():
                self._enqueue(_Waiting(dropped, ids.get(key) or known[key], was_known=key in known))
            self._left_some = False

    async def look_or_tell(self) -> None:
        """`look`; what goes wrong is told once."""
        try:
            await self.look()
        except (OSError, JournalError, MLDashError) as failure:
            if str(failure) != self._told:
                self._told = str(failure)
                log.warning("inbox_not_read", extra={"error": failure})
        else:
            self._told = None

    async def run(self) -> None:
        """Looks for what comes late, of a client that was refused a moment before the daemon was there."""
        tidy_at = self._clock.monotonic()
        while True:
            await self.look_or_tell()
            if self._clock.monotonic() >= tidy_at:
                tidy_at += TIDY_S
                await self._tidy(self._clock.now_ms())
            await self._clock.sleep(LOOK_S)

    async def _tidy(self, now_ms: int) -> None:
        try:
            removed = await self._threads.run(self._folder.tidy, now_ms)
            await self._journal.forget_numbers(now_ms - KEEP_NUMBERS_MS)
        except (OSError, JournalError) as failure:
            log.warning("inbox_not_tidied", extra={"error": failure})
            return
        if removed:
            log.info("inbox_tidied", extra={"files": removed})

    async def close(self) -> None:
        """What is not taken in stays where it is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def find(self, uid: int, key: bytes) -> Job:
        """The file that this user has handed over with that key.

        Raises what it was refused for, TIMEOUT, UNKNOWN_FILE.
        """
        await self.look()
        if (waiting := self._waiting.get((uid, key))) is not None and not await _is_done(waiting, FIND_S):
            raise error(Code.TIMEOUT, "the file is still in the inbox, and is being taken in")
        file_id = (await self._journal.numbers([(uid, key)])).get((uid, key))
        if (job := await self._known(uid, key, file_id)) is not None:
            return job
        if (trouble := await self._threads.run(self._folder.refusal, uid, key)) is not None:
            raise error(trouble.code, trouble.message, trouble.hint)
        raise unknown()

    async def wait(self, uid: int, seconds: float) -> int:
        """Waits so long for what this user has in the inbox to be taken in; returns how many files are left there."""
        await self.look_or_tell()
        queue = self._queues.get(uid, ())
        if queue and not await _is_done(queue[-1], seconds):
            return len(self._queues.get(uid, ()))
        return 0

    def _enqueue(self, waiting: _Waiting) -> None:
        uid = waiting.dropped.uid
        self._waiting[uid, waiting.dropped.key] = waiting
        if uid in self._queues:
            self._queues[uid].append(waiting)
            return
        self._queues[uid] = deque([waiting])
        task = asyncio.create_task(self._empty(uid), name=f"inbox {uid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _empty(self, uid: int) -> None:
        """Takes in one user's files, in their order."""
        queue = self._queues[uid]
        while queue:
            waiting = queue[0]
            while not await self._settle(waiting):
                await self._clock.sleep(AGAIN_S)
            queue.popleft()
            del self._waiting[uid, waiting.dropped.key]
            if waiting.done is not None:
                waiting.done.set()
        del self._queues[uid]

    async def _settle(self, waiting: _Waiting) -> bool:
        """Takes a file in, or refuses it; False where it has to be tried again."""
        dropped = waiting.dropped
        try:
            try:
                known_as = waiting.file_id if waiting.was_known else None
                job = await self._known(dropped.uid, dropped.key, known_as) or await self._take(waiting)
            except MLDashError as refused:
                if refused.code not in FOR_GOOD:
                    raise
                trouble = Trouble(refused.code, refused.message, refused.hint)
                await self._threads.run(self._folder.refuse, dropped, trouble)
                log.warning("inbox_refused", extra={"uid": dropped.uid, "error": refused})
                return True
            self._faults.at("inbox.adopted")
            await self._threads.run(self._folder.remove, dropped)
        except (MLDashError, JournalError, OSError) as failure:
            log.warning("inbox_waits", extra={"uid": dropped.uid, "error": failure})
            return False
        except Exception:
            log.exception("inbox_stumbled", extra={"uid": dropped.uid})
            return False
        self._faults.at("inbox.removed")
        log.info("inbox_adopted", extra={"id": job.id, "path": job.record.path, "uid": dropped.uid})
        return True

    async def _known(self, uid: int, key: bytes, file_id: int | None) -> Job | None:
        """The file of that key, on its way or stored, however long ago."""
        job = await self._journal.handed(uid, key)
        if job is not None or file_id is None:
            return job
        stored = await self._catalog.get([file_id])
        return Job.stored(stored[0]) if stored else None

    async def _take(self, waiting: _Waiting) -> Job:
        dropped = waiting.dropped
        if not self._policy.may_connect(dropped.uid):
            raise error(Code.ACCESS_DENIED, f"uid {dropped.uid} is not served here")
        message, descriptor = await self._threads.run(self._folder.open, dropped)
        try:
            # It is removed from the inbox afterwards: what is kept of it must survive a reboot by itself.
            message = replace(message, durability="disk", origin=None)
            session = Session(number=0, uid=dropped.uid, pid=0)
            return await self._accept.upload(session, message, descriptor, (waiting.file_id, dropped.handed_ms))
        finally:
            os.close(descriptor)


class InboxFirst:
    """A service before which whatever lies in the inbox gets its id."""

    def __init__(self, service: Service, adoption: Adoption) -> None:
        self._service = service
        self._adoption = adoption

    async def handle(
        self, session: Session, message: Message, descriptors: Sequence[int], line: Line
    ) -> tuple[Message, Sequence[int]]:
        if isinstance(message, HAND_OFFS):
            await self._adoption.look_or_tell()
        if isinstance(message, Wait) and message.place is not None:  # for all files of an experiment
            patience_s = longest_wait_ms(message.timeout_ms) / 1000
            if left := await self._adoption.wait(session.uid, patience_s):
                return Waited(request=message.request, reached=0, pending=left), ()
        return await self._service.handle(session, message, descriptors, line)

    def disconnected(self, session: Session) -> None:
        self._service.disconnected(session)


async def _is_done(waiting: _Waiting, seconds: float) -> bool:
    """Waits so long for it to be taken in, or refused."""
    waiting.done = waiting.done or asyncio.Event()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting.done.wait()
    return waiting.done.is_set()


def unknown() -> MLDashError:
    """The error of a key that says nothing here."""
    return error(Code.UNKNOWN_FILE, "no file was handed over here with that key, or it was long ago")
