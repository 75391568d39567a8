"""Sets in the catalog of one machine: what becomes visible together does so in one transaction of SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from ml_dashd.core.model import FileRecord
from ml_dashd.core.names import below
from ml_dashd.core.sets import (
    Delivered,
    Delivery,
    SetKey,
    SetRecord,
    SetSelection,
    SetState,
    Share,
    Verdict,
    overlap,
    set_id,
)
from ml_dashd.edge.database import Database
from ml_dashd.edge.rows import KEY_OF_SHARE, insert, marks, read_record, scope_where

SETS = """
ALTER TABLE files ADD COLUMN share TEXT;
ALTER TABLE files ADD COLUMN pending INTEGER NOT NULL DEFAULT 0;
CREATE INDEX files_by_share ON files (substr(share, 1, 32)) WHERE share IS NOT NULL;
CREATE INDEX files_pending ON files (uploaded_ms, id) WHERE pending <> 0 AND deleted_ms IS NULL;
CREATE TABLE sets (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL, owner_uid INTEGER NOT NULL,
    namespace TEXT NOT NULL, project TEXT NOT NULL, experiment TEXT NOT NULL,
    name TEXT NOT NULL, attempt TEXT NOT NULL, round INTEGER NOT NULL, world_size INTEGER NOT NULL,
    state TEXT NOT NULL, opened_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, completed_ms INTEGER,
    reported_ms INTEGER
) STRICT;
CREATE INDEX sets_by_number ON sets (namespace, project, experiment, state, number DESC);
CREATE INDEX sets_by_name ON sets (namespace, project, experiment, name, owner_uid, attempt, round DESC);
CREATE INDEX sets_open ON sets (updated_ms) WHERE state = 'OPEN';
CREATE INDEX sets_numbers ON sets (number);
CREATE TABLE shares (
    set_id TEXT NOT NULL REFERENCES sets (id), rank INTEGER NOT NULL, key TEXT NOT NULL UNIQUE, ids TEXT NOT NULL,
    files INTEGER NOT NULL, size_bytes INTEGER NOT NULL, first_id INTEGER, last_id INTEGER,
    PRIMARY KEY (set_id, rank)
) STRICT, WITHOUT ROWID;
DROP TRIGGER files_tagged;
CREATE TRIGGER files_tagged AFTER INSERT ON files
WHEN NEW.tags <> '[]' AND NEW.deleted_ms IS NULL AND NEW.pending = 0
BEGIN
    INSERT OR IGNORE INTO tags
    SELECT NEW.namespace, NEW.project, NEW.experiment, value, NEW.path, NEW.id, NEW.owner_uid
    FROM json_each(NEW.tags);
END;
DROP TRIGGER files_retagged;
CREATE TRIGGER files_retagged AFTER UPDATE OF tags, deleted_ms, pending ON files
WHEN OLD.tags <> NEW.tags OR OLD.deleted_ms IS NOT NEW.deleted_ms OR OLD.pending <> NEW.pending
BEGIN
    DELETE FROM tags WHERE namespace = OLD.namespace AND project = OLD.project AND experiment = OLD.experiment
        AND tag IN (SELECT value FROM json_each(OLD.tags)) AND path = OLD.path AND id = OLD.id;
    INSERT OR IGNORE INTO tags
    SELECT NEW.namespace, NEW.project, NEW.experiment, value, NEW.path, NEW.id, NEW.owner_uid
    FROM json_each(NEW.tags) WHERE NEW.deleted_ms IS NULL AND NEW.pending = 0;
END;
"""
"""The step of the catalog's schema with which sets came. Files of a set that is not complete have no row in `tags`."""
_KEY = "owner_uid = ? AND namespace = ? AND project = ? AND experiment = ? AND name = ?"
_COLUMNS = """
SELECT sets.*, (SELECT coalesce(sum(files), 0) FROM shares WHERE set_id = sets.id) AS files,
    (SELECT coalesce(sum(size_bytes), 0) FROM shares WHERE set_id = sets.id) AS size_bytes,
    iif(state = 'OPEN', (SELECT json_group_array(rank) FROM (
        SELECT rank FROM shares WHERE set_id = sets.id ORDER BY rank)), '[]') AS ranks
FROM sets
"""
_MEMBERS = "SELECT value FROM shares, json_each(shares.ids) WHERE set_id = ?"
_NOT_THERE = "NOT EXISTS (SELECT 1 FROM files WHERE files.id = one.value AND deleted_ms IS NULL)"


