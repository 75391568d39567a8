"""Experiments, parameters and metrics of one machine: SQLite, beside the catalog's files, with a writer of its own.

A row is committed without waiting for the disk: it outlives this process, not the machine. What waits for the disk
brings along what came before it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_dash.messages import METRICS
from ml_dashd.core import names
from ml_dashd.core.model import Scope, Trouble
from ml_dashd.core.runs import (
    BroughtRow,
    MetricLength,
    NewRow,
    Opened,
    Row,
    Run,
    RunKey,
    RunStatus,
    check_params,
    joined_with,
    laid_over,
    too_many_metrics,
)
from ml_dashd.edge.database import Database
from ml_dashd.edge.rows import scope_where
from ml_dashd.ports import Faults

MIGRATIONS = [
    """
    CREATE TABLE experiments (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL, project TEXT NOT NULL, experiment TEXT NOT NULL, owner_uid INTEGER NOT NULL,
        status TEXT NOT NULL, error TEXT, host TEXT NOT NULL, user TEXT NOT NULL,
        created_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, ended_ms INTEGER,
        readme TEXT, tags TEXT NOT NULL, bindrs TEXT NOT NULL, metadata TEXT,
        shown_ms INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX experiments_by_place ON experiments (namespace, project, experiment, owner_uid);
    CREATE INDEX experiments_behind ON experiments (id) WHERE shown_ms < updated_ms;
    CREATE TABLE params (
        experiment INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (experiment, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE metrics (
        id INTEGER PRIMARY KEY, experiment INTEGER NOT NULL, name TEXT NOT NULL,
        rows INTEGER NOT NULL, shown INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX metrics_by_name ON metrics (experiment, name);
    CREATE INDEX metrics_behind ON metrics (experiment) WHERE shown < rows;
    CREATE TABLE metric_rows (
        metric INTEGER NOT NULL, position INTEGER NOT NULL, writer INTEGER NOT NULL, number INTEGER NOT NULL,
        created_ms INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (metric, position)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX metric_rows_once ON metric_rows (metric, writer, number);
    CREATE TABLE syncs (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
    INSERT INTO syncs VALUES (1, 0);
    """,
    # What was set since another catalog has heard of it.
    """
    ALTER TABLE params ADD COLUMN changed_ms INTEGER NOT NULL DEFAULT 0;
    """,
]
_MINE = "namespace = ? AND project = ? AND experiment = ? AND owner_uid = ?"
_METRIC = f"name = ? AND experiment = (SELECT id FROM experiments WHERE {_MINE})"


class SqliteRuns:
    """The port `ShownRuns`."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self._database = Database(path, MIGRATIONS, faults, "runs")

    async def open(self, key: RunKey, opened: Opened) -> None:
        def work(connection: sqlite3.Connection) -> None:
            number = _ensure(connection, key, opened.at_ms)
            connection.execute(
                "UPDATE experiments SET status = ?, error = NULL, ended_ms = NULL, started_ms = ?, host = ?, user = ?,"
                " readme = coalesce(?, readme), tags = coalesce(?, tags), bindrs = coalesce(?, bindrs),"
                " metadata = coalesce(?, metadata) WHERE id = ?",
                (
                    RunStatus.RUNNING, opened.at_ms, opened.host, opened.user, opened.readme, _words(opened.tags),
                    _words(opened.bindrs), opened.metadata, number,
                ),
            )  # fmt: skip
            _touch(connection, number, opened.at_ms)

        await self._database.call(work)  # a run begins on a full disk, too: its files may fit, where they go

    async def end(self, key: RunKey, status: RunStatus, at_ms: int, error: str | None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            number = _ensure(connection, key, at_ms)
            ended = connection.execute(
                "UPDATE experiments SET status = ?, ended_ms = ?, error = ? WHERE id = ? AND status = ?",
                (status, at_ms, error, number, RunStatus.RUNNING),
            )
            if ended.rowcount:
                _touch(connection, number, at_ms)

        await self._database.call(work)

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        where, values = scope_where(scope)
        return await self._runs(
            f"SELECT * FROM experiments WHERE namespace = ? AND project = ? AND experiment = ? AND {where}"
            " ORDER BY created_ms, id",
            [namespace, project, experiment, *values],
        )

    async def select(self, below: Sequence[str], scope: Scope, after: RunKey | None, limit: int) -> list[Run]:
        text, values = scope_where(scope)
        for column, value in zip(("namespace", "project"), below, strict=False):
            text += f" AND {column} = ?"
            values.append(value)
        if len(below) > 2:  # noqa: PLR2004 namespace and project
            text += " AND (experiment = ? OR (experiment > ? AND experiment < ?))"
            values += [below[2], *names.below(below[2])]
        if after is not None:
            text += " AND (namespace, project, experiment, owner_uid) > (?, ?, ?, ?)"
            values += _place(after)
        order = "namespace, project, experiment, owner_uid"
        return await self._runs(f"SELECT * FROM experiments WHERE {text} ORDER BY {order} LIMIT ?", [*values, limit])

    async def set_params(self, key: RunKey, values: Mapping[str, str], at_ms: int, most_bytes: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            number = _ensure(connection, key, at_ms)
            old = _params(connection, number)
            if (merged := laid_over(values, old)) == old:
                return
            check_params(merged, most_bytes)
            _set_params(connection, number, old, merged, _touch(connection, number, at_ms))

        await self._database.call(work, spare=True)

    async def params(self, key: RunKey, since_ms: int | None = None) -> dict[str, str]:
        def work(connection: sqlite3.Connection) -> dict[str, str]:
            found = connection.execute(f"SELECT id FROM experiments WHERE {_MINE}", _place(key)).fetchone()
            return {} if found is None else _params(connection, found["id"], -1 if since_ms is None else since_ms)

        return await self._database.call(work, soon=True)

    async def append(
        self, key: RunKey, writer: int, number: int, rows: Sequence[NewRow], at_ms: int, *, on_disk: bool = False
    ) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if rows:
                experiment = _ensure(connection, key, at_ms)
                for row in rows:
                    _append(connection, experiment, row, (writer, number, at_ms))
            if on_disk:
                _sync(connection)

        await self._database.call(work, spare=True, soon=not on_disk)

    async def bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            found = connection.execute(f"SELECT * FROM experiments WHERE {_MINE}", _place(run.key)).fetchone()
            here = None if found is None else _read_run(found)
            number = _ensure(connection, run.key, run.created_ms)
            old = _params(connection, number)
            joined = (run, dict(params)) if here is None else joined_with(here, old, run, params)
            if joined is None:
                return False
            kept, merged = joined
            check_params(merged, most_bytes)
            _set_params(connection, number, old, merged, kept.updated_ms)
            connection.execute(
                "UPDATE experiments SET status = ?, error = ?, host = ?, user = ?, created_ms = ?, started_ms = ?,"
                " updated_ms = ?, ended_ms = ?, readme = ?, tags = ?, bindrs = ?, metadata = ? WHERE id = ?",
                (
                    kept.status, kept.error, kept.host, kept.user, kept.created_ms, kept.started_ms, kept.updated_ms,
                    kept.ended_ms, kept.readme, _words(kept.tags), _words(kept.bindrs), kept.metadata, number,
                ),
            )  # fmt: skip
            return True

        return await self._database.call(work, spare=True)

    async def bring_rows(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            experiment = _ensure(connection, key, min((each.row.created_ms for each in rows), default=0))
            return sum(
                _append(
                    connection,
                    experiment,
                    NewRow(each.metric, each.row.data),
                    (each.row.writer, each.row.number, each.row.created_ms),
                )
                for each in rows
            )

        return await self._database.call(work, spare=True) if rows else 0

    async def sync(self) -> None:
        await self._database.call(_sync)

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        statement = (
            f"SELECT name, rows, shown FROM metrics WHERE experiment = (SELECT id FROM experiments WHERE {_MINE})"
            " ORDER BY name"
        )
        return await self._database.call(
            lambda connection: [MetricLength(*row) for row in connection.execute(statement, _place(key))], soon=True
        )

    async def rows(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        statement = (
            "SELECT created_ms, data, writer, number FROM metric_rows"
            f" WHERE metric = (SELECT id FROM metrics WHERE {_METRIC}) AND position >= ? ORDER BY position LIMIT ?"
        )
        values = [metric, *_place(key), start, limit]
        return await self._database.call(
            lambda connection: [Row(*row) for row in connection.execute(statement, values)], soon=True
        )

    async def behind(self) -> list[RunKey]:
        statement = (
            "SELECT namespace, project, experiment, owner_uid FROM experiments WHERE shown_ms < updated_ms"
            " OR id IN (SELECT experiment FROM metrics WHERE shown < rows)"
        )
        return await self._database.call(lambda connection: [RunKey(*row) for row in connection.execute(statement)])

    async def shown(self, key: RunKey, as_of_ms: int) -> None:
        statement = f"UPDATE experiments SET shown_ms = ? WHERE {_MINE} AND shown_ms < ?"
        await self._write(statement, [as_of_ms, *_place(key), as_of_ms])

    async def rows_shown(self, key: RunKey, metric: str, count: int) -> None:
        await self._write(f"UPDATE metrics SET shown = ? WHERE {_METRIC}", [count, metric, *_place(key)])

    def trouble(self) -> Trouble | None:
        return self._database.trouble()

    async def close(self) -> None:
        self._database.close()

    async def _write(self, statement: str, values: Sequence[object]) -> None:
        """Notes of what a tree shows: what is lost with the machine is found out anew."""
        await self._database.call(lambda connection: connection.execute(statement, values).close(), soon=True)

    async def _runs(self, statement: str, values: Sequence[object]) -> list[Run]:
        return await self._database.call(
            lambda connection: [_read_run(row) for row in connection.execute(statement, values)], soon=True
        )


def _place(key: RunKey) -> list[Any]:
    return [key.namespace, key.project, key.experiment, key.owner_uid]


def _words(values: tuple[str, ...] | None) -> str | None:
    return None if values is None else json.dumps(values)


def _ensure(connection: sqlite3.Connection, key: RunKey, at_ms: int) -> int:
    """The experiment's number; one that is not known is begun."""
    found = connection.execute(f"SELECT id FROM experiments WHERE {_MINE}", _place(key)).fetchone()
    if found is not None:
        return int(found["id"])
    made = connection.execute(
        "INSERT INTO experiments (namespace, project, experiment, owner_uid, status, host, user, created_ms,"
        " started_ms, updated_ms, tags, bindrs, shown_ms) VALUES (?, ?, ?, ?, ?, '', '', ?, ?, ?, '[]', '[]', 0)",
        (*_place(key), RunStatus.RUNNING, at_ms, at_ms, at_ms),
    )
    return int(made.lastrowid or 0)


def _touch(connection: sqlite3.Connection, number: int, at_ms: int) -> int:
    """It has changed: its time, which is returned, rises even where the clock does not, so that a tree knows."""
    (row,) = connection.execute(
        "UPDATE experiments SET updated_ms = max(?, updated_ms + 1) WHERE id = ? RETURNING updated_ms", (at_ms, number)
    ).fetchall()
    return int(row["updated_ms"])


def _params(connection: sqlite3.Connection, number: int, since_ms: int = -1) -> dict[str, str]:
    statement = "SELECT name, value FROM params WHERE experiment = ? AND changed_ms > ? ORDER BY name"
    return {row["name"]: row["value"] for row in connection.execute(statement, (number, since_ms))}


def _set_params(
    connection: sqlite3.Connection, number: int, old: Mapping[str, str], new: Mapping[str, str], at_ms: int
) -> None:
    """Puts parameters in the place of those that there are."""
    gone = old.keys() - new.keys()
    connection.executemany("DELETE FROM params WHERE experiment = ? AND name = ?", [(number, name) for name in gone])
    connection.executemany(
        "INSERT INTO params VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET value = excluded.value, changed_ms = excluded.changed_ms",
        [(number, name, value, at_ms) for name, value in new.items() if old.get(name) != value],
    )


def _append(connection: sqlite3.Connection, experiment: int, row: NewRow, origin: tuple[int, int, int]) -> bool:
    """Whether it is new."""
    which = "SELECT id, rows FROM metrics WHERE experiment = ? AND name = ?"
    found = connection.execute(which, (experiment, row.metric)).fetchone()
    if found is None:
        found = _new_metric(connection, experiment, row.metric)
    metric, rows = found
    writer, number, at_ms = origin
    added = connection.execute(
        "INSERT INTO metric_rows VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (metric, writer, number) DO NOTHING",
        (metric, rows, writer, number, at_ms, row.data),
    )
    if added.rowcount:
        connection.execute("UPDATE metrics SET rows = rows + 1 WHERE id = ?", (metric,))
    return bool(added.rowcount)


def _new_metric(connection: sqlite3.Connection, experiment: int, name: str) -> tuple[int, int]:
    (count,) = connection.execute("SELECT count(*) FROM metrics WHERE experiment = ?", (experiment,)).fetchone()
    if count >= METRICS:
        raise too_many_metrics(name, METRICS)
    made = connection.execute(
        "INSERT INTO metrics (experiment, name, rows, shown) VALUES (?, ?, 0, 0)", (experiment, name)
    )
    return int(made.lastrowid or 0), 0


def _sync(connection: sqlite3.Connection) -> None:
    """A commit that changes nothing would bring nothing to the disk."""
    connection.execute("UPDATE syncs SET count = count + 1").close()


def _read_run(row: sqlite3.Row) -> Run:
    return Run(
        key=RunKey(row["namespace"], row["project"], row["experiment"], row["owner_uid"]),
        status=RunStatus(row["status"]),
        tags=tuple(json.loads(row["tags"])),
        bindrs=tuple(json.loads(row["bindrs"])),
        **{
            name: row[name]
            for name in (
                "host", "user", "created_ms", "started_ms", "updated_ms", "ended_ms", "error", "readme", "metadata",
                "shown_ms",
            )
        },
    )  # fmt: skip
