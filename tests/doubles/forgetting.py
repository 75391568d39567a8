"""What a disk that is lost takes with it: the rows of files in a daemon's databases, while it does not run."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.harness import DaemonProcess


def forget(daemon: DaemonProcess, *ids: str, databases: tuple[str, ...] = ("journal", "catalog")) -> None:
    """Drops them; all, where none are named."""
    for database in databases:
        with closing(sqlite3.connect(daemon.state / f"{database}.sqlite")) as connection, connection:
            connection.execute("PRAGMA foreign_keys=ON")
            where = f"WHERE id IN ({', '.join('?' * len(ids))})" if ids else ""
            connection.execute(f"DELETE FROM files {where}", [int(one) for one in ids])
