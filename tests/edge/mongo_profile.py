"""What a MongoDB notes of its own work: every operation, with its plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymongo

from ml_dashd.edge.mongo_schema import FILES

Database = pymongo.database.Database[Any]


@contextmanager
def profiled(url: str) -> Iterator[Database]:
    """The database of that URL, which notes every operation meanwhile."""
    with pymongo.MongoClient[Any](url) as client:
        database = client.get_default_database()
        database.command("profile", 2)
        yield database
        database.command("profile", 0)


def noted(database: Database, *operations: str) -> list[dict[str, Any]]:
    """What was noted of those operations on files, since the notes were last thrown away."""
    asked = {"ns": f"{database.name}.{FILES}", "op": {"$in": list(operations)}}
    return list(database["system.profile"].find(asked))
