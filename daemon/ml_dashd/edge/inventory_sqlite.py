"""What is compared with the store, in the catalog of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple

from ml_dashd.core.model import FileRecord
from ml_dashd.core.rounds import Round
from ml_dashd.edge.database import Database
from ml_dashd.edge.rows import marks, read_record

INVENTORY = """
ALTER TABLE files ADD COLUMN missing_ms INTEGER;
CREATE INDEX files_by_key ON files (key) WHERE reclaimed_ms IS NULL;
CREATE TABLE round (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    holder TEXT NOT NULL, until_ms INTEGER NOT NULL, after TEXT NOT NULL, ended_ms INTEGER NOT NULL
) STRICT;
INSERT INTO round VALUES (1, '', 0, '', 0);
"""
"""The step of the catalog's schema with which it came."""


class SqliteInventory:
    """The `Inventory` of ports."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begun = False
        """What is noted of turns is this process's."""

    async def records(self, after: str, limit: int) -> list[FileRecord]:
        statement = "SELECT * FROM files WHERE reclaimed_ms IS NULL AND key > ? ORDER BY key LIMIT ?"
        return await self._database.call(
            lambda connection: [read_record(row) for row in connection.execute(statement, (after, limit)).fetchall()]
        )

    async def mark(self, records: Sequence[FileRecord], missing_ms: int | None) -> None:
        since = "NULL" if missing_ms is None else "coalesce(missing_ms, ?)"
        values = [*([] if missing_ms is None else [missing_ms]), *(record.id for record in records)]
        statement = f"UPDATE files SET missing_ms = {since} WHERE id IN ({marks(records)}) AND deleted_ms IS NULL"
        await self._database.call(lambda connection: connection.execute(statement, values).close())

    async def round(self) -> Round:
        """The catalog is one daemon's: who had the turn before this process has ended, and this one goes on with it."""

        def work(connection: sqlite3.Connection) -> Round:
            if not self._begun:
                connection.execute("UPDATE round SET holder = '', until_ms = 0")
            return Round(*connection.execute("SELECT holder, until_ms, after, ended_ms FROM round").fetchone())

        found = await self._database.call(work)
        self._begun = True
        return found

    async def turn(self, was: Round, now: Round) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            to = "UPDATE round SET holder = ?, until_ms = ?, after = ?, ended_ms = ?"
            where = "WHERE holder = ? AND until_ms = ? AND after = ? AND ended_ms = ?"
            return connection.execute(f"{to} {where}", (*astuple(now), *astuple(was))).rowcount == 1

        taken = await self._database.call(work)
        self._begun = self._begun or taken
        return taken
