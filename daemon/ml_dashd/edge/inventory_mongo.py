"""What is compared with the store, in the catalog of a fleet; and which of its nodes compares."""

from __future__ import annotations

from collections.abc import Sequence

from ml_dashd.core.model import FileRecord
from ml_dashd.edge.mongo import Document, Mongo
from ml_dashd.edge.mongo_records import THERE, read_record
from ml_dashd.edge.mongo_schema import FILES
from ml_dashd.edge.rounds_mongo import MongoRounds

CHORE = "reconcile"
BY_KEY = "by_key"


class MongoInventory(MongoRounds):
    """The `Inventory` of ports."""

    def __init__(self, mongo: Mongo) -> None:
        super().__init__(mongo, CHORE)
        self._files = mongo.collection(FILES)

    async def records(self, after: str, limit: int) -> list[FileRecord]:
        return await self._mongo.call(self._records(after, limit))

    async def mark(self, records: Sequence[FileRecord], missing_ms: int | None) -> None:
        asked: Document = {"_id": {"$in": [record.id for record in records]}, **THERE}
        if missing_ms is not None:
            asked["missing_ms"] = None
        await self._mongo.call(self._files.update_many(asked, {"$set": {"missing_ms": missing_ms}}))

    async def _records(self, after: str, limit: int) -> list[FileRecord]:
        asked = {"reclaimed_ms": None, "key": {"$gt": after}}
        found = self._files.find(asked, sort=[("key", 1)], limit=limit, hint=BY_KEY)
        return [read_record(each) for each in await found.to_list()]
