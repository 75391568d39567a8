"""One SQLite database, one thread, one connection. Calls that come together share one commit.

WAL with synchronous=FULL: a call returns when its change is on stable storage (NORMAL lost acknowledged rows in 19 of
20 power cuts). The log file is made large once and then overwritten in place, so that a commit's fdatasync changes no
file size: growing it would make ext4 write out the trainer's freshly written data first.

On a full disk, calls that take more in are refused, and a reserve lets the others go on: they bring files to their
end, which frees room. After a sync that the disk has refused nothing is written any more: the next would say that all
is well.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ml_dash.errors import TABLE, Code, error
from ml_dashd.core.model import Trouble
from ml_dashd.edge.opening import is_full, open_database
from ml_dashd.edge.reserve import Reserve
from ml_dashd.ports import Faults, JournalError

log = logging.getLogger("ml_dashd.database")

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]
Outcome = tuple[Any, Exception | None]

MAX_BATCH = 256
"""Calls in one transaction: 32 already reach 48,000 rows a second."""
_OF_THE_MACHINE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
"""Primary result codes of sqlite.org/rescode.html; any other error is a defect of ours."""
_SYNC_REFUSED = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}
REFILL_S = 1.0
"""How often a reserve that was given up is looked after while nothing is taken in."""


@dataclass(frozen=True, slots=True)
class _Call:
    work: Work
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    spare: bool
    soon: bool
    after: Callable[[], None] | None


class Database:
    """Runs functions of the connection in its thread, in order, each in a savepoint of a shared transaction.

    `committing` is held while a change is committed.
    """

    def __init__(
        self,
        path: Path,
        migrations: list[str],
        faults: Faults,
        name: str,
        committing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._path = path
        self._faults = faults
        self._name = name
        self._committing = committing
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._closed = False
        self._failed: JournalError | None = None
        self._full_sync = True
        self._reserve = Reserve(path.with_suffix(".reserve"))
        self._refill_at = 0.0
        try:
            self._connection = open_database(path, migrations, self._reserve)
        except BaseException:
            self._reserve.close()
            raise
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def call(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        spare: bool = False,
        soon: bool = False,
        after: Callable[[], None] | None = None,
    ) -> T:
        """The function's result, once what it wrote is on stable storage.

        It may run twice, the first time undone. `spare`: it takes more in, so it is refused where the disk is full. A
        caller that is cancelled does not undo it: what was asked for is done. `soon`: what it wrote is the kernel's
        when it returns, and on stable storage with the next change that is not of this kind. `after` is called in the
        thread then, before anybody is told; it may not fail.
        """
        return await asyncio.shield(self.submit(work, spare=spare, soon=soon, after=after))

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        spare: bool = False,
        soon: bool = False,
        after: Callable[[], None] | None = None,
    ) -> asyncio.Future[T]:
        """What `call` waits for."""
        if self._closed:
            raise error(Code.SHUTTING_DOWN, f"the {self._name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Call(work, loop, future, spare, soon, after))
        return future

    def failure(self) -> JournalError | None:
        """Why nothing more can be taken in; None where all is well."""
        if self._failed is None and not self._reserve.held:
            return self._full()
        return self._failed

    def trouble(self) -> Trouble | None:
        """`failure`, as it is shown."""
        failure = self.failure()
        return None if failure is None else Trouble(failure.code, str(failure), TABLE[failure.code].hint)

    def unsure(self) -> bool:
        """Whether the disk has refused a sync: what was written before it is in the log, and may be on the disk."""
        return self._failed is not None

    def close(self) -> None:
        """Finishes what was asked for, folds the log back and closes. Blocks. Idempotent."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch)
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as failure:  # the log is read again at the next start
            log.warning("log_not_folded", extra={"database": self._name, "error": failure})
        self._connection.close()
        self._reserve.close()

    def _take(self) -> list[_Call] | None:
        first = self._next()
        if first is None:
            return None
        batch = [first]
        while len(batch) < MAX_BATCH and not self._queue.empty():
            entry = self._queue.get()
            if entry is None:
                self._queue.put(None)
                break
            batch.append(entry)
        return batch

    def _next(self) -> _Call | None:
        """Waits for a call. While the reserve is given up it looks for room meanwhile: nobody may be calling."""
        while True:
            looking = not self._reserve.held and self._failed is None
            try:
                return self._queue.get(timeout=REFILL_S if looking else None)
            except Empty:
                self._refill(asked=True)

    def _run(self, batch: list[_Call]) -> None:
        self._refill(asked=any(call.spare for call in batch))
        failed = self._failed
        outcomes = self._transact(batch)
        if self._failed is not failed:  # what only reads is answered all the same
            outcomes = self._transact(batch)
        if self._failed is None and any(is_full(failure) for _, failure in outcomes):
            outcomes = self._run_again(batch, outcomes)
        self._follow(batch, outcomes)
        _resolve(batch, [(result, self._named(failure)) for result, failure in outcomes])

    def _follow(self, batch: Sequence[_Call], outcomes: Sequence[Outcome]) -> None:
        for call, (_, failure) in zip(batch, outcomes, strict=True):
            if call.after is not None and failure is None:
                try:
                    call.after()
                except Exception:  # what was asked for is done, and this thread is everybody's
                    log.exception("not_followed", extra={"database": self._name})

    def _transact(self, batch: Sequence[_Call]) -> list[Outcome]:
        """One transaction; its failure is that of all."""
        outcomes: list[Outcome] = []
        try:
            self._set_sync(full=not all(call.soon for call in batch))
            # What may not write any more can still be read.
            self._connection.execute("BEGIN IMMEDIATE" if self._failed is None else "BEGIN")
            changes = self._connection.total_changes
            # A call that is alone needs no savepoint: its failure may undo everything.
            attempt = _attempt if len(batch) > 1 else _attempt_alone
            outcomes.extend(self._unless_full(call) or attempt(self._connection, call.work) for call in batch)
            self._commit(wrote=self._connection.total_changes > changes)
        except Exception as failure:  # noqa: BLE001 handed to the callers, whatever it is
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if getattr(failure, "sqlite_errorcode", 0) in _SYNC_REFUSED:
                self._stop_writing(failure)
            outcomes = [(None, failure)] * len(batch)
        return outcomes

    def _set_sync(self, *, full: bool) -> None:
        """Whether the next commit waits for the disk. One that does brings those before it along."""
        if full is not self._full_sync:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full_sync = full

    def _commit(self, *, wrote: bool) -> None:
        """Ends the transaction; one that only read is no durable step."""
        if not wrote:
            self._connection.execute("COMMIT")
            return
        self._faults.at(f"{self._name}.before_commit")
        with self._committing():
            self._connection.execute("COMMIT")
        self._faults.at(f"{self._name}.after_commit")

    # ---- full and failing disks

    def _unless_full(self, call: _Call) -> Outcome | None:
        """A refusal for what takes more in while the reserve is in use."""
        return (None, self._full()) if call.spare and not self._reserve.held and self._failed is None else None

    def _run_again(self, batch: Sequence[_Call], outcomes: list[Outcome]) -> list[Outcome]:
        """The disk is full: what lets files go on is tried again without the rest, and then with the reserve.

        Where that does not help, each by itself: what only reads is answered.
        """
        left = [at for at, (_, failure) in enumerate(outcomes) if is_full(failure) and not batch[at].spare]
        while left:
            again = dict(zip(left, self._transact([batch[at] for at in left]), strict=True))
            outcomes = [again.get(at, outcome) for at, outcome in enumerate(outcomes)]
            left = [at for at in left if is_full(outcomes[at][1])]
            if left and not self._reserve.release():
                outcomes = self._run_alone(batch, outcomes, left)
                break
            if left:
                log.warning("disk_full", extra={"database": self._name, "path": self._path})
        return outcomes

    def _run_alone(self, batch: Sequence[_Call], outcomes: Sequence[Outcome], left: Sequence[int]) -> list[Outcome]:
        alone = {at: self._transact([batch[at]])[0] for at in left}
        return [alone.get(at, outcome) for at, outcome in enumerate(outcomes)]

    def _refill(self, *, asked: bool) -> None:
        """Takes the reserve back as soon as there is room: at once where somebody needs to know."""
        if not self._reserve.held and self._failed is None and (asked or time.monotonic() >= self._refill_at):
            self._refill_at = time.monotonic() + REFILL_S
            if self._reserve.fill():
                log.info("disk_has_room", extra={"database": self._name})

    def _stop_writing(self, failure: Exception) -> None:
        self._failed = JournalError(f"the {self._name}'s disk refused a sync: {failure}", Code.DISK_FAILED)
        event = {"database": self._name, "path": self._path, "error": failure}
        log.critical("read_only", extra=event)
        self._connection.execute("PRAGMA query_only=ON")

    def _full(self) -> JournalError:
        return JournalError(f"the disk of {self._path} is full, or a quota on it is used up", Code.DISK_FULL)

    def _named(self, failure: Exception | None) -> Exception | None:
        """What the machine is to blame for, as a JournalError; anything else as it is."""
        code = getattr(failure, "sqlite_errorcode", 0) & 0xFF  # Python's own errors have none
        if code not in _OF_THE_MACHINE:
            return failure
        if self._failed is not None:
            return self._failed
        if is_full(failure):
            return self._full()
        named = JournalError(f"the {self._name} can't be used now: {failure}", Code.DISK_FAILED)
        named.__cause__ = failure
        return named


def _attempt_alone(connection: sqlite3.Connection, work: Work) -> Outcome:
    return work(connection), None


def _attempt(connection: sqlite3.Connection, work: Work) -> Outcome:
    """One call in its own savepoint: its failure undoes it alone."""
    connection.execute("SAVEPOINT call")
    try:
        result = work(connection)
    except Exception as failure:
        if not connection.in_transaction:  # SQLite has undone it all, as on a full disk: it is everybody's
            raise
        connection.execute("ROLLBACK TO call")
        connection.execute("RELEASE call")
        return None, failure
    connection.execute("RELEASE call")
    return result, None


def _resolve(batch: Sequence[_Call], outcomes: Sequence[Outcome]) -> None:
    """Hands the outcomes over, each in the loop of its caller: one call a loop, which is one for a daemon."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, Exception | None]]] = {}
    for call, (result, failure) in zip(batch, outcomes, strict=True):
        by_loop.setdefault(call.loop, []).append((call.future, result, failure))
    for loop, ended in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, ended)


def _settle(ended: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, result, failure in ended:
        if future.done():
            continue
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)
