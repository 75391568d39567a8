"""Sets in a fleet's catalog: what becomes visible together does so in one transaction of MongoDB.

A share writes to its set's document, so that of two that come at once one waits for the other, and the last one sees
all. A transaction that was cut off is repeated: the share's key says whether it happened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

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
from ml_dashd.edge.mongo import Document, Mongo
from ml_dashd.edge.mongo_records import THERE, deletion, in_scope, read_record
from ml_dashd.edge.mongo_schema import COUNTERS, FILES, SETS, SHARES

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession

T = TypeVar("T")

AT_ONCE = 10_000
"""Ids in one condition: 150 kB of BSON."""
_KEY = ("owner_uid", "namespace", "project", "experiment", "name", "attempt")
_PLAIN = ("round", "number", "world_size", "opened_ms", "updated_ms", "completed_ms")


class MongoSets:
    """The port `Sets`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._files = mongo.collection(FILES)
        self._sets = mongo.collection(SETS)
        self._shares = mongo.collection(SHARES)

    async def open(self, key: SetKey, share: Share, at_ms: int) -> SetRecord:
        return await self._mongo.call(self._open(key, share, at_ms))

    async def deliver(self, delivery: Delivery, at_ms: int) -> Delivered:
        return await self._mongo.call(self._deliver(delivery, at_ms))

    async def holding(self, share_key: str) -> SetRecord | None:
        return await self._mongo.call(self._holding(share_key))

    async def members(self, key: SetKey, share_key: str) -> list[int]:
        return await self._mongo.call(self._marked(key, share_key))

    async def get(self, set_id: str) -> SetRecord | None:
        return await self._mongo.call(self._get(set_id))

    async def select(self, selection: SetSelection) -> list[SetRecord]:
        return await self._mongo.call(self._select(selection))

    async def files(self, set_id: str, after: int, limit: int) -> list[FileRecord]:
        return await self._mongo.call(self._members(set_id, after, limit))

    async def drop(self, set_id: str, at_ms: int, keep_tags: Collection[str] = ()) -> bool:
        return await self._mongo.call(
            self._transact(lambda session: self._drop(session, set_id, at_ms, list(keep_tags)))
        )

    async def report(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        asked = {"state": SetState.OPEN, "updated_ms": {"$lt": before_ms}, "reported_ms": None}
        return await self._mongo.call(self._change(asked, {"reported_ms": at_ms}, limit))

    async def abandon(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        asked = {"state": SetState.OPEN, "updated_ms": {"$lt": before_ms}}
        return await self._mongo.call(self._change(asked, {"state": SetState.DROPPED, "updated_ms": at_ms}, limit))

    async def strays(self, before_ms: int, limit: int) -> list[FileRecord]:
        return await self._mongo.call(self._strays(before_ms, limit))

    # ---- shares that come

    async def _open(self, key: SetKey, share: Share, at_ms: int) -> SetRecord:
        current = await self._newest(key)
        if current is not None and not current.is_over_for(share):
            return current
        number = 1 if current is None else current.round + 1
        counted = await self._mongo.collection(COUNTERS).find_one_and_update(
            {"_id": SETS}, {"$inc": {"last": 1}}, upsert=True, return_document=True
        )
        values = {
            **{name: getattr(key, name) for name in _KEY}, "round": number, "number": (counted or {})["last"],
            "world_size": share.world_size, "state": SetState.OPEN, "opened_ms": at_ms, "updated_ms": at_ms,
            "completed_ms": None, "reported_ms": None,
        }  # fmt: skip
        # Whoever begins the same round at the same moment has it, too: the first one's stays.
        found = await self._sets.find_one_and_update(
            {"_id": set_id(key, number)}, {"$setOnInsert": values}, upsert=True, return_document=True
        )
        return await self._record(found or {})

    async def _deliver(self, delivery: Delivery, at_ms: int) -> Delivered:
        share = delivery.share
        while True:
            known = await self._holding(share.key)
            if known is not None:
                return Delivered(Verdict.DELIVERED, known)
            current = await self._open(delivery.key, share, at_ms)
            if current.world_size != share.world_size:
                return Delivered(Verdict.MISMATCH, current)
            verdict = await self._transact(lambda session, to=current: self._take(session, to, delivery, at_ms))  # type: ignore[misc]
            if verdict is not None:
                return Delivered(verdict, await self._get(current.id) or current)

    async def _take(
        self, session: AsyncClientSession, current: SetRecord, delivery: Delivery, at_ms: int
    ) -> Verdict | None:
        """Takes the share in; None where the round has ended in this moment."""
        share, there = delivery.share, await self._there(session, delivery.ids)
        if there["files"] != len(delivery.ids):
            return Verdict.LOST
        change = {"$set": {"updated_ms": at_ms, "reported_ms": None}, "$inc": {"shares": 1}}
        asked = {"_id": current.id, "state": SetState.OPEN}
        if await self._sets.find_one_and_update(asked, change, session=session) is None:
            return None
        replaced = await self._shares.find_one_and_delete({"set_id": current.id, "rank": share.rank}, session=session)
        if replaced is not None:
            await self._update_files(session, replaced["ids"], THERE, deletion(at_ms))
        made = {"_id": share.key, "set_id": current.id, "rank": share.rank, "ids": list(delivery.ids), **there}
        await self._shares.insert_one(made, session=session)
        of_it = {"set_id": current.id}
        if await self._shares.count_documents(of_it, session=session) == current.world_size:
            shares = await self._shares.find(of_it, session=session).to_list()
            if await self._all_there(session, shares):
                await self._complete(session, current, shares, at_ms)
        return Verdict.DELIVERED

    async def _all_there(self, session: AsyncClientSession, shares: Sequence[Document]) -> bool:
        """Whether nobody has deleted a file of them since; a share that lacks one is none any more."""
        ids = [*chain.from_iterable(share["ids"] for share in shares)]
        if (await self._there(session, ids))["files"] == len(ids):
            return True
        for share in shares:
            if (await self._there(session, share["ids"]))["files"] != len(share["ids"]):
                await self._shares.delete_one({"_id": share["_id"]}, session=session)
        return False

    async def _complete(
        self, session: AsyncClientSession, record: SetRecord, shares: Sequence[Document], at_ms: int
    ) -> None:
        """All its files become visible; of attempts that were saved at the same time, the newest one's alone."""
        mine, overtaken = _span(shares), False
        name = {each: getattr(record.key, each) for each in _KEY if each != "attempt"}
        hidden: list[Document] = []
        async for other in self._sets.find({**name, "state": SetState.COMPLETE}, session=session):
            theirs = await self._shares.find({"set_id": other["_id"]}, session=session).to_list()
            if other["number"] > record.number:
                overtaken = overtaken or overlap(mine, _span(theirs))
            elif overlap(_span(theirs), mine):
                hidden += theirs
        if not overtaken:
            await self._update_files(session, _ids(hidden), THERE, {"$set": {"listed": False, "pending": True}})
            change = {"$set": {"state": SetState.OVERTAKEN, "updated_ms": at_ms}}
            older = sorted({share["set_id"] for share in hidden})
            await self._sets.update_many({"_id": {"$in": older}}, change, session=session)
            await self._update_files(session, _ids(shares), THERE, {"$set": {"listed": True, "pending": False}})
        state = SetState.OVERTAKEN if overtaken else SetState.COMPLETE
        change = {"$set": {"state": state, "completed_ms": at_ms}}
        await self._sets.update_one({"_id": record.id}, change, session=session)

    async def _drop(self, session: AsyncClientSession, set_id: str, at_ms: int, keep_tags: list[str]) -> bool:
        shares = await self._shares.find({"set_id": set_id}, session=session).to_list()
        for some in _batches(_ids(shares)):
            kept = {"_id": {"$in": some}, **THERE, "tags": {"$in": keep_tags}}
            if keep_tags and await self._files.find_one(kept, {"_id": 1}, session=session) is not None:
                return False
        change = {"$set": {"state": SetState.DROPPED, "updated_ms": at_ms}}
        asked = {"_id": set_id, "state": {"$ne": SetState.DROPPED}}
        if not (await self._sets.update_one(asked, change, session=session)).matched_count:
            return False
        await self._update_files(session, _ids(shares), THERE, deletion(at_ms))
        return True

    async def _update_files(
        self, session: AsyncClientSession, ids: Iterable[int], asked: Document, change: Document
    ) -> None:
        for some in _batches(ids):
            await self._files.update_many({"_id": {"$in": some}, **asked}, change, session=session)

    async def _there(self, session: AsyncClientSession, ids: Iterable[int]) -> Document:
        """How many of these files are not deleted, their bytes, and the first and the last of them."""
        files, size, seen = 0, 0, list[int]()
        for some in _batches(ids):
            asked, wanted = {"_id": {"$in": some}, **THERE}, {"_id": 1, "size_bytes": 1}
            async for found in self._files.find(asked, wanted, session=session):
                files, size = files + 1, size + found["size_bytes"]
                seen.append(found["_id"])
        return {
            "files": files, "size_bytes": size, "first_id": min(seen, default=None), "last_id": max(seen, default=None),
        }  # fmt: skip

    async def _transact(self, work: Callable[[AsyncClientSession], Awaitable[T]]) -> T:
        from pymongo.read_concern import ReadConcern  # noqa: PLC0415 optional

        async with self._mongo.client.start_session() as session:
            result: T = await session.with_transaction(work, read_concern=ReadConcern("snapshot"))
            return result

    # ---- questions

    async def _holding(self, share_key: str) -> SetRecord | None:
        share = await self._shares.find_one({"_id": share_key})
        return None if share is None else await self._get(share["set_id"])

    async def _marked(self, key: SetKey, share_key: str) -> list[int]:
        mine = {name: getattr(key, name) for name in ("owner_uid", "namespace", "project", "experiment")}
        asked = {"share.key": share_key, **mine, **THERE}
        found = self._files.find(asked, {"_id": 1}, sort=[("_id", 1)], hint="by_share")
        return [each["_id"] for each in await found.to_list()]

    async def _get(self, set_id: str) -> SetRecord | None:
        found = await self._sets.find_one({"_id": set_id})
        return None if found is None else await self._record(found)

    async def _newest(self, key: SetKey) -> SetRecord | None:
        """The last round of a set."""
        found = await self._sets.find_one({name: getattr(key, name) for name in _KEY}, sort=[("round", -1)])
        return None if found is None else await self._record(found)

    async def _select(self, selection: SetSelection) -> list[SetRecord]:
        asked: Document = {"state": {"$in": list(selection.states)}}
        if selection.experiment is not None:
            asked |= dict(zip(("namespace", "project", "experiment"), selection.experiment, strict=True))
        conditions = [in_scope(selection.scope)]
        if selection.prefix:
            low, high = below(selection.prefix)
            conditions.append({"$or": [{"name": selection.prefix}, {"name": {"$gt": low, "$lt": high}}]})
        if selection.before is not None:
            asked["number"] = {"$lt": selection.before}
        asked["$and"] = [each for each in conditions if each] or [{}]
        found = self._sets.find(asked, sort=[("number", -1)], limit=selection.limit)
        return await self._records(await found.to_list())

    async def _members(self, set_id: str, after: int, limit: int) -> list[FileRecord]:
        shares = await self._shares.find({"set_id": set_id}, {"ids": 1}).to_list()
        ids = sorted(one for one in _ids(shares) if one > after)[:limit]
        found = self._files.find({"_id": {"$in": ids}}, sort=[("_id", 1)])
        return [read_record(each) for each in await found.to_list()]

    async def _change(self, asked: Document, change: Document, limit: int) -> list[SetRecord]:
        """Sets that this call has changed, as they were before."""
        found: list[SetRecord] = []
        while len(found) < limit:
            before = await self._sets.find_one_and_update(asked, {"$set": change})
            if before is None:
                break
            found.append(await self._record(before))
        return found

    async def _strays(self, before_ms: int, limit: int) -> list[FileRecord]:
        """In pages, because files of open sets may stand before them; those of a share follow one another, mostly."""
        found: list[FileRecord] = []
        is_open: dict[str, bool] = {}
        asked: Document = {"pending": True, "uploaded_ms": {"$lt": before_ms}}
        async for document in self._files.find(asked, sort=[("uploaded_ms", 1), ("_id", 1)], hint="pending_since"):
            record = read_record(document)
            key = "" if record.share is None else record.share.key
            if key not in is_open:
                is_open[key] = await self._is_open(key)
            if not is_open[key]:
                found.append(record)
            if len(found) == limit:
                break
        return found

    async def _is_open(self, share_key: str) -> bool:
        """Whether a share is in a set that may still become complete."""
        share = await self._shares.find_one({"_id": share_key}, {"set_id": 1})
        asked = {"_id": None if share is None else share["set_id"], "state": SetState.OPEN}
        return await self._sets.find_one(asked, {"_id": 1}) is not None

    async def _record(self, found: Document) -> SetRecord:
        return (await self._records([found]))[0]

    async def _records(self, found: Sequence[Document]) -> list[SetRecord]:
        """Documents with what their shares say."""
        wanted = {"set_id": 1, "rank": 1, "files": 1, "size_bytes": 1}
        asked = {"set_id": {"$in": [each["_id"] for each in found]}}
        shares: dict[str, list[Document]] = {each["_id"]: [] for each in found}
        async for share in self._shares.find(asked, wanted, sort=[("set_id", 1), ("rank", 1)]):
            shares[share["set_id"]].append(share)
        return [_read_set(each, shares[each["_id"]]) for each in found]


def _read_set(found: Document, shares: Sequence[Document]) -> SetRecord:
    return SetRecord(
        id=found["_id"],
        key=SetKey(**{name: found[name] for name in _KEY}),
        state=SetState(found["state"]),
        files=sum(share["files"] for share in shares),
        size_bytes=sum(share["size_bytes"] for share in shares),
        ranks=tuple(share["rank"] for share in shares) if found["state"] == SetState.OPEN else (),
        **{name: found[name] for name in _PLAIN},
    )


def _ids(shares: Iterable[Document]) -> Iterator[int]:
    return chain.from_iterable(share["ids"] for share in shares)


def _span(shares: Sequence[Document]) -> tuple[int, ...]:
    """The first and the last id of files; empty where there are none."""
    some = [(share["first_id"], share["last_id"]) for share in shares if share["files"]]
    return (min(first for first, _ in some), max(last for _, last in some)) if some else ()


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    every = list(ids)
    return (every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE))
