"""The catalog of one machine: SQLite, in a file of its own, so that it can be copied and read by other programs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ml_dash.errors import MLDashError
from ml_dashd.core.model import FileRecord, Scope, Selection, Trouble
from ml_dashd.edge.database import LOCKED_S, Database, open_database
from ml_dashd.edge.listing import ENDING, read_selection
from ml_dashd.edge.rows import RECORD_COLUMNS, insert, marks, read_record, record_values, scope_where
from ml_dashd.ports import Faults, JournalError

log = logging.getLogger("ml_dashd.catalog")

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
    """,
    # Globs such as **/*.json and images/*.png.
    f"""
    CREATE INDEX files_by_ending ON files (namespace, project, experiment, {ENDING}, path, id DESC)
        WHERE deleted_ms IS NULL;
    """,
]
_LISTED = "deleted_ms IS NULL"


class SqliteCatalog:
    """The `Catalog` of ports.py."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._database = Database(path, MIGRATIONS, faults, "catalog")
        self._path = path
        self._exported = -1

    async def commit(self, records: Sequence[FileRecord]) -> None:
        rows = [record_values(record) for record in records]
        # What may have changed since is left as it is; a repeated commit finds its own row.
        statement = insert("files", rows[0], len(rows)) + " ON CONFLICT (id) DO NOTHING"
        values = [value for row in rows for value in row.values()]
        await self._database.call(lambda connection: connection.execute(statement, values).close())

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        return await self._records(f"SELECT * FROM files WHERE id IN ({marks(ids)})", ids)

    async def select(self, selection: Selection) -> list[FileRecord]:
        return await self._database.call(
            lambda connection: [
                read_record(row)
                for row in read_selection(connection, selection, RECORD_COLUMNS, _LISTED, by_ending=True)
            ]
        )

    async def newer(self, after: int, scope: Scope, limit: int) -> list[FileRecord]:
        where, values = scope_where(scope)
        statement = f"SELECT * FROM files WHERE deleted_ms IS NULL AND id > ? AND {where} ORDER BY id LIMIT ?"
        return await self._records(statement, [after, *values, limit])

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        statement = f"UPDATE files SET deleted_ms = coalesce(deleted_ms, ?) WHERE id IN ({marks(ids)}) RETURNING id"
        return await self._database.call(
            lambda connection: [row["id"] for row in connection.execute(statement, [at_ms, *ids]).fetchall()]
        )

    def trouble(self) -> Trouble | None:
        return self._database.trouble()

    async def highest(self) -> int:
        """The largest id that is listed, deleted files included; 0 where there is none."""
        return await self._database.call(
            lambda connection: int(connection.execute("SELECT coalesce(max(id), 0) FROM files").fetchone()[0])
        )

    async def merge(self, other: Path) -> None:
        """Takes in the rows of a catalog that `export` wrote; a file that is deleted in one of them stays deleted.

        Idempotent. One that can't be read is left alone: what it lists is in the store, and its maker has the rows.
        """
        try:
            theirs = await asyncio.to_thread(_rows, other, self._path.with_name("merge.sqlite"))
        except FileNotFoundError:
            return
        except (OSError, MLDashError, sqlite3.Error) as failure:
            log.warning("catalog_not_merged", extra={"path": other, "error": failure})
            return
        await self._database.call(lambda connection: _upsert(connection, theirs))

    async def export(self, path: Path) -> None:
        """Writes the catalog as one file, whole or not at all, for `merge`; nothing where no row has changed.

        What fails is logged, and tried again at the next call.
        """
        try:
            changes = await self._database.call(lambda connection: connection.total_changes)
            if changes != self._exported:
                await asyncio.to_thread(_write_copy, self._path, self._path.with_name("export.sqlite"), path)
                self._exported = changes
        except (OSError, MLDashError, JournalError, sqlite3.Error) as failure:
            log.warning("catalog_not_exported", extra={"path": path, "error": failure})

    async def close(self) -> None:
        self._database.close()

    async def _records(self, statement: str, values: Sequence[object]) -> list[FileRecord]:
        return await self._database.call(
            lambda connection: [read_record(row) for row in connection.execute(statement, values).fetchall()]
        )


def _upsert(connection: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> None:
    for row in rows:
        statement = insert("files", row.keys()) + (
            " ON CONFLICT (id) DO UPDATE SET deleted_ms = coalesce(deleted_ms, excluded.deleted_ms)"
        )
        connection.execute(statement, tuple(row))


def _rows(path: Path, copy: Path) -> list[sqlite3.Row]:
    """All rows of a catalog that may be of an older release: a copy of it is brought up to date. Blocks."""
    try:
        shutil.copyfile(path, copy)
        with closing(open_database(copy, MIGRATIONS)) as connection:
            return connection.execute("SELECT * FROM files").fetchall()
    finally:
        _remove(copy)


def _write_copy(catalog: Path, copy: Path, path: Path) -> None:
    """Made on the state folder's disk, where SQLite can lock, and then copied as plain bytes. Blocks.

    It is read beside the catalog's own connection, which goes on meanwhile, however many rows there are.
    """
    _remove(copy)
    try:
        copy.touch(0o600)
        with closing(sqlite3.connect(catalog, timeout=LOCKED_S)) as ours, closing(sqlite3.connect(copy)) as theirs:
            ours.backup(theirs)
            theirs.execute("PRAGMA journal_mode=DELETE")
        temporary = path.with_name(f".{path.name}")
        shutil.copyfile(copy, temporary)
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        _remove(copy)


def _remove(copy: Path) -> None:
    for path in (copy, copy.with_name(f"{copy.name}-wal"), copy.with_name(f"{copy.name}-shm")):
        path.unlink(missing_ok=True)