class SqliteSets:
    """The port `Sets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, key: SetKey, share: Share, at_ms: int) -> SetRecord:
        return await self._database.call(lambda connection: _open(connection, key, share, at_ms), spare=True)

    async def deliver(self, delivery: Delivery, at_ms: int) -> Delivered:
        return await self._database.call(lambda connection: _deliver(connection, delivery, at_ms))

    async def holding(self, share_key: str) -> SetRecord | None:
        found = await self._records("WHERE id = (SELECT set_id FROM shares WHERE key = ?)", [share_key])
        return found[0] if found else None

    async def members(self, key: SetKey, share_key: str) -> list[int]:
        mine = "owner_uid = ? AND namespace = ? AND project = ? AND experiment = ?"
        where = f"share IS NOT NULL AND {KEY_OF_SHARE} = ? AND {mine} AND deleted_ms IS NULL"
        values = (share_key, key.owner_uid, key.namespace, key.project, key.experiment)
        return [record.id for record in await self._files(f"SELECT * FROM files WHERE {where} ORDER BY id", values)]

    async def get(self, set_id: str) -> SetRecord | None:
        found = await self._records("WHERE id = ?", [set_id])
        return found[0] if found else None

    async def select(self, selection: SetSelection) -> list[SetRecord]:
        scope, values = scope_where(selection.scope)
        where = [f"state IN ({marks(selection.states)})", scope]
        bound: list[Any] = [*selection.states, *values]
        if selection.experiment is not None:
            where.append("namespace = ? AND project = ? AND experiment = ?")
            bound += selection.experiment
        if selection.prefix:
            where.append("(name = ? OR (name > ? AND name < ?))")
            bound += [selection.prefix, *below(selection.prefix)]
        if selection.before is not None:
            where.append("number < ?")
            bound.append(selection.before)
        return await self._records(
            f"WHERE {' AND '.join(where)} ORDER BY number DESC, id LIMIT ?", [*bound, selection.limit]
        )

    async def files(self, set_id: str, after: int, limit: int) -> list[FileRecord]:
        statement = f"SELECT * FROM files WHERE id IN ({_MEMBERS}) AND id > ? ORDER BY id LIMIT ?"
        return await self._files(statement, [set_id, after, limit])

    async def drop(self, set_id: str, at_ms: int, keep_tags: Collection[str] = ()) -> bool:
        return await self._database.call(lambda connection: _drop(connection, set_id, at_ms, tuple(keep_tags)))

    async def report(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        some = "state = 'OPEN' AND updated_ms < ? AND reported_ms IS NULL"
        return await self._change(some, "reported_ms = ?", at_ms, before_ms, limit)

    async def abandon(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        return await self._change(
            "state = 'OPEN' AND updated_ms < ?", "state = 'DROPPED', updated_ms = ?", at_ms, before_ms, limit
        )

    async def strays(self, before_ms: int, limit: int) -> list[FileRecord]:
        waits = (
            f"EXISTS (SELECT 1 FROM shares JOIN sets ON sets.id = set_id WHERE key = {KEY_OF_SHARE} AND state = 'OPEN')"
        )
        return await self._files(
            "SELECT * FROM files WHERE pending <> 0 AND deleted_ms IS NULL AND uploaded_ms < ? "
            f"AND NOT {waits} ORDER BY uploaded_ms, id LIMIT ?",
            [before_ms, limit],
        )

    async def _change(self, where: str, change: str, at_ms: int, before_ms: int, limit: int) -> list[SetRecord]:
        """Sets that this call has changed, as they were before."""

        def work(connection: sqlite3.Connection) -> list[SetRecord]:
            rows = connection.execute(f"{_COLUMNS} WHERE {where} LIMIT ?", (before_ms, limit)).fetchall()
            for row in rows:
                connection.execute(f"UPDATE sets SET {change} WHERE id = ?", (at_ms, row["id"]))
            return [_read(row) for row in rows]

        return await self._database.call(work)

    async def _records(self, rest: str, values: Sequence[Any]) -> list[SetRecord]:
        return await self._database.call(
            lambda connection: [_read(row) for row in connection.execute(_COLUMNS + rest, values).fetchall()]
        )

    async def _files(self, statement: str, values: Sequence[Any]) -> list[FileRecord]:
        return await self._database.call(
            lambda connection: [read_record(row) for row in connection.execute(statement, values).fetchall()]
        )


def _open(connection: sqlite3.Connection, key: SetKey, share: Share, at_ms: int) -> SetRecord:
    """The round that a share goes to now, begun where there is none; or one that has another world_size."""
    current = _newest(connection, key)
    if current is None or current.is_over_for(share):
        return _begin(connection, key, share.world_size, 1 if current is None else current.round + 1, at_ms)
    return current


def _begin(connection: sqlite3.Connection, key: SetKey, world_size: int, number: int, at_ms: int) -> SetRecord:
    (highest,) = connection.execute("SELECT coalesce(max(number), 0) FROM sets").fetchone()
    values: dict[str, Any] = {
        "id": set_id(key, number), "number": highest + 1, "owner_uid": key.owner_uid, "namespace": key.namespace,
        "project": key.project, "experiment": key.experiment, "name": key.name, "attempt": key.attempt,
        "round": number, "world_size": world_size, "state": SetState.OPEN, "opened_ms": at_ms, "updated_ms": at_ms,
    }  # fmt: skip
    connection.execute(insert("sets", values), tuple(values.values()))
    return _get(connection, values["id"])


def _deliver(connection: sqlite3.Connection, delivery: Delivery, at_ms: int) -> Delivered:
    key, share, ids = delivery.key, delivery.share, json.dumps(delivery.ids)
    known = connection.execute("SELECT set_id FROM shares WHERE key = ?", (share.key,)).fetchone()
    if known is not None:
        return Delivered(Verdict.DELIVERED, _get(connection, known["set_id"]))
    current = _open(connection, key, share, at_ms)
    if current.world_size != share.world_size:
        return Delivered(Verdict.MISMATCH, current)
    there = connection.execute(
        "SELECT count(*) AS files, coalesce(sum(size_bytes), 0) AS size_bytes, min(id) AS first_id, max(id) AS last_id "
        "FROM files WHERE id IN (SELECT value FROM json_each(?)) AND deleted_ms IS NULL",
        (ids,),
    ).fetchone()
    if there["files"] != len(delivery.ids):
        return Delivered(Verdict.LOST, current)
    replaced = connection.execute(
        "DELETE FROM shares WHERE set_id = ? AND rank = ? RETURNING ids", (current.id, share.rank)
    ).fetchone()
    if replaced is not None:
        connection.execute(
            "UPDATE files SET deleted_ms = ? WHERE id IN (SELECT value FROM json_each(?)) AND deleted_ms IS NULL",
            (at_ms, replaced["ids"]),
        )
    values = {"set_id": current.id, "rank": share.rank, "key": share.key, "ids": ids, **dict(there)}
    connection.execute(insert("shares", values), tuple(values.values()))
    connection.execute("UPDATE sets SET updated_ms = ?, reported_ms = NULL WHERE id = ?", (at_ms, current.id))
    if _ranks(connection, current.id) == current.world_size and _all_there(connection, current.id):
        _complete(connection, current, at_ms)
    return Delivered(Verdict.DELIVERED, _get(connection, current.id))


def _ranks(connection: sqlite3.Connection, set_id: str) -> int:
    (ranks,) = connection.execute("SELECT count(*) FROM shares WHERE set_id = ?", (set_id,)).fetchone()
    return int(ranks)


def _all_there(connection: sqlite3.Connection, set_id: str) -> bool:
    """Whether nobody has deleted a file of them since; a share that lacks one is none any more.

    Asked once all ranks are there: to look at every file of the set with each share would take the square of them.
    """
    return not connection.execute(
        f"DELETE FROM shares WHERE set_id = ? AND EXISTS (SELECT 1 FROM json_each(ids) AS one WHERE {_NOT_THERE})",
        (set_id,),
    ).rowcount


def _complete(connection: sqlite3.Connection, record: SetRecord, at_ms: int) -> None:
    """All its files become visible; of attempts that were saved at the same time, the newest one's alone."""
    key = record.key
    mine = _span(connection, record.id)
    rows = connection.execute(
        f"SELECT id, number FROM sets WHERE {_KEY} AND state = 'COMPLETE'",
        (key.owner_uid, key.namespace, key.project, key.experiment, key.name),
    ).fetchall()
    others = {row["id"]: (row["number"], _span(connection, row["id"])) for row in rows}
    overtaken = any(number > record.number and overlap(mine, span) for number, span in others.values())
    if not overtaken:
        for one, (number, span) in others.items():
            if number < record.number and overlap(span, mine):
                connection.execute("UPDATE sets SET state = 'OVERTAKEN', updated_ms = ? WHERE id = ?", (at_ms, one))
                connection.execute(f"UPDATE files SET pending = 1 WHERE id IN ({_MEMBERS})", (one,))
        connection.execute(f"UPDATE files SET pending = 0 WHERE id IN ({_MEMBERS})", (record.id,))
    connection.execute(
        "UPDATE sets SET state = ?, completed_ms = ? WHERE id = ?",
        (SetState.OVERTAKEN if overtaken else SetState.COMPLETE, at_ms, record.id),
    )


