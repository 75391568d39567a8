"""The catalog of a fleet: MongoDB, a document a version of a file.

Every write can be repeated: a record is inserted where there is none of its id, and then only changes upwards. A higher
revision takes the place of a lower one, a deletion stays, and nothing that comes late takes either back.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_dashd.core import narrow
from ml_dashd.core.model import Amendment, Experiment, FileRecord, Scope, Selection, Trouble
from ml_dashd.core.spans import spans
from ml_dashd.edge.inventory_mongo import MongoInventory
from ml_dashd.edge.mongo import Document, Mongo
from ml_dashd.edge.mongo_records import (
    GONE,
    ORDER,
    THERE,
    amended,
    deletion,
    document,
    in_scope,
    index,
    question,
    read_record,
    said,
)
from ml_dashd.edge.mongo_schema import FILES
from ml_dashd.edge.seeking_mongo import Seeker
from ml_dashd.edge.sets_mongo import MongoSets
from ml_dashd.ports import gone_of

if TYPE_CHECKING:
    from pymongo import UpdateOne
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

IDENTITY = ("owner_uid", "key", "sha256")
"""FileRecord.identity"""
DUPLICATE_KEY = 11000
BY_ID = "_id_"
"""The index of ids: by SHA-256 there may be a million files without a byte."""


class MongoCatalog:
    """The port `Catalog`. The database is brought up to date by edge/mongo_schema.py."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._files = mongo.collection(FILES)
        self.sets = MongoSets(mongo)
        self.inventory = MongoInventory(mongo)

    async def commit(self, records: Sequence[FileRecord]) -> list[int]:
        return await self._mongo.call(self._commit(records))

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        return await self._mongo.call(self._find({"_id": {"$in": list(ids)}}, [("_id", 1)], len(ids) or 1))

    async def select(self, selection: Selection) -> list[FileRecord]:
        return await self._mongo.call(self._select(selection))

    async def newer(self, after: int, scope: Scope, limit: int) -> list[FileRecord]:
        asked = {"_id": {"$gt": after}, "listed": True, **in_scope(scope)}
        return await self._mongo.call(self._find(asked, [("_id", 1)], limit))

    async def amend(self, file_id: int, words: Amendment, at_ms: int) -> FileRecord | None:
        change = {"$set": {**amended(words), "updated_ms": at_ms}, "$inc": {"revision": 1}}
        # True is ReturnDocument.AFTER.
        found = await self._mongo.call(
            self._files.find_one_and_update({"_id": file_id, **THERE}, change, return_document=True)
        )
        return None if found is None else read_record(found)

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        return await self._mongo.call(self._delete(ids, at_ms))

    async def prune(self, records: Sequence[FileRecord], at_ms: int) -> list[int]:
        return await self._mongo.call(self._prune(records, at_ms))

    async def experiments(self) -> list[Experiment]:
        return await self._mongo.call(self._experiments())

    async def deleted(self, before_ms: int, after: tuple[int, int], limit: int) -> list[FileRecord]:
        return await self._mongo.call(self._deleted(before_ms, after, limit))

    async def reclaimed(self, records: Sequence[FileRecord], at_ms: int) -> None:
        from pymongo import UpdateOne  # noqa: PLC0415 optional

        change = {"$set": {"reclaimed_ms": at_ms}, "$unset": {"reclaimable": ""}}
        writes = [
            UpdateOne({"_id": record.id, "deleted_ms": record.deleted_ms, "reclaimable": True}, change)
            for record in records
        ]
        if writes:
            await self._mongo.call(self._files.bulk_write(writes, ordered=False))

    def trouble(self) -> Trouble | None:
        return self._mongo.trouble()

    async def close(self) -> None:
        await self._mongo.close()

    # ---- writes

    async def _commit(self, records: Sequence[FileRecord]) -> list[int]:
        """What is inserted is whole; of what is there the words may be older, or it is another file."""
        from pymongo import UpdateOne  # noqa: PLC0415 optional

        writes = []
        for record in records:
            made = document(record)
            mine = {name: made.pop(name) for name in ("_id", *IDENTITY)}
            writes.append(UpdateOne(mine, {"$setOnInsert": made}, upsert=True, hint=BY_ID))
        if not writes or await self._upsert(writes) == len(records):
            return []
        updates = [
            UpdateOne(
                {**_mine(record), **THERE, "revision": {"$lt": record.revision}},
                {"$set": said(record)},
                hint=BY_ID,
            )
            for record in records
        ]
        await self._files.bulk_write(updates, ordered=False)
        return await self._checked(records)

    async def _upsert(self, writes: Sequence[UpdateOne]) -> int:
        """How many were inserted. An id that is there with another identity is refused by the index of ids."""
        from pymongo.errors import BulkWriteError  # noqa: PLC0415 optional

        try:
            return (await self._files.bulk_write(writes, ordered=False)).upserted_count
        except BulkWriteError as refused:
            if any(each["code"] != DUPLICATE_KEY for each in refused.details["writeErrors"]):
                raise
            return -1

    async def _checked(self, records: Sequence[FileRecord]) -> list[int]:
        """Those of these that are deleted. Raises TakenError where an id is another file's."""
        there = await self._find({"_id": {"$in": [record.id for record in records]}}, [("_id", 1)], len(records))
        return gone_of(records, there)

    async def _delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        await self._files.update_many({"_id": {"$in": list(ids)}, **THERE}, deletion(at_ms))
        return await self._gone(ids, {})

    async def _prune(self, records: Sequence[FileRecord], at_ms: int) -> list[int]:
        """A bulk of writes does not tell which have met something: what this call deleted bears its mark."""
        from pymongo import UpdateOne  # noqa: PLC0415 optional

        mark = secrets.token_hex(8)
        change = deletion(at_ms, mark)
        writes = [
            UpdateOne({"_id": record.id, "revision": record.revision, "listed": True}, change) for record in records
        ]
        if not writes:
            return []
        await self._files.bulk_write(writes, ordered=False)
        return await self._gone([record.id for record in records], {"deletion": mark})

    async def _gone(self, ids: Sequence[int], asked: Document) -> list[int]:
        """Those of these that are deleted, in the order of their ids."""
        found = self._files.find({"_id": {"$in": list(ids)}, **GONE, **asked}, {"_id": 1}, sort=[("_id", 1)])
        return [each["_id"] for each in await found.to_list()]

    # ---- questions

    async def _find(
        self,
        asked: Document,
        order: list[tuple[str, int]],
        limit: int,
        hint: str | None = None,
        session: AsyncClientSession | None = None,
    ) -> list[FileRecord]:
        found = self._moment(session).find(asked, sort=order, limit=limit, hint=hint, session=session)
        return [read_record(each) for each in await found.to_list()]

    def _moment(self, session: AsyncClientSession | None) -> AsyncCollection[Document]:
        """The files as of one moment: else a find that yields could see a part of a set that becomes visible."""
        from pymongo.read_concern import ReadConcern  # noqa: PLC0415 optional

        return self._files if session else self._files.with_options(read_concern=ReadConcern("snapshot"))

    async def _select(self, selection: Selection) -> list[FileRecord]:
        """All of a page is of one moment, that of the session, however many questions it takes."""
        async with self._mongo.client.start_session(snapshot=True) as session:
            listed = await self._selected(selection, session, pending=False)
            if not selection.pending:
                return listed
            return self._together(selection, listed, await self._selected(selection, session, pending=True))

    def _together(self, selection: Selection, listed: list[FileRecord], pending: list[FileRecord]) -> list[FileRecord]:
        """What is listed and what is pending, each from an index of its own."""
        found = sorted([*listed, *pending], key=lambda record: (record.path, -record.id))
        if selection.latest:
            newest = {record.path: record for record in reversed(found)}
            found = sorted(newest.values(), key=lambda record: record.path)
        return found[: selection.limit]

    async def _selected(self, selection: Selection, session: AsyncClientSession, *, pending: bool) -> list[FileRecord]:
        """Documents in the order of an index; keys first, and then their documents, where some can be passed over."""
        found: list[FileRecord] = []
        if selection.latest or narrow.may_leap(selection.pattern):
            ids = await Seeker(self._files, session, selection, pending=pending).ids()
            if ids:
                found = await self._find({"_id": {"$in": ids}}, [("_id", 1)], len(ids), session=session)
            return sorted(found, key=lambda record: (record.path, -record.id))
        for span in spans(selection):
            asked, left = question(selection, span, pending=pending), selection.limit - len(found)
            found += await self._find(asked, ORDER, left, index(selection, pending=pending), session)
            if len(found) >= selection.limit:
                break
        return found

    async def _experiments(self) -> list[Experiment]:
        """Level by level: each is a seek in the index for every name."""
        found: list[Experiment] = []
        asked: dict[str, Any] = {"listed": True}
        for namespace in await self._files.distinct("namespace", asked):
            for project in await self._files.distinct("project", {**asked, "namespace": namespace}):
                there = {**asked, "namespace": namespace, "project": project}
                found += [(namespace, project, each) for each in await self._files.distinct("experiment", there)]
        return found

    async def _deleted(self, before_ms: int, after: tuple[int, int], limit: int) -> list[FileRecord]:
        """Of the last one's own moment first, then later ones: each is one range of the index."""
        at_ms, last = after
        order = [("deleted_ms", 1), ("_id", 1)]
        found: list[FileRecord] = []
        if at_ms < before_ms:
            found = await self._find({"reclaimable": True, "deleted_ms": at_ms, "_id": {"$gt": last}}, order, limit)
        if len(found) < limit:
            later = {"reclaimable": True, "deleted_ms": {"$gt": at_ms, "$lt": before_ms}}
            found += await self._find(later, order, limit - len(found))
        return found


def _mine(record: FileRecord) -> Document:
    return {"_id": record.id, **{name: getattr(record, name) for name in IDENTITY}}
