"""A Selection as questions to SQLite: each is one range of an index, so that a page costs what it lists.

Conditions joined by OR would not be: SQLite would read an experiment from its start for every page.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ml_dashd.core import narrow
from ml_dashd.core.model import EVERYBODY, Selection
from ml_dashd.core.spans import Span, spans
from ml_dashd.edge.rows import experiment_where

ENDING = "substr(filename, length(rtrim(filename, replace(filename, '.', ''))) + 1)"
"""core/narrow.py: ending. An index over this expression serves only a question that has its very words."""
_INDEXED = "deleted_ms IS NULL"
"""The condition of the catalog's indexes."""
FEW = 1000
"""Files of a folder that are looked through for those of an ending; of more, those of the ending are looked up."""

Condition = tuple[str, list[Any]]
"""Of a WHERE: its text, and the values for its places."""


def read_selection(
    connection: sqlite3.Connection,
    selection: Selection,
    columns: Sequence[str],
    listed: str,
    *,
    narrows: bool,
    table: str = "files",
) -> list[sqlite3.Row]:
    """The rows of a table `files` that are asked for, in their order.

    `listed` holds the condition of its indexes; `narrows`: it has one over folders, and one over ENDING. The table may
    be `tags`, which has a row for each tag of a file: that is where files with certain tags are looked up.
    """
    found: list[sqlite3.Row] = []
    where = _file_where(selection, *(_narrowed(connection, selection) if narrows else ("", [])))
    for span in spans(selection):
        statement, values = _question(selection, span, columns, listed, where, table)
        found += connection.execute(statement, [*values, selection.limit - len(found)]).fetchall()
        if len(found) >= selection.limit:
            break
    return found


def _question(
    selection: Selection, span: Span, columns: Sequence[str], listed: str, condition: Condition, table: str
) -> tuple[str, list[Any]]:
    """A statement and its values, but for its last one, the limit."""
    where, values = condition
    tagged, tags = _tagged(selection.tags, table)
    where, values = f"{listed} AND {where}{tagged}", [*values, *tags]
    if span.only:
        where, values = f"{where} AND path = ?", [*values, span.low]
        if span.id is not None:
            where, values = f"{where} AND id < ?", [*values, span.id]
        limit = "min(1, ?)" if selection.latest else "?"
        what = f"SELECT {', '.join(columns)} FROM {table} AS files"
        return f"{what} WHERE {where} ORDER BY path, id DESC LIMIT {limit}", values
    if span.high is not None:
        where, values = f"{where} AND path < ?", [*values, span.high]
    if selection.latest:
        return _newest(columns, where, table), [*values, span.low, *values]
    what = f"SELECT {', '.join(columns)} FROM {table} AS files"
    return f"{what} WHERE {where} AND path > ? ORDER BY path, id DESC LIMIT ?", [*values, span.low]


def _newest(columns: Sequence[str], where: str, table: str) -> str:
    """The first row of each path: after each a seek for the next path, whatever the number of versions between."""
    first = f"SELECT id FROM {table} AS files WHERE {where} AND path > {{after}} ORDER BY path, id DESC LIMIT 1"
    return f"""
    WITH RECURSIVE newest (id, path) AS (
        SELECT id, path FROM files WHERE id = ({first.format(after="?")})
        UNION ALL
        SELECT next.id, next.path FROM newest JOIN files AS next ON next.id = ({first.format(after="newest.path")})
        LIMIT ?
    )
    SELECT {", ".join(f"files.{name}" for name in columns)} FROM newest JOIN files ON files.id = newest.id
    ORDER BY newest.path
    """


def _tagged(tags: Sequence[str], table: str) -> tuple[str, Sequence[str]]:
    """The condition that a file has all of these tags. In the table of tags a row is chosen by the first."""
    if table == "files":
        return " AND EXISTS (SELECT 1 FROM json_each(files.tags) WHERE value = ?)" * len(tags), tags
    other = (
        " AND EXISTS (SELECT 1 FROM tags AS other WHERE other.namespace = files.namespace"
        " AND other.project = files.project AND other.experiment = files.experiment AND other.tag = ?"
        " AND other.path = files.path AND other.id = files.id)"
    )
    return " AND files.tag = ?" + other * (len(tags) - 1), tags


def _narrowed(connection: sqlite3.Connection, selection: Selection) -> Condition:
    """What chooses the index of a folder or that of an ending, where a pattern tells; the one that has less to read."""
    if not selection.pattern:
        return "", []
    ending = narrow.ending_of_all(selection.pattern)
    if narrow.is_of_one_folder(selection.pattern) and (ending is None or _is_small(connection, selection)):
        return " AND prefix = ?", [selection.prefix]
    return ("", []) if ending is None else (f" AND {ENDING} = ?", [ending])


def _is_small(connection: sqlite3.Connection, selection: Selection) -> bool:
    where, values = experiment_where(replace(selection, scope=EVERYBODY))  # whose a file is, is not in the index
    some = f"SELECT 1 FROM files WHERE {_INDEXED} AND {where} AND prefix = ? LIMIT ?"
    (count,) = connection.execute(f"SELECT count(*) FROM ({some})", [*values, selection.prefix, FEW + 1]).fetchone()
    return int(count) <= FEW


def _file_where(selection: Selection, narrowed: str, narrowing: list[Any]) -> Condition:
    """The condition on a file but for its place in the order. What concerns its path is read from the index alone."""
    text, values = experiment_where(selection)
    if not selection.pattern:
        return text, values
    text, values = text + narrowed, [*values, *narrowing]
    prefix = f"{selection.prefix}/" if selection.prefix else ""
    if (depth := narrow.depth(selection.pattern)) is not None:
        slashes = prefix.count("/") + depth - 1
        text, values = f"{text} AND length(path) - length(replace(path, '/', '')) = ?", [*values, slashes]
    # "+": SQLite would compile the statement anew for every pattern, to look for a range that `spans` has found.
    return f"{text} AND +path GLOB ?", [*values, _literal(prefix) + _wider(selection.pattern)]


def _literal(text: str) -> str:
    """Text as a pattern of SQLite's GLOB."""
    return re.sub(r"[*?[]", r"[\g<0>]", text)


def _wider(pattern: str) -> str:
    """A pattern of SQLite's GLOB, whose `*` spans segments, that everything fits that fits a glob of ours."""
    segments = ("*" if "[" in segment else segment for segment in pattern.split("/"))
    return "/".join(segments).replace("**/", "*")
