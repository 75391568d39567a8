"""What the database of a fleet holds: the indexes of its collections, and the steps from one version to the next.

Every daemon checks it when it starts, and makes what is missing: making an index that is there does nothing. A
database of a newer release is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.edge.mongo import Mongo

if TYPE_CHECKING:
    from pymongo import IndexModel

VERSION = 1
FILES, EXPERIMENTS, METRICS, ROWS, SCHEMA = "files", "experiments", "metrics", "metric_rows", "schema"
SETS, SHARES, COUNTERS = "sets", "shares", "counters"

_EXPERIMENT = ("namespace", "project", "experiment")
_IS_LISTED = {"listed": True}
_IS_RECLAIMABLE = {"reclaimable": True}
_IS_PENDING = {"pending": True}
_HAS_BYTES = {"reclaimed_ms": None}
INDEXES: Mapping[str, Mapping[str, tuple[Sequence[str], Mapping[str, Any]]]] = {
    # The keys hold `listed` though it is the condition of the index: MongoDB looks at a document for what they lack.
    FILES: {
        "by_path": (("listed", *_EXPERIMENT, "path", "-_id"), {"partialFilterExpression": _IS_LISTED}),
        "by_ending": (("listed", *_EXPERIMENT, "ending", "path", "-_id"), {"partialFilterExpression": _IS_LISTED}),
        "by_tag": (("listed", *_EXPERIMENT, "tags", "path", "-_id"), {"partialFilterExpression": _IS_LISTED}),
        "by_sha256": (("sha256",), {}),
        "deleted": (("reclaimable", "deleted_ms", "_id"), {"partialFilterExpression": _IS_RECLAIMABLE}),
        "by_key": (("key",), {"partialFilterExpression": _HAS_BYTES}),
        "pending": (("pending", *_EXPERIMENT, "path", "-_id"), {"partialFilterExpression": _IS_PENDING}),
        "by_share": (("share.key", "_id"), {"partialFilterExpression": {"share.key": {"$exists": True}}}),
        "pending_since": (("pending", "uploaded_ms", "_id"), {"partialFilterExpression": _IS_PENDING}),
    },
    EXPERIMENTS: {"by_place": ((*_EXPERIMENT, "owner_uid"), {"unique": True})},
    METRICS: {"by_name": (("experiment", "name"), {"unique": True})},
    ROWS: {
        "by_position": (("metric", "position"), {"unique": True}),
        "once": (("metric", "writer", "number"), {"unique": True}),
    },
    SETS: {
        "by_number": ((*_EXPERIMENT, "state", "-number"), {}),
        "by_name": ((*_EXPERIMENT, "name", "owner_uid", "attempt", "-round"), {}),
        "newest": (("state", "-number"), {}),
        "since": (("state", "updated_ms"), {}),
    },
    SHARES: {"by_set": (("set_id", "rank"), {"unique": True})},
}


async def prepare(mongo: Mongo) -> None:
    """Brings the database up to date. Idempotent, by several daemons at once, too.

    Raises CONFIG for a database of a newer release, or a server without transactions, and JournalError as `Mongo.run`
    does.
    """
    hello = await mongo.run(mongo.database.command("hello"))
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        what = f"the catalog {mongo.place} is a server that is no replica set"
        raise error(Code.CONFIG, what, "start mongod with --replSet, and call rs.initiate() once; docs/fleet.md")
    found = await mongo.run(mongo.collection(SCHEMA).find_one({"_id": "version"}))
    if found is not None and found["number"] > VERSION:
        raise _newer(mongo, found["number"])
    for collection, indexes in INDEXES.items():
        models = [_model(name, keys, options) for name, (keys, options) in indexes.items()]
        await mongo.run(mongo.collection(collection).create_indexes(models))
    # The number only rises, whoever comes last.
    await mongo.run(mongo.collection(SCHEMA).update_one({"_id": "version"}, {"$max": {"number": VERSION}}, upsert=True))


def _newer(mongo: Mongo, number: int) -> MLDashError:
    what = f"the catalog {mongo.place} is of schema {number}, and this release knows {VERSION}"
    return error(Code.CONFIG, what, "install the release that the other nodes have")


def _model(name: str, keys: Sequence[str], options: Mapping[str, Any]) -> IndexModel:
    from pymongo import IndexModel  # noqa: PLC0415 optional

    pairs = [(key.removeprefix("-"), -1 if key.startswith("-") else 1) for key in keys]
    return IndexModel(pairs, name=name, **options)
