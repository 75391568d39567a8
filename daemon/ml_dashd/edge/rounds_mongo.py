"""Whose turn it is at a chore of the fleet, in MongoDB: a document a chore, changed as it was read or not at all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ml_dashd.core.rounds import Round
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import COUNTERS


class MongoRounds:
    """The `Rounds` of ports, of one chore; its document lies among the numbers that all nodes count."""

    def __init__(self, mongo: Mongo, chore: str) -> None:
        self._mongo = mongo
        self._chore = chore
        self._counters = mongo.collection(COUNTERS)

    async def round(self) -> Round:
        found = await self._mongo.call(self._counters.find_one({"_id": self._chore}))
        return Round() if found is None else Round(**{name: found[name] for name in asdict(Round())})

    async def turn(self, was: Round, now: Round) -> bool:
        return await self._mongo.call(self._turn(was, now))

    async def _turn(self, was: Round, now: Round) -> bool:
        """The first of all rounds is made; of two that make it, one is refused by the index of ids."""
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415 optional

        asked: dict[str, Any] = {"_id": self._chore, **asdict(was)}
        try:
            done = await self._counters.update_one(asked, {"$set": asdict(now)}, upsert=was == Round())
        except DuplicateKeyError:
            return False
        return bool(done.matched_count or done.upserted_id)
