"""File records as MongoDB's documents, and Selections as questions to its indexes."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Any

from ml_dashd.core import narrow
from ml_dashd.core.model import Amendment, FileRecord, Scope, Selection
from ml_dashd.core.sets import Share
from ml_dashd.core.spans import Span
from ml_dashd.edge.mongo import Document

SAID = ("description", "tags", "bindrs", "metadata", "updated_ms", "revision")
"""What an amendment changes."""
ORDER = [("path", 1), ("_id", -1)]
THERE: Document = {"deleted_ms": None}
"""The condition that a file is not deleted, listed or pending."""
GONE: Document = {"deleted_ms": {"$ne": None}}
LATER = ("missing_ms",)
"""Fields that documents of earlier releases have not."""
_FIELDS = tuple(field.name for field in fields(FileRecord) if field.name != "id")


def document(record: FileRecord) -> Document:
    """A record's document. Words that are None are kept as such: every document has every field."""
    made: Document = {name: getattr(record, name) for name in _FIELDS}
    crc = None if record.crc64nvme is None else f"{record.crc64nvme:016x}"  # BSON's integers are signed
    derived = {
        "path": record.path,
        "ending": narrow.ending(record.filename),
        "listed": record.deleted_ms is None and not record.pending,
        "share": None if record.share is None else asdict(record.share),
        "reclaimed_ms": None,
    }
    return {"_id": record.id, **made, "tags": list(record.tags), "bindrs": list(record.bindrs), "crc64nvme": crc} | (
        derived
    )


def read_record(found: Document) -> FileRecord:
    values: Document = {name: found.get(name) if name in LATER else found[name] for name in _FIELDS}
    values["tags"], values["bindrs"] = tuple(found["tags"]), tuple(found["bindrs"])
    values["share"] = None if found["share"] is None else Share(**found["share"])
    values["crc64nvme"] = None if found["crc64nvme"] is None else int(found["crc64nvme"], 16)
    return FileRecord(id=found["_id"], **values)


def said(record: FileRecord) -> Document:
    """What is said of a file, as fields to set."""
    made = document(record)
    return {name: made[name] for name in SAID}


def amended(words: Amendment) -> Document:
    """The fields that an amendment names."""
    given: Document = {"description": words.description, "metadata": words.metadata}
    given["tags"] = None if words.tags is None else list(words.tags)
    given["bindrs"] = None if words.bindrs is None else list(words.bindrs)
    return {name: value for name, value in given.items() if value is not None}


def in_scope(scope: Scope) -> Document:
    """The condition that a file is in a scope."""
    if scope.owner_uid is None:
        return {}
    return {"$or": [{"owner_uid": scope.owner_uid}, {"namespace": {"$in": sorted(scope.namespaces)}}]}


def index(selection: Selection, *, pending: bool = False) -> str:
    """The name of the index that answers a Selection: MongoDB's planner would try several, and choose by a sample."""
    if pending:
        return "pending"
    if selection.tags:
        return "by_tag"
    return "by_path" if _ending(selection) is None else "by_ending"


def is_of_keys(selection: Selection, *, pending: bool = False) -> bool:
    """Whether the keys of its index hold all that a Selection asks for, but for its glob."""
    return not _is_of_owner(selection) and len(selection.tags) <= (0 if pending else 1)


def question(selection: Selection, span: Span, *, pending: bool = False, glob: bool = True) -> Document:
    """The condition on files of one span, listed or pending. What concerns the path is read from an index alone.

    Without its glob it holds of more files.
    """
    asked: Document = {
        "pending" if pending else "listed": True,
        "namespace": selection.namespace,
        "project": selection.project,
        "experiment": selection.experiment,
    }
    if _is_of_owner(selection):
        asked["owner_uid"] = selection.scope.owner_uid
    if selection.tags:
        asked["tags"] = {"$all": list(selection.tags)}
    elif not pending and (ending := _ending(selection)) is not None:
        asked["ending"] = ending
    asked["path"] = _paths(selection, span, glob=glob)
    if span.id is not None:
        asked["_id"] = {"$lt": span.id}
    return asked


def _is_of_owner(selection: Selection) -> bool:
    """Whether only files of one owner are in scope."""
    return selection.scope.owner_uid is not None and selection.namespace not in selection.scope.namespaces


def _ending(selection: Selection) -> str | None:
    return narrow.ending_of_all(selection.pattern) if selection.pattern else None


def _paths(selection: Selection, span: Span, *, glob: bool) -> Any:
    if span.only:
        return span.low
    paths: Document = {"$gt": span.low}
    if span.high is not None:
        paths["$lt"] = span.high
    if glob and selection.pattern:
        paths["$regex"] = _wider(selection)
    return paths


def _wider(selection: Selection) -> str:
    """A regular expression that every path fits that fits the glob. It leaves keys out; the range is the span's."""
    prefix = f"{selection.prefix}/" if selection.prefix else ""
    pattern = selection.pattern or ""
    segments = ("*" if "[" in segment else segment for segment in pattern.split("/"))
    glob = "/".join(segments).replace("**/", "*")
    some = "[^/]*" if narrow.depth(pattern) is not None else ".*"
    words = {"*": some, "?": "."}
    return f"^{re.escape(prefix)}{''.join(words.get(mark) or re.escape(mark) for mark in glob)}$"


def deletion(at_ms: int, mark: str = "") -> Document:
    """The change that deletes a file."""
    return {
        "$set": {
            "listed": False, "pending": False, "deleted_ms": at_ms, "reclaimable": True, "deletion": mark,
        }
    }  # fmt: skip
