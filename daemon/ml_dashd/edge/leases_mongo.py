"""Node numbers in MongoDB: a document a number, whose `_id` it is, so that two can't be made of one.

The rules of core/lease.py once more, as the server evaluates them by its own clock ($$NOW) while it has the document:
a number changes hands in one step, and tests/contract/test_leases.py holds both to the same answers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ml_dashd.core.lease import ALIVE_MS, LEASE_MS, Answer, Claim, Node, Place
from ml_dashd.edge.mongo import Document, Mongo

NODES = "nodes"
_NOW = {"$toLong": "$$NOW"}


class MongoLeases:
    """The port `Leases`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._nodes = mongo.collection(NODES)

    async def taken(self, claim: Claim) -> list[int]:
        return await self._mongo.call(self._taken(claim))

    async def take(self, number: int, claim: Claim) -> Node | None:
        return await self._mongo.call(self._take(number, claim))

    async def renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        return await self._mongo.call(self._renew(number, known, claim))

    async def nodes(self, after: int, limit: int) -> list[Node]:
        return await self._mongo.call(self._list(after, limit))

    async def _taken(self, claim: Claim) -> list[int]:
        found = self._nodes.find({"$expr": {"$not": [_is_free(claim)]}}, {"_id": 1})
        return [each["_id"] for each in await found.to_list()]

    async def _take(self, number: int, claim: Claim) -> Node | None:
        node = {
            "_id": number,
            **_claimed(claim),
            "floor_ms": {"$ifNull": ["$ceiling_ms", 0]},
            "ceiling_ms": claim.ceiling_ms,
            "until_ms": {"$add": [_NOW, LEASE_MS]},
        }
        found = await self._change({"_id": number}, _is_free(claim), node, upsert=True)
        return None if found is None or found["token"] != claim.token else _read(found)

    async def _renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        node = {
            "_id": number,
            **_claimed(claim),
            "floor_ms": "$floor_ms",
            "ceiling_ms": {"$max": ["$ceiling_ms", claim.ceiling_ms]},
            "until_ms": {"$max": ["$until_ms", {"$add": [_NOW, LEASE_MS]}]},
        }
        known_by = {"_id": number, "token": {"$in": list(known)}}
        found = await self._change(known_by, _may_keep(claim), node)
        if found is None:
            return Answer.OVERTAKEN, None
        node_now = _read(found)
        if node_now.token == claim.token:
            return Answer.KEPT, node_now
        return (Answer.UNSURE if claim.place.may_have_been(node_now.place) else Answer.OVERTAKEN), None

    async def _change(self, asked: Document, condition: Any, to: Document, *, upsert: bool = False) -> Document | None:
        """Puts a document in the place of another where the condition holds; the one that is there then."""
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415 optional

        change = [{"$replaceWith": {"$cond": [condition, to, "$$ROOT"]}}]
        try:
            # True is ReturnDocument.AFTER.
            return await self._nodes.find_one_and_update(asked, change, upsert=upsert, return_document=True)
        except DuplicateKeyError:  # two have found nothing there, and the other has made it
            return None

    async def _list(self, after: int, limit: int) -> list[Node]:
        found = self._nodes.find({"_id": {"$gt": after}}, sort=[("_id", 1)], limit=limit)
        return [_read(each) for each in await found.to_list()]


def _is_free(claim: Claim) -> Document:
    """`may_take`: there is none, or its time is over, and by the claimant's clock its interval, too."""
    is_over = {"$and": [{"$lt": ["$until_ms", _NOW]}, {"$lt": ["$ceiling_ms", claim.now_ms]}]}
    return {"$or": [{"$eq": [{"$type": "$token"}, "missing"]}, is_over]}


def _may_keep(claim: Claim) -> Document:
    """`answer` is KEPT: the same place, or after another boot of it, once a twin would have shown itself."""
    machine_and_folder = [_equals("machine", claim.place.machine), _equals("folder", claim.place.folder)]
    is_quiet = {"$gte": [{"$subtract": [_NOW, "$seen_ms"]}, ALIVE_MS]}
    return {"$and": [*machine_and_folder, {"$or": [_equals("boot", claim.place.boot), is_quiet]}]}


def _equals(field: str, value: str) -> Document:
    return {"$eq": [f"${field}", {"$literal": value}]}


def _claimed(claim: Claim) -> Document:
    """What the claimant says of itself. A text may begin with "$", which would be a field's name."""
    place = claim.place
    said = {"token": claim.token, "machine": place.machine, "boot": place.boot, "folder": place.folder}
    texts = {name: {"$literal": value} for name, value in {**said, "host": claim.host}.items()}
    return {**texts, "seen_ms": _NOW}


def _read(found: Document) -> Node:
    place = Place(found["machine"], found["boot"], found["folder"])
    times = (found["floor_ms"], found["ceiling_ms"], found["until_ms"], found["seen_ms"])
    return Node(found["_id"], found["token"], place, *times, found["host"])
