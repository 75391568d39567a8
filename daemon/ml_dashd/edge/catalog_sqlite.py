"""The catalog of one machine: SQLite, in a file of its own, so that it can be copied and read by other programs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ml_dash.errors import MLDashError
from ml_dashd.core.model import Amendment, Experiment, FileRecord, Scope, Selection, Trouble
from ml_dashd.edge.amending import amend, later_word
from ml_dashd.edge.database import Database
from ml_dashd.edge.inventory_sqlite import INVENTORY, SqliteInventory
from ml_dashd.edge.listing import ENDING, read_selection
from ml_dashd.edge.opening import LOCKED_S, open_database
from ml_dashd.edge.rows import RECORD_COLUMNS, insert, marks, placeholders, read_record, record_values, scope_where
from ml_dashd.edge.sets_sqlite import SETS, SqliteSets, merge_sets
from ml_dashd.ports import Faults, JournalError, gone_of

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
    # What is said of a file may change; bytes of deleted files are reclaimed; lists by tag have an index.
    """
    ALTER TABLE files ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE files ADD COLUMN reclaimed_ms INTEGER;
    DROP INDEX files_deleted;
    CREATE INDEX files_deleted ON files (deleted_ms, id) WHERE deleted_ms IS NOT NULL AND reclaimed_ms IS NULL;
    CREATE TABLE tags (
        namespace TEXT NOT NULL, project TEXT NOT NULL, experiment TEXT NOT NULL, tag TEXT NOT NULL,
        path TEXT NOT NULL, id INTEGER NOT NULL, owner_uid INTEGER NOT NULL,
        PRIMARY KEY (namespace, project, experiment, tag, path, id DESC)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER files_tagged AFTER INSERT ON files WHEN NEW.tags <> '[]' AND NEW.deleted_ms IS NULL
    BEGIN
        INSERT OR IGNORE INTO tags
        SELECT NEW.namespace, NEW.project, NEW.experiment, value, NEW.path, NEW.id, NEW.owner_uid
        FROM json_each(NEW.tags);
    END;
    CREATE TRIGGER files_retagged AFTER UPDATE OF tags, deleted_ms ON files
    WHEN OLD.tags <> NEW.tags OR OLD.deleted_ms IS NOT NEW.deleted_ms
    BEGIN
        DELETE FROM tags WHERE namespace = OLD.namespace AND project = OLD.project AND experiment = OLD.experiment
            AND tag IN (SELECT value FROM json_each(OLD.tags)) AND path = OLD.path AND id = OLD.id;
        INSERT OR IGNORE INTO tags
        SELECT NEW.namespace, NEW.project, NEW.experiment, value, NEW.path, NEW.id, NEW.owner_uid
        FROM json_each(NEW.tags) WHERE NEW.deleted_ms IS NULL;
    END;
    INSERT OR IGNORE INTO tags
    SELECT namespace, project, experiment, value, files.path, files.id, owner_uid
    FROM files, json_each(files.tags) WHERE deleted_ms IS NULL;
    """,
    # Globs such as * and models/*: a folder alone, whatever lies below it.
    """
    CREATE INDEX files_by_folder ON files (namespace, project, experiment, prefix, path, id DESC)
        WHERE deleted_ms IS NULL;
    """,
    SETS,
    INVENTORY,
]
_THERE = "deleted_ms IS NULL"
_LISTED = f"{_THERE} AND pending = 0"
_SAME = "excluded.owner_uid = files.owner_uid AND excluded.key = files.key AND excluded.sha256 = files.sha256"
"""FileRecord.identity"""


class SqliteCatalog:
    """The port `Catalog`."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._database = Database(path, MIGRATIONS, faults, "catalog")
        self.sets = SqliteSets(self._database)
        self.inventory = SqliteInventory(self._database)
        self._path = path
        self._exported = -1

    async def commit(self, records: Sequence[FileRecord]) -> list[int]:
        rows = [record_values(record) for record in records]
        # A repeated commit finds its own row, and leaves alone what may have changed in it since.
        later = f"{later_word()} WHERE excluded.revision > files.revision AND files.deleted_ms IS NULL AND {_SAME}"
        statement = f"{insert('files', rows[0], len(rows))} {later}"
        values = [value for row in rows for value in row.values()]
        ids = [record.id for record in records]

        def work(connection: sqlite3.Connection) -> list[FileRecord]:
            if connection.execute(statement, values).rowcount == len(rows):
                return []
            there = f"SELECT * FROM files WHERE id IN ({marks(ids)}) ORDER BY id"
            return [read_record(row) for row in connection.execute(there, ids).fetchall()]

        return gone_of(records, await self._database.call(work))

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        return await self._records(f"SELECT * FROM files WHERE id IN ({marks(ids)})", ids)

    async def select(self, selection: Selection) -> list[FileRecord]:
        if selection.tags and not selection.pending:
            return await self._database.call(lambda connection: _read_tagged(connection, selection))
        listed = _THERE if selection.pending else _LISTED
        return await self._database.call(
            lambda connection: [
                read_record(row) for row in read_selection(connection, selection, RECORD_COLUMNS, listed, narrows=True)
            ]
        )

    async def newer(self, after: int, scope: Scope, limit: int) -> list[FileRecord]:
        where, values = scope_where(scope)
        statement = f"SELECT * FROM files WHERE {_LISTED} AND id > ? AND {where} ORDER BY id LIMIT ?"
        return await self._records(statement, [after, *values, limit])

    async def amend(self, file_id: int, words: Amendment, at_ms: int) -> FileRecord | None:
        row = await self._database.call(lambda connection: amend(connection, file_id, words, at_ms, _THERE), spare=True)
        return None if row is None else read_record(row)

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        statement = f"UPDATE files SET deleted_ms = coalesce(deleted_ms, ?) WHERE id IN ({marks(ids)}) RETURNING id"
        return await self._database.call(
            lambda connection: [row["id"] for row in connection.execute(statement, [at_ms, *ids]).fetchall()]
        )

    async def prune(self, records: Sequence[FileRecord], at_ms: int) -> list[int]:
        values = [value for record in records for value in (record.id, record.revision)]
        statement = (
            f"WITH seen (id, revision) AS (VALUES {placeholders(len(records), 2)}) UPDATE files SET deleted_ms = ? "
            "FROM seen WHERE files.id = seen.id AND files.revision = seen.revision AND deleted_ms IS NULL "
            "RETURNING files.id"
        )
        return await self._database.call(
            lambda connection: [row["id"] for row in connection.execute(statement, [*values, at_ms]).fetchall()]
        )

    async def experiments(self) -> list[Experiment]:
        """A seek in the index for each."""
        statement = (
            "SELECT namespace, project, experiment FROM files WHERE deleted_ms IS NULL "
            "AND (namespace, project, experiment) > (?, ?, ?) ORDER BY namespace, project, experiment LIMIT 1"
        )

        def work(connection: sqlite3.Connection) -> list[Experiment]:
            found: list[Experiment] = []
            at: Experiment = ("", "", "")
            while (row := connection.execute(statement, at).fetchone()) is not None:
                at = (row["namespace"], row["project"], row["experiment"])
                found.append(at)
            return found

        return await self._database.call(work)

    # ---- bytes of deleted files

    async def deleted(self, before_ms: int, after: tuple[int, int], limit: int) -> list[FileRecord]:
        return await self._records(
            "SELECT * FROM files WHERE deleted_ms IS NOT NULL AND reclaimed_ms IS NULL AND deleted_ms < ? "
            "AND (deleted_ms, id) > (?, ?) ORDER BY deleted_ms, id LIMIT ?",
            [before_ms, *after, limit],
        )

    async def reclaimed(self, records: Sequence[FileRecord], at_ms: int) -> None:
        values = [value for record in records for value in (record.id, record.deleted_ms)]
        statement = (
            f"WITH seen (id, deleted_ms) AS (VALUES {placeholders(len(records), 2)}) UPDATE files SET reclaimed_ms = ? "
            "FROM seen WHERE files.id = seen.id AND files.deleted_ms = seen.deleted_ms AND reclaimed_ms IS NULL"
        )
        await self._database.call(lambda connection: connection.execute(statement, [*values, at_ms]).close())

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


def _read_tagged(connection: sqlite3.Connection, selection: Selection) -> list[FileRecord]:
    """By the index of the first tag; the others are looked up for each file that has it."""
    found = read_selection(connection, selection, ("id", "path"), "TRUE", narrows=False, table="tags")
    ids = [row["id"] for row in found]
    rows = connection.execute(f"SELECT * FROM files WHERE id IN ({marks(ids)}) ORDER BY path, id DESC", ids)
    return [read_record(row) for row in rows]


def _upsert(connection: sqlite3.Connection, rows: Mapping[str, Sequence[sqlite3.Row]]) -> None:
    for row in rows["files"]:
        statement = (
            f"{insert('files', row.keys())} {later_word()}, "
            "deleted_ms = coalesce(deleted_ms, excluded.deleted_ms), "
            "reclaimed_ms = coalesce(reclaimed_ms, excluded.reclaimed_ms), pending = min(pending, excluded.pending)"
        )
        connection.execute(statement, tuple(row))
    merge_sets(connection, rows["sets"], rows["shares"])


def _rows(path: Path, copy: Path) -> dict[str, list[sqlite3.Row]]:
    """All rows of a catalog that may be of an older release: a copy of it is brought up to date. Blocks."""
    try:
        shutil.copyfile(path, copy)
        with closing(open_database(copy, MIGRATIONS)) as connection:
            tables = ("files", "sets", "shares")
            return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
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
