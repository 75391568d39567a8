"""What is compared with the store, in the catalog of a fleet; and which of its nodes compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ml_dashd.core.model import FileRecord
from ml_dashd.core.reconcile import Round
from ml_dashd.edge.mongo import Document, Mongo
from ml_dashd.edge.mongo_records import THERE, read_record
from ml_dashd.edge.mongo_schema import COUNTERS, FILES

ROUND = "reconcile"
"""The id of the round, among the numbers that all nodes count."""
BY_KEY = "by_key"


class MongoInventory:
    """The `Inventory` of ports."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._files = mongo.collection(FILES)
        self._rounds = mongo.collection(COUNTERS)

    async def records(self, after: str, limit: int) -> list[FileRecord]:
        return await self._mongo.call(self._records(after, limit))

    async def mark(self, records: Sequence[FileRecord], missing_ms: int | None) -> None:
        asked: Document = {"_id": {"$in": [record.id for record in records]}, **THERE}
        if missing_ms is not None:
            asked["missing_ms"] = None
        await self._mongo.call(self._files.update_many(asked, {"$set": {"missing_ms": missing_ms}}))

    async def round(self) -> Round:
        found = await self._mongo.call(self._rounds.find_one({"_id": ROUND}))
        return Round() if found is None else Round(**{name: found[name] for name in asdict(Round())})

    async def turn(self, was: Round, now: Round) -> bool:
        return await self._mongo.call(self._turn(was, now))

    async def _records(self, after: str, limit: int) -> list[FileRecord]:
        asked = {"reclaimed_ms": None, "key": {"$gt": after}}
        found = self._files.find(asked, sort=[("key", 1)], limit=limit, hint=BY_KEY)
        return [read_record(each) for each in await found.to_list()]

    async def _turn(self, was: Round, now: Round) -> bool:
        """The first of all rounds is made; of two that make it, one is refused by the index of ids."""
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415 optional

        asked: dict[str, Any] = {"_id": ROUND, **asdict(was)}
        try:
            done = await self._rounds.update_one(asked, {"$set": asdict(now)}, upsert=was == Round())
        except DuplicateKeyError:
            return False
        return bool(done.matched_count or done.upserted_id)
