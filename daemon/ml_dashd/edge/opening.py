"""How a SQLite database is opened: its settings, its schema, its log, and what is said of one that can't be used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.edge.reserve import Reserve

LOCKED_S = 30.0
"""How long a commit waits for another program that has the file locked, such as a backup."""
WAL_PAGES = 1024
"""The log's size in 4 KiB pages at which it is folded back; it is made this large at the start."""
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
"""A user's quota is no SQLITE_FULL: SQLite knows ENOSPC alone by that name, and calls EDQUOT a failed write."""


def open_database(path: Path, migrations: list[str], reserve: Reserve | None = None) -> sqlite3.Connection:
    """A connection, the schema up to date; with a reserve, room set aside, and the log stretched.

    Raises DISK_FULL, DISK_FAILED, or CONFIG for one of a newer release.
    """
    path.touch(0o600)
    path.chmod(0o600)  # before SQLite makes the log, which gets the same mode and holds the same secrets
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=LOCKED_S
    )
    try:
        try:
            _prepare(connection, path, migrations)
        except sqlite3.OperationalError:
            if reserve is None or not reserve.release():  # left by an earlier life, for a start on a full disk, too
                raise
            _prepare(connection, path, migrations)
        if reserve is not None and reserve.fill():  # a log that is not stretched is only slower
            _stretch_log(connection, path)
    except sqlite3.Error as failure:
        connection.close()
        raise _unusable(path, failure) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _unusable(path: Path, failure: sqlite3.Error) -> MLDashError:
    """By the path that a user knows: an embedded daemon's own goes through its working folder."""
    if is_full(failure):
        return error(Code.DISK_FULL, f"the disk of {path.resolve()} is full, or a quota on it is used up")
    return error(Code.DISK_FAILED, f"{path.resolve()}: {failure}", "put a copy of it back, or move it away")


def _prepare(connection: sqlite3.Connection, path: Path, migrations: list[str]) -> None:
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"wal_autocheckpoint={WAL_PAGES}",
        "foreign_keys=ON",
        "temp_store=MEMORY",
        # Some builds write zeros over every page that is freed: a row that changes, of many pages, took twice as many.
        "secure_delete=FAST",
    ):
        connection.execute(f"PRAGMA {pragma}")
    _migrate(connection, path, migrations)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: list[str]) -> None:
    """Brings the schema up to date, each step in its own transaction; user_version counts the steps done."""
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(migrations):
        raise error(
            Code.CONFIG,
            f"{path.resolve()} was made by a newer release (schema {done}, this one knows {len(migrations)})",
            "run that release, or give this one its own state_dir",
        )
    for number, script in enumerate(migrations[done:], start=done + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT;")


def _stretch_log(connection: sqlite3.Connection, path: Path) -> None:
    """Writes the log to its full size once, then folds it back; SQLite goes on overwriting it from the start.

    A daemon that was killed has left it at that size: more would be written behind it.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        if not log.exists() or log.stat().st_size < WAL_PAGES * 4096:
            connection.executescript(
                "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS stretch (filler BLOB);"
                f"INSERT INTO stretch VALUES (zeroblob({WAL_PAGES * 4096})); DROP TABLE stretch; COMMIT;"
            )
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
    except sqlite3.OperationalError as failure:
        if not is_full(failure):
            raise
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def is_full(failure: Exception | None) -> bool:
    """Whether its disk is full, or a quota on it is used up."""
    return getattr(failure, "sqlite_errorcode", 0) in _NO_ROOM