def _span(connection: sqlite3.Connection, set_id: str) -> tuple[int, ...]:
    """The first and the last id of a set's files; empty where it has none."""
    row = connection.execute("SELECT min(first_id), max(last_id) FROM shares WHERE set_id = ?", (set_id,)).fetchone()
    return () if row[0] is None else tuple(row)


def _drop(connection: sqlite3.Connection, set_id: str, at_ms: int, keep_tags: tuple[str, ...]) -> bool:
    kept = connection.execute(
        f"SELECT 1 FROM files, json_each(files.tags) AS tag WHERE files.id IN ({_MEMBERS}) "
        f"AND deleted_ms IS NULL AND tag.value IN ({marks(keep_tags)}) LIMIT 1",
        (set_id, *keep_tags),
    ).fetchone()
    drop = "UPDATE sets SET state = 'DROPPED', updated_ms = ? WHERE id = ? AND state <> 'DROPPED'"
    if kept is not None or not connection.execute(drop, (at_ms, set_id)).rowcount:
        return False
    connection.execute(
        f"UPDATE files SET deleted_ms = ? WHERE id IN ({_MEMBERS}) AND deleted_ms IS NULL", (at_ms, set_id)
    )
    return True


def merge_sets(connection: sqlite3.Connection, sets: Sequence[sqlite3.Row], shares: Sequence[sqlite3.Row]) -> None:
    """Takes in what another host's catalog has of sets: a set that got further there is as far here. Idempotent."""
    for row in sets:
        connection.execute(
            f"{insert('sets', row.keys())} ON CONFLICT (id) DO UPDATE SET state = excluded.state, "
            "updated_ms = excluded.updated_ms, completed_ms = excluded.completed_ms "
            "WHERE sets.state = 'OPEN' OR excluded.state = 'DROPPED'",
            tuple(row),
        )
    for row in shares:
        connection.execute(f"{insert('shares', row.keys())} ON CONFLICT DO NOTHING", tuple(row))


def _newest(connection: sqlite3.Connection, key: SetKey) -> SetRecord | None:
    """The last round of a set."""
    row = connection.execute(
        f"{_COLUMNS} WHERE {_KEY} AND attempt = ? ORDER BY round DESC LIMIT 1",
        (key.owner_uid, key.namespace, key.project, key.experiment, key.name, key.attempt),
    ).fetchone()
    return None if row is None else _read(row)


def _get(connection: sqlite3.Connection, set_id: str) -> SetRecord:
    return _read(connection.execute(f"{_COLUMNS} WHERE id = ?", (set_id,)).fetchone())


def _read(row: sqlite3.Row) -> SetRecord:
    names = ("owner_uid", "namespace", "project", "experiment", "name", "attempt")
    plain = ("id", "round", "number", "world_size", "opened_ms", "updated_ms", "completed_ms", "files", "size_bytes")
    return SetRecord(
        key=SetKey(**{name: row[name] for name in names}),
        state=SetState(row["state"]),
        ranks=tuple(json.loads(row["ranks"])),
        **{name: row[name] for name in plain},
    )
