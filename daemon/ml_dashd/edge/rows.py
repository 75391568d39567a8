"""File records as SQLite rows: what the journal and the catalog have in common."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from operator import itemgetter
from typing import Any, TypeVar

from ml_dashd.core.model import FileRecord, Scope, Selection
from ml_dashd.core.sets import Share

T = TypeVar("T")

RECORD_COLUMNS = tuple(field.name for field in fields(FileRecord))
_OF_RECORD = itemgetter(*RECORD_COLUMNS)
KEY_OF_SHARE = "substr(share, 1, 32)"
"""A share's key, as its indexes have it: one over this expression serves only a question that has its very words."""


def record_values(record: FileRecord) -> dict[str, Any]:
    """A record's columns, `path` included."""
    values: dict[str, Any] = dict(vars(record))
    values["tags"] = _text(record.tags)
    values["bindrs"] = _text(record.bindrs)
    values["crc64nvme"] = crc_blob(record.crc64nvme)
    values["share"] = share_text(record.share)
    values["path"] = record.path
    return values


def made(kind: type[T], values: dict[str, Any]) -> T:
    """A frozen value of all its fields, each of them named: its own `__init__` calls a function for every one."""
    value = object.__new__(kind)
    object.__setattr__(value, "__dict__", values)
    return value


def read_record(row: Mapping[str, Any] | sqlite3.Row) -> FileRecord:
    values = dict(zip(RECORD_COLUMNS, _OF_RECORD(row), strict=True))
    values["tags"] = _words(values["tags"])
    values["bindrs"] = _words(values["bindrs"])
    values["crc64nvme"] = read_crc(values["crc64nvme"])
    if values["share"] is not None:
        values["share"] = read_share(values["share"])
    values["pending"] = bool(values["pending"])
    return made(FileRecord, values)


def share_text(share: Share | None) -> str | None:
    """A share as a column: its key, and what else there is of it as JSON."""
    if share is None:
        return None
    return share.key + json.dumps((share.name, share.attempt, share.rank, share.world_size))


def read_share(text: str) -> Share:
    return Share(text[:32], *json.loads(text[32:]))


def _words(text: str) -> tuple[str, ...]:
    """Most files have none, which needs no parser."""
    return () if text == "[]" else tuple(json.loads(text))


def _text(words: Sequence[str]) -> str:
    return json.dumps(words) if words else "[]"


def insert(table: str, columns: Iterable[str], rows: int = 1) -> str:
    """An INSERT of these columns, values by position: names would be looked up one by one. The names are ours."""
    names = tuple(columns)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES {placeholders(rows, len(names))}"


def placeholders(rows: int, width: int) -> str:
    """The rows of a VALUES."""
    return ", ".join([f"({', '.join('?' * width)})"] * rows)


def crc_blob(value: int | None) -> bytes | None:
    """A CRC-64 as 8 bytes: SQLite's integers are signed."""
    return None if value is None else value.to_bytes(8, "big")


def read_crc(blob: bytes | None) -> int | None:
    return None if blob is None else int.from_bytes(blob, "big")


def marks(values: Sequence[Any]) -> str:
    """Placeholders for a list of values."""
    return ", ".join("?" * len(values))


def scope_where(scope: Scope) -> tuple[str, list[Any]]:
    """The condition that a file is in a scope."""
    if scope.owner_uid is None:
        return "TRUE", []
    names = sorted(scope.namespaces)
    return f"(owner_uid = ? OR namespace IN ({marks(names)}))", [scope.owner_uid, *names]


def experiment_where(selection: Selection) -> tuple[str, list[Any]]:
    """The condition that a file is of a Selection's experiment and scope."""
    text, values = scope_where(selection.scope)
    experiment = [selection.namespace, selection.project, selection.experiment]
    return f"namespace = ? AND project = ? AND experiment = ? AND {text}", [*experiment, *values]
