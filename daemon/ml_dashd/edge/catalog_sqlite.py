"""The catalog of one machine: SQLite, in a file of its own, so that it can be copied and read by other programs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ml_dashd.core.model import FileRecord, Selection
from ml_dashd.edge.database import Database
from ml_dashd.edge.rows import insert, marks, read_record, record_values, selection_where
from ml_dashd.ports import Faults

MIGRATIONS = [
    """
    CREATE TABLE files (
        id INTEGER PRIMARY KEY, owner_uid INTEGER NOT NULL,
        namespace TEXT NOT NULL, project TEXT NOT NULL, experiment TEXT NOT NULL,
        prefix TEXT NOT NULL, filename TEXT NOT NULL, path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, content_type TEXT NOT NULL,
        created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, uploaded_ms INTEGER, deleted_ms INTEGER,
        description TEXT, tags TEXT NOT NULL, bindrs TEXT NOT NULL, metadata TEXT,
        sha256 TEXT NOT NULL, crc64nvme BLOB, key TEXT NOT NULL, etag TEXT
    ) STRICT;
    CREATE INDEX files_by_path ON files (namespace, project, experiment, path, id DESC) WHERE deleted_ms IS NULL;
    CREATE INDEX files_by_sha256 ON files (sha256);
    CREATE INDEX files_deleted ON files (deleted_ms) WHERE deleted_ms IS NOT NULL;
    """
]


class SqliteCatalog:
    """The `Catalog` of ports.py."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._database = Database(path, MIGRATIONS, faults, "catalog")

    async def commit(self, record: FileRecord) -> FileRecord:
        values = record_values(record)
        # What may have changed since is left as it is; a repeated commit finds its own row.
        statement = insert("files", values) + " ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING *"

        def work(connection: sqlite3.Connection) -> FileRecord:
            return read_record(connection.execute(statement, tuple(values.values())).fetchone())

        return await self._database.call(work)

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        return await self._records(f"SELECT * FROM files WHERE id IN ({marks(ids)})", ids)

    async def select(self, selection: Selection) -> list[FileRecord]:
        where, values = selection_where(selection)
        return await self._records(f"SELECT * FROM files WHERE deleted_ms IS NULL AND {where}", values)

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        statement = f"UPDATE files SET deleted_ms = coalesce(deleted_ms, ?) WHERE id IN ({marks(ids)}) RETURNING id"
        return await self._database.call(
            lambda connection: [row["id"] for row in connection.execute(statement, [at_ms, *ids]).fetchall()]
        )

    async def close(self) -> None:
        self._database.close()

    async def _records(self, statement: str, values: Sequence[object]) -> list[FileRecord]:
        return await self._database.call(
            lambda connection: [read_record(row) for row in connection.execute(statement, values).fetchall()]
        )
