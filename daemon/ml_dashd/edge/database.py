"""One SQLite database, one thread, one connection. Calls that come together share one commit.

WAL with synchronous=FULL: a call returns when its change is on stable storage (NORMAL lost acknowledged rows in 19 of
20 power cuts). The log file is made large once and then overwritten in place, so that a commit's fdatasync changes no
file size: growing it would make ext4 write out the trainer's freshly written data first.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from ml_dash.errors import Code, error
from ml_dashd.ports import Faults, JournalError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

MAX_BATCH = 256
"""Calls in one transaction: 32 already reach 48,000 rows a second."""
LOCKED_S = 30.0
"""How long a commit waits for another program that has the file locked, such as a backup."""
_OF_THE_MACHINE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
"""Primary result codes of sqlite.org/rescode.html; any other error is a defect of ours."""
WAL_PAGES = 1024
"""The log's size in 4 KiB pages at which it is folded back; it is made this large at the start."""


class Database:
    """Runs functions of the connection in its thread, in order, each in a savepoint of a shared transaction."""

    def __init__(self, path: Path, migrations: list[str], faults: Faults, name: str) -> None:
        self._faults = faults
        self._name = name
        self._queue: SimpleQueue[tuple[Work, asyncio.AbstractEventLoop, asyncio.Future[Any]] | None] = SimpleQueue()
        self._closed = False
        self._connection = _open(path, migrations)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The function's result, once what it wrote is on stable storage.

        A caller that is cancelled does not undo it: what was asked for is done.
        """
        if self._closed:
            raise error(Code.SHUTTING_DOWN, f"the {self._name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((work, loop, future))
        return await asyncio.shield(future)

    def close(self) -> None:
        """Finishes what was asked for, folds the log back and closes. Blocks. Idempotent."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _take(self) -> list[tuple[Work, asyncio.AbstractEventLoop, asyncio.Future[Any]]] | None:
        first = self._queue.get()
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

    def _run(self, batch: list[tuple[Work, asyncio.AbstractEventLoop, asyncio.Future[Any]]]) -> None:
        outcomes: list[tuple[Any, Exception | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            changes = self._connection.total_changes
            # A call that is alone needs no savepoint: its failure may undo everything.
            attempt = _attempt if len(batch) > 1 else _attempt_alone
            outcomes.extend(attempt(self._connection, work) for work, _, _ in batch)
            self._commit(wrote=self._connection.total_changes > changes)
        except Exception as failure:  # noqa: BLE001 handed to the callers, whatever it is
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            outcomes = [(None, failure)] * len(batch)
        _resolve(batch, [(result, _named(failure, self._name)) for result, failure in outcomes])

    def _commit(self, *, wrote: bool) -> None:
        """Ends the transaction; one that only read is no durable step."""
        if wrote:
            self._faults.at(f"{self._name}.before_commit")
        self._connection.execute("COMMIT")
        if wrote:
            self._faults.at(f"{self._name}.after_commit")


def _named(failure: Exception | None, name: str) -> Exception | None:
    """What the machine is to blame for, as a JournalError; anything else as it is. Python's own errors have no code."""
    if getattr(failure, "sqlite_errorcode", 0) & 0xFF not in _OF_THE_MACHINE:
        return failure
    named = JournalError(f"the {name} can't be used now: {failure}")
    named.__cause__ = failure
    return named


def _attempt_alone(connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
    return work(connection), None


def _attempt(connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
    """One call in its own savepoint: its failure undoes it alone."""
    connection.execute("SAVEPOINT call")
    try:
        result = work(connection)
    except Exception as failure:  # noqa: BLE001 handed to the caller, whatever it is
        connection.execute("ROLLBACK TO call")
        connection.execute("RELEASE call")
        return None, failure
    connection.execute("RELEASE call")
    return result, None


def _resolve(
    batch: list[tuple[Work, asyncio.AbstractEventLoop, asyncio.Future[Any]]],
    outcomes: list[tuple[Any, Exception | None]],
) -> None:
    """Hands the outcomes over, each in the loop of its caller: one call a loop, which is one for a daemon."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, Exception | None]]] = {}
    for (_, loop, future), (result, failure) in zip(batch, outcomes, strict=True):
        by_loop.setdefault(loop, []).append((future, result, failure))
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


def _open(path: Path, migrations: list[str]) -> sqlite3.Connection:
    path.touch(0o600)
    path.chmod(0o600)  # before SQLite makes the log, which gets the same mode and holds the same secrets
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=LOCKED_S
    )
    try:
        _prepare(connection, path, migrations)
    except sqlite3.Error as failure:
        connection.close()
        raise error(Code.DISK_FAILED, f"{path}: {failure}", "put a copy of it back, or move it away") from None
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, migrations: list[str]) -> None:
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"wal_autocheckpoint={WAL_PAGES}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    _migrate(connection, path, migrations)
    _stretch_log(connection)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: list[str]) -> None:
    """Brings the schema up to date, each step in its own transaction; user_version counts the steps done."""
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(migrations):
        raise error(
            Code.CONFIG,
            f"{path} was made by a newer release (schema {done}, this one knows {len(migrations)})",
            "run that release, or give this one its own state_dir",
        )
    for number, script in enumerate(migrations[done:], start=done + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT;")


def _stretch_log(connection: sqlite3.Connection) -> None:
    """Writes the log to its full size once, then folds it back; SQLite goes on overwriting it from the start."""
    connection.executescript(
        "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS stretch (filler BLOB);"
        f"INSERT INTO stretch VALUES (zeroblob({WAL_PAGES * 4096})); DROP TABLE stretch; COMMIT;"
        "PRAGMA wal_checkpoint(RESTART);"
    )
